"""`python -m edgeq.cli`, the same as `edgeq`."""

from edgeq.cli import main

main()

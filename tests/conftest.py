"""Set before any test imports PyTorch: what `import edgeq` sets for programs that import it first."""

import edgeq  # noqa: F401

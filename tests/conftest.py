"""Set before any test imports PyTorch: what `import edgeq` sets for programs that import it first."""

import os
import signal

import edgeq  # noqa: F401

# Tests compute; those of the cache set up their own.
os.environ["EDGEQ_CACHE"] = "off"

# A shell starts what runs in its background with Ctrl-C ignored, and programs hand that on to those that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

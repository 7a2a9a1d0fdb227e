"""What is copied to a device: the worker, and one file for each runtime. They run with Python 3.8 and numpy, and need
nothing else of edgeq."""

from pathlib import Path

FOLDER = Path(__file__).parent

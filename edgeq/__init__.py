"""edgeq: from a trained PyTorch model to an artefact proven on the device it was made for."""

import os

# ONNX Runtime reports sessions, with names and hashes of models, to its makers unless it is told not to
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

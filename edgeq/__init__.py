"""edgeq: from a trained PyTorch model to an artefact proven on the device it was made for."""

__version__ = "0.1.0"

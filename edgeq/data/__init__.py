"""Samples for calibration and evaluation."""

from edgeq.data.dataset import Dataset, InputSpec, overlap
from edgeq.data.load import load_data

__all__ = ["Dataset", "InputSpec", "load_data", "overlap"]

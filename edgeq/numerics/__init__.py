"""The arithmetic of quantization, once: used by calibration, simulation, export and audit alike."""

from edgeq.numerics.quantize import SQNR_END, QParams, dequantize, per_tensor, qparams, quantize, same_steps, sqnr_db
from edgeq.numerics.scheme import DType, Granularity, Scheme, Symmetry

__all__ = [
    "SQNR_END",
    "DType",
    "Granularity",
    "QParams",
    "Scheme",
    "Symmetry",
    "dequantize",
    "per_tensor",
    "qparams",
    "quantize",
    "same_steps",
    "sqnr_db",
]

"""What an artefact stores, read back from the written file alone: the audit compares it with what was to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeq.numerics import QParams


@dataclass(frozen=True)
class StoredWeight:
    """One layer's constants.

    Attributes:
        integers: in PyTorch's layout; those of fewer than 8 bits as int8.
        dtype: the integers' type in the file: numpy's name, or one such as `int2` or `uint4`.
        scale, zero_point: [channels] or [].
        bias: the stored integers or floats, [channels]; None where there is none.
        bias_dtype: numpy's name.
        bias_scale: of integer biases, where the file stores one: [channels].
        levels: [levels], where the integers are places among them; None where there are none.
    """

    integers: np.ndarray
    dtype: str
    scale: np.ndarray
    zero_point: np.ndarray
    bias: np.ndarray | None
    bias_dtype: str
    bias_scale: np.ndarray | None = None
    levels: np.ndarray | None = None


@dataclass(frozen=True)
class StoredTensor:
    """One activation's quantization, where the file holds scale and zero point."""

    dtype: str
    scale: float
    zero_point: int

    def __str__(self) -> str:
        return f"{self.dtype}, scale {self.scale}, zero point {self.zero_point}"

    def holds(self, q: QParams) -> bool:
        return self == StoredTensor(q.scheme.dtype, float(q.scale), int(q.zero_point))


@dataclass(frozen=True)
class StoredRange:
    """One activation's quantization, where the file holds the real values of its lowest and its highest integer."""

    levels: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.levels} levels from {self.low} to {self.high}"

    def holds(self, q: QParams) -> bool:
        return self == StoredRange(q.scheme.quant_max - q.scheme.quant_min + 1, q.low, q.high)


@dataclass(frozen=True)
class Stored:
    """Everything quantized in a file.

    Attributes:
        weights: by group name.
        tensors: by graph node, the integer forms in which its values are stored: one, or several where a format writes
            a value anew for a reader that wants it on another scale.
        held: graph nodes whose values the format's file holds in any form; the values of others, such as a padding
            that was merged into its convolution, do not exist in it.
        integer_groups: names of the groups that read and write integers.
        float_operators: (operator, layer or tensor name, reason where one is known) of what computes in float.
    """

    weights: dict[str, StoredWeight]
    tensors: Mapping[str, frozenset[StoredTensor | StoredRange]]
    held: frozenset[str]
    integer_groups: set[str]
    float_operators: list[tuple[str, str, str]]

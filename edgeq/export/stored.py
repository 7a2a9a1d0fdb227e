"""What an artefact stores, read back from the written file alone: the audit compares it with what was to be written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StoredWeight:
    """One layer's constants.

    Attributes:
        integers: in PyTorch's layout.
        scale, zero_point: [channels] or [].
        bias: the stored integers or floats, [channels]; None where there is none.
        bias_dtype: numpy's name.
        bias_scale: of integer biases, where the file stores one: [channels].
    """

    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    bias: np.ndarray | None
    bias_dtype: str
    bias_scale: np.ndarray | None = None


@dataclass(frozen=True)
class StoredTensor:
    """One activation's quantization."""

    dtype: str
    scale: float
    zero_point: int


@dataclass(frozen=True)
class Stored:
    """Everything quantized in a file.

    Attributes:
        weights: by group name.
        tensors: by graph node.
        integer_groups: names of the groups that read and write integers.
        float_operators: (operator, layer or tensor name, reason where one is known) of what computes in float.
    """

    weights: dict[str, StoredWeight]
    tensors: dict[str, StoredTensor]
    integer_groups: set[str]
    float_operators: list[tuple[str, str, str]]

"""How much an error in each tensor moves the model's outputs: what range search minimizes.

A clipped or rounded tensor x + e(x) moves the outputs z by J e to first order, and E_v[(v^T J e)^2] = |J e|^2 for
random signs v. One backward pass gives g = J^T v for every tensor at once, and because e depends on the value alone,
summing g over the values that fall in one bin of the tensor's histogram is all that has to be kept: any range can be
judged afterwards. Unlike the mean squared error of the tensor itself, this knows that an outlier in a channel that
nobody reads is worth nothing, and that a bias adds up where noise averages out.

Source: the Gauss-Newton form of the second-order damage in Nagel et al. 2020, "Up or Down? Adaptive Rounding for
Post-Training Quantization", section 3, on the model's own outputs (no labels), with Hutchinson's probes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics import QParams, dequantize, quantize


@dataclass(frozen=True)
class Impact:
    """Summed output sensitivities by tensor and histogram bin (see `edgeq.calibration.gradients`): the bins from the
    first that holds anything to the last.

    Attributes:
        gradients: by graph node, float32 [samples * probes, bins]: sums of v^T dz/dx over the values in each bin.
        centers: by graph node, float32 [bins]: the value that stands for each bin.
    """

    gradients: dict[str, NDArray[np.float32]]
    centers: dict[str, NDArray[np.float32]]

    def of(self, names: Iterable[str], q: QParams) -> float:
        """Expected squared movement of the outputs, in units of their own power, if these tensors are quantized."""
        moved: NDArray[Any] | None = None
        for name in names:
            centers = self.centers[name]
            errors = dequantize(quantize(centers, q), q) - centers
            # not a product of BLAS, whose last bits hang on the number of threads
            part = np.einsum("rb,b->r", self.gradients[name], errors)
            moved = part if moved is None else moved + part
        return float(np.square(moved).mean()) if moved is not None else 0.0

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all these tensors were measured."""
        return all(name in self.gradients for name in names)

"""What calibration found: what ranges and bias correction need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeq.calibration.histogram import Histogram


@dataclass(frozen=True)
class Calibration:
    """What the float model's values looked like on the calibration data.

    Attributes:
        histograms: by graph node, of every float tensor.
        mean_patches: by graph node of a weighted operator, what each of its weights is multiplied by, on average over
            samples and positions: float32, see `edgeq.calibration.patches`.
        samples: how many samples were seen.
    """

    histograms: dict[str, Histogram]
    mean_patches: dict[str, NDArray[np.float32]]
    samples: int

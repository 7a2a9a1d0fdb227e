"""Block reconstruction: rounding, scales and biases are learned so that each block gives what it gives in float.

Source: Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", equation 10,
with all outputs weighted alike. In place of AdaRound's relaxation (Nagel et al. 2020), which takes 20,000 steps,
weights are rounded as `edgeq.methods.learned` says: a hundred steps do. Scales of activations are learned with them
(`edgeq.methods.learned_scale`).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.methods import RECONSTRUCT
from edgeq.methods.begun import begun
from edgeq.methods.by_blocks import learn_blocks
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.model.blocks import MOST
from edgeq.model.model import Model

STEP_MACS = 1e8


def reconstruct(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Rounds layers together, block by block. Few bits begin with what GPTQ makes of them: it is nearer than the
    nearest."""
    start = begun(model, wanted, seen)
    return learn_blocks(model, wanted, seen, start, name=RECONSTRUCT, most=MOST, step_macs=STEP_MACS)

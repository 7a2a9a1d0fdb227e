"""edgeq: from a trained model to an artefact proven on the device it was made for.

import edgeq

report = edgeq.deploy("model.pt2", target="arm-neon", calibration="calib.npz", evaluation="eval.npz", out="build")
print(report.verdict_text)
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgeq.version import __version__

# ONNX Runtime reports sessions, with names and hashes of models, to its makers unless it is told not to
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# PyTorch's threads wait for each other by spinning, which makes small operators tens of times slower on a machine that
# is busy otherwise. OpenMP reads this when PyTorch is imported; nothing that edgeq times uses OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from edgeq.api.deploy import deploy as deploy
    from edgeq.api.validate import validate as validate
    from edgeq.api.verify import verify as verify
    from edgeq.data.load import load_data as load_data
    from edgeq.errors import EdgeqError as EdgeqError
    from edgeq.frontends.load import load as load
    from edgeq.limits import Limits as Limits
    from edgeq.model.model import Model as Model
    from edgeq.packed.quantize import quantize as quantize
    from edgeq.packed.report import packed_report as packed_report
    from edgeq.plans.plan import Plan as Plan
    from edgeq.records.schema import Report as Report
    from edgeq.registry.load import load_target as load_target

# where each public name lives: they are imported on first use, so that `edgeq --help` does not wait for PyTorch
_PUBLIC = {
    "EdgeqError": "edgeq.errors",
    "Limits": "edgeq.limits",
    "Model": "edgeq.model.model",
    "Plan": "edgeq.plans.plan",
    "Report": "edgeq.records.schema",
    "deploy": "edgeq.api.deploy",
    "load": "edgeq.frontends.load",
    "load_data": "edgeq.data.load",
    "load_target": "edgeq.registry.load",
    "packed_report": "edgeq.packed.report",
    "quantize": "edgeq.packed.quantize",
    "validate": "edgeq.api.validate",
    "verify": "edgeq.api.verify",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgeq' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value

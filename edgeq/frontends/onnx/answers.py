"""`python -m edgeq.frontends.onnx.answers MODEL INPUTS OUTPUTS`: what ONNX Runtime answers, in a process of its own.

Without its optimizations: what is compared with is the file, and rounding is then where the file has it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime


def main(model: str, inputs: str, outputs: str) -> None:
    """
    Args:
        inputs: an `.npz` of arrays `N/PLACE`, for run number N and the input at that place.
        outputs: where arrays `N/PLACE` go.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with np.load(inputs) as data:
        runs: dict[str, dict[int, Any]] = {}
        for key in data.files:
            number, _, place = key.partition("/")
            runs.setdefault(number, {})[int(place)] = data[key]
    takes = session.get_inputs()
    floats = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    found = {}
    for number, given in runs.items():
        fed = {takes[n].name: value.astype(floats.get(takes[n].type, value.dtype)) for n, value in given.items()}
        for place, value in enumerate(session.run(None, fed)):
            found[f"{number}/{place}"] = np.asarray(value)
    np.savez(outputs, allow_pickle=False, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

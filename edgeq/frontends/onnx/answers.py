"""`python -m edgeq.frontends.onnx.answers MODEL INPUTS OUTPUTS`: what ONNX Runtime answers, in a process of its own.

Without its optimizations: what is compared with is the file, and rounding is then where the file has it.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime


def main(model: str, inputs: str, outputs: str) -> None:
    """
    Args:
        inputs: an `.npz` of arrays `N/NAME`, for runs number N.
        outputs: where arrays `N/I` go, for output number I.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with np.load(inputs) as data:
        runs: dict[str, dict[str, np.ndarray]] = {}
        for key in data.files:
            number, _, name = key.partition("/")
            runs.setdefault(number, {})[name] = data[key]
    types = {one.name: one.type for one in session.get_inputs()}
    floats = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    found = {}
    for number, given in runs.items():
        fed = {name: value.astype(floats.get(types[name], value.dtype)) for name, value in given.items()}
        for place, value in enumerate(session.run(None, fed)):
            found[f"{number}/{place}"] = np.asarray(value)
    np.savez(outputs, allow_pickle=False, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""`python -m edgeq.frontends.tflite.answers MODEL INPUTS OUTPUTS`: what LiteRT answers, in a process of its own.

Ends that are integers are given and told as the numbers that they stand for.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType


def main(model: str, inputs: str, outputs: str) -> None:
    """
    Args:
        inputs: an `.npz` of arrays `N/PLACE`, for run number N and the input at that place.
        outputs: where arrays `N/PLACE` go.
    """
    # without delegates: what is compared with is the file, as the reference computes it
    interpreter = Interpreter(model, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    with np.load(inputs) as data:
        runs: dict[str, dict[int, Any]] = {}
        for key in data.files:
            number, _, place = key.partition("/")
            runs.setdefault(number, {})[int(place)] = data[key]
    found = {}
    for number, given in runs.items():
        for place, value in given.items():
            interpreter.resize_tensor_input(interpreter.get_input_details()[place]["index"], list(value.shape))
        interpreter.allocate_tensors()
        for place, value in given.items():
            detail = interpreter.get_input_details()[place]
            interpreter.set_tensor(detail["index"], stored(value, detail))
        interpreter.invoke()
        for place, detail in enumerate(interpreter.get_output_details()):
            found[f"{number}/{place}"] = real(interpreter.get_tensor(detail["index"]), detail)
    np.savez(outputs, allow_pickle=False, **found)


def stored(value: Any, detail: Any) -> Any:
    """As the input has it."""
    scale, zero = detail["quantization"]
    if not scale or value.dtype.kind != "f":
        return value.astype(detail["dtype"])
    ends = np.iinfo(detail["dtype"])
    return np.clip(np.rint(value / np.float32(scale)) + zero, ends.min, ends.max).astype(detail["dtype"])


def real(value: Any, detail: Any) -> Any:
    """What an output stands for."""
    scale, zero = detail["quantization"]
    return (value.astype(np.float32) - zero) * np.float32(scale) if scale and value.dtype.kind in "iu" else value


if __name__ == "__main__":
    main(*sys.argv[1:])

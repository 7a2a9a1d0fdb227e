"""Runs a `.tflite` file in this process, to see its values or that it can be run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from edgeq.errors import UnsupportedError
from edgeq.export.tflite_graph import Graph

_OPERATOR = re.compile(r"builtin opcode '(\w+)'|[Nn]ode number \d+ \((\w+)\)")

T = TypeVar("T")


def run(graph: Graph, data: bytes, samples: Sequence[Sequence[np.ndarray]], wanted: Sequence[int]) -> list[Any]:
    """The values of some tensors, by the kernels that compute float as it is written.

    Args:
        graph: of the same file.
        samples: for each run one array per input.
        wanted: indices of tensors.

    Returns:
        For each sample an array per wanted tensor.

    Raises:
        UnsupportedError: LiteRT has no kernel for an operator, or its kernel refuses it.
    """

    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    def go() -> list[Any]:
        interpreter = Interpreter(
            model_content=data,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
        found = []
        for sample in samples:
            for index, value in zip(graph.inputs, sample, strict=True):
                interpreter.set_tensor(index, value.astype(graph.dtype(index)))
            interpreter.invoke()
            found.append([interpreter.get_tensor(index) for index in wanted])
        return found

    return _refusing(go)


def can_run(data: bytes) -> None:
    """Runs a file once on zeros, by the kernels that LiteRT chooses.

    Raises:
        UnsupportedError: LiteRT has no kernel for an operator, or its kernel refuses it.
    """

    from ai_edge_litert.interpreter import Interpreter

    def go() -> None:
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        for end in interpreter.get_input_details():
            interpreter.set_tensor(end["index"], np.zeros(end["shape"], end["dtype"]))
        interpreter.invoke()

    _refusing(go)


def _refusing(go: Callable[[], T]) -> T:
    try:
        return go()
    except (ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        operator = next((name for found in _OPERATOR.findall(text) for name in found if name), "")
        named = f"the operator {operator}" if operator else "this file"
        verb = "has no kernel for" if "find op" in text else "cannot run"
        raise UnsupportedError(
            f"LiteRT {verb} {named} ({text[:160]})",
            remedy="replace what becomes of it in the model, or choose another format",
        ) from error

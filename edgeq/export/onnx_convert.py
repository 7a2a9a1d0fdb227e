"""A float program to a float ONNX model, by PyTorch's exporter, and proof that every tensor is where it should be."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import torch

from edgeq.errors import UnsupportedError
from edgeq.export.onnx_float import FloatOnnx
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.ops import is_float

OPSET = 21
"""The first in which QDQ has 4- and 16-bit types, and in which ONNX Runtime takes per-channel scales everywhere."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_UNKNOWN = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


def export_float(model: Model) -> FloatOnnx:
    """Exports the normalised model, and proves by running it that every tensor is where it should be.

    Raises:
        UnsupportedError: an operator has no ONNX form, or the exported model computes something else.
    """
    exported = _export(model)
    values = _match(model, exported)
    for value, node in zip(exported.graph.outputs, model.output_nodes, strict=True):
        if values.get(node) != value.name:
            raise UnsupportedError(
                "the ONNX exporter changed what the model computes", where=f"output {node}", remedy="report this model"
            )
    inputs, outputs = list(exported.graph.inputs), list(exported.graph.outputs)
    renamed: dict[str, str] = {}
    for value, name in [
        *zip(inputs, [s.name for s in model.inputs], strict=True),
        *zip(outputs, model.output_names, strict=True),
    ]:
        renamed[value.name or ""] = name
    taken = set(renamed.values())
    for inner in (value for operator in exported.graph for value in operator.outputs):
        if inner.name in taken and inner.name not in renamed:
            renamed[inner.name or ""] = f"{inner.name}_inner"
            inner.name = f"{inner.name}_inner"
    for value in [*inputs, *outputs]:
        value.name = renamed[value.name or ""]
    return FloatOnnx(exported, {node: renamed.get(name, name) for node, name in values.items()})


def _export(model: Model) -> ir.Model:
    try:
        with _quiet():
            program = torch.onnx.export(model.exported(), dynamo=True, opset_version=OPSET, verbose=False)
    except Exception as error:  # the exporter raises many kinds, none of them documented
        text = _COLOURS.sub("", str(error))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        cause = next((line for line in lines if "aten" in line), lines[0] if lines else type(error).__name__)
        unknown = _UNKNOWN.search(text)
        raise UnsupportedError(
            f"{unknown[1]} has no ONNX form" if unknown else f"ONNX export failed: {cause[:300]}",
            remedy="replace the operator that it names by ones that ONNX has, or choose another format",
        ) from error
    assert program is not None
    result = program.model
    for node in result.graph:
        # traces of the machine that exported it
        for key in list(node.metadata_props):
            del node.metadata_props[key]
    for value in [*result.graph.inputs, *result.graph.outputs, *result.graph.initializers.values()]:
        value.metadata_props.clear()
    result.metadata_props.clear()
    result.graph.metadata_props.clear()
    result.producer_name, result.producer_version = "edgeq", None
    return result


def _match(model: Model, exported: ir.Model) -> dict[str, str]:
    """Graph nodes to ONNX values: same name and same numbers, or else the first value with the same numbers."""
    example = _example(model)
    floats: dict[str, np.ndarray] = {}

    def see(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        if is_float(node):
            floats[node.name] = values[0].numpy()
        return values

    model.run([example], see)
    found = _all_values(exported, [x.numpy() for x in example])
    result = {node: str(v.name) for node, v in zip(model.input_nodes, exported.graph.inputs, strict=True)}
    used: set[str] = set(result.values())
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, array in found.items():
        by_shape.setdefault(array.shape, []).append(name)
    for node, array in floats.items():
        if node in result:
            continue
        candidates = by_shape.get(array.shape, [])
        ordered = ([node] if node in candidates else []) + [c for c in candidates if c != node]
        tolerance = 1e-3 * float(np.abs(array).max(initial=0.0)) + 1e-6
        for name in ordered:
            if name not in used and np.allclose(found[name], array, rtol=1e-3, atol=tolerance):
                result[node] = name
                used.add(name)
                break
    return result


def _example(model: Model) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    whole = list(map(torch.from_numpy, model.example))
    shapes = [(1, *x.shape[1:]) if model.dynamic_batch else tuple(x.shape) for x in whole]
    return [
        torch.randn(shape, generator=generator) if x.is_floating_point() else x[: shape[0]] if x.dim() else x
        for x, shape in zip(whole, shapes, strict=True)
    ]


def _all_values(exported: ir.Model, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    proto = ir.to_proto(exported)
    present = {o.name for o in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in present:
                proto.graph.output.add().name = name
                present.add(name)
    options = onnxruntime.SessionOptions()
    # optimizations would remove the very values that are asked for
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {i.name: array for i, array in zip(session.get_inputs(), inputs, strict=True)}
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [
        logging.getLogger(n) for n in ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript")
    ]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)

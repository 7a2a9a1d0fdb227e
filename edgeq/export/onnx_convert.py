"""A float program to a float ONNX model, by PyTorch's exporter, and proof that every tensor is where it should be."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch

from edgeq.errors import UnsupportedError
from edgeq.export.onnx_float import FloatOnnx
from edgeq.export.onnx_match import match
from edgeq.export.onnx_projected import spell_out_projections
from edgeq.model.model import Model

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
    values = match(model, exported)
    renamed = _rename(model, exported.graph)
    return FloatOnnx(exported, {node: renamed.get(name, name) for node, name in values.items()})


def _rename(model: Model, graph: ir.Graph) -> dict[str, str]:
    """Gives inputs and outputs the user's names. Returns the new name of every value that has one, by the old."""
    ends = [
        *zip(graph.inputs, [s.name for s in model.inputs], strict=True),
        *zip(graph.outputs, model.output_names, strict=True),
    ]
    renamed = {str(value.name): name for value, name in ends}
    taken = set(renamed.values())
    inner = [value for operator in graph for value in operator.outputs if value.name not in renamed]
    for value in [*inner, *graph.initializers.values()]:
        if value.name in taken:
            renamed[str(value.name)] = f"{value.name}_inner"
            value.name = f"{value.name}_inner"
    for value, name in ends:
        value.name = name
    return renamed


def _export(model: Model) -> ir.Model:
    given = spell_out_projections(model.exported())
    try:
        with _quiet():
            program = torch.onnx.export(given, dynamo=True, opset_version=OPSET, verbose=False)
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

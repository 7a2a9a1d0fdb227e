"""A float program to a float `.tflite` file, by litert-torch, without its detours and its chatter."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.export.quiet import quiet
from edgeq.export.tflite_apart import Apart
from edgeq.export.tflite_program import rewritten
from edgeq.model.model import Model

_LOG = logging.getLogger(__name__)
_PROGRESS = "LITERT_TORCH_SHOW_PROGRESS"


def convert(model: Model, apart: Apart | None = None) -> bytes:
    """The model's normalised program as a float flatbuffer, with the converter's own tensor names.

    A program with a dynamic batch is traced again for a batch of one.

    Args:
        apart: layers to be kept apart, whose zeros become inputs behind the model's own.

    Raises:
        MissingExtraError: litert-torch is not installed.
        UnsupportedError: the converter refuses an operator; names it and its layer.
    """
    with _quiet():
        parts = {name: _part(name) for name in _PARTS}
        inputs, apart = example(model), apart or Apart(model, ())
        try:
            program = rewritten(model, model.exported(), apart, inputs)
            return _convert(parts, program, (*inputs, *apart.zeros()))
        except Exception as error:
            # The converter raises whatever torch, jax or MLIR raised: all of it means that it cannot take the model.
            raise _refused(model, error) from error


def example(model: Model) -> tuple[torch.Tensor, ...]:
    """One input per argument, of the shape that the file is made for: a batch of one where it is dynamic."""
    whole = tuple(map(torch.from_numpy, model.example))
    return tuple(x[:1] for x in whole) if model.dynamic_batch else whole


_PARTS = (
    "litert_torch._convert.fx_passes",
    "litert_torch._convert.fx_passes.build_aten_composite_pass",
    "litert_torch._convert.litert_converter",
    "litert_torch._convert.signature",
    "litert_torch.fx_infra",
)


def _part(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError("litert-torch", "tflite") from error


def _convert(parts: dict[str, Any], program: ExportedProgram, inputs: tuple[torch.Tensor, ...]) -> bytes:
    passes, composites, converter, signatures, infra = (parts[name] for name in _PARTS)
    # `litert_torch.convert` exports the module again and retraces the graph three times. The program is exported
    # already: one retracing brings it to core ATen, and one inside the lowering resolves what the passes put in.
    program = infra.safe_run_decompositions(program, infra.decomp.pre_convert_decomp(), can_skip=False)
    _forget_origins(program)
    steps = [passes.EliminateDeadCodePass(), passes.OptimizeLayoutTransposesPass()]
    if any(node.target in composites._composite_builders for node in program.graph.nodes):
        # The layout pass hides these operators in functions of its own, where the composite pass cannot see them.
        steps.append(passes.CanonicalizePass())
    steps += [passes.ReduceViewRankPass(), passes.BuildAtenCompositePass(), passes.RemoveNonUserOutputsPass()]
    program = infra.run_passes(program, steps)
    signature = signatures.Signature("serving_default", None, inputs, None)
    return bytes(converter.exported_programs_to_flatbuffer([program], [signature]).to_bytes())


def _forget_origins(program: ExportedProgram) -> None:
    """Drops the history of each node, which every later retracing copies: only the module path helps in an error."""
    for node in program.graph.nodes:
        for key in ("from_node", "stack_trace", "source_fn_stack"):
            node.meta.pop(key, None)


def _refused(model: Model, error: Exception) -> UnsupportedError:
    text = " ".join(str(error).split())
    operator = re.search(r"target=torch\.ops\.aten\.(\w+)|operation '(?:\w+\.)?(\w+)'|aten[.:]+(\w+)", text)
    name = next((g for g in operator.groups() if g), "") if operator else ""
    layers = _layers(model, name, text)
    where = "" if not layers else f"layer {layers[0]}" if len(layers) == 1 else f"one of {', '.join(layers[:4])}"
    cause = f"the TFLite converter cannot take the operator {name!r}" if name else "the TFLite converter failed"
    return UnsupportedError(
        f"{cause} ({type(error).__name__}: {text[:120]})",
        where=where,
        remedy="replace the operator, or choose another format for this model",
    )


def _layers(model: Model, operator: str, text: str) -> list[str]:
    """Groups that a message may be about: by the module path in MLIR's location, else by the operator's name."""
    place = re.search(r'loc\("([^";]+)', text)
    # a location is `Class/package.Class_attribute/...`, with the attributes of the modules that were called
    parts = [part.rsplit(".", 1)[-1].partition("_")[2] for part in place.group(1).split("/")[1:]] if place else []
    path = ".".join(part for part in parts if part)
    found = [g.name for g in model.groups if path and f".{g.name}".endswith(f".{path}")]
    stem = "conv" if operator == "convolution" else operator
    return found or [g.name for g in model.groups if stem and g.root.startswith(stem)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = os.environ.get(_PROGRESS)
    os.environ[_PROGRESS] = "n"
    try:
        with quiet(_LOG):
            yield
    finally:
        if before is None:
            os.environ.pop(_PROGRESS, None)
        else:
            os.environ[_PROGRESS] = before

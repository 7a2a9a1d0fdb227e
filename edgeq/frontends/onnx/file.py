"""An ONNX file as it lies there: its graph, and constants as NumPy arrays. Data beside it comes from its own folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper

from edgeq.errors import UnsupportedError, UsageError
from edgeq.model.refusals import damaged, gist
from edgeq.reading import refuse_special, within

OLDEST = 9
"""Of the standard's operator sets: what PyTorch wrote in 2018."""

LARGEST = 1 << 31
"""Bytes of a protobuf message; larger models keep their weights beside it."""

MOST_NODES = 1_000_000
"""Once functions are put in place of their calls. Large language models have some ten thousand."""

_CONTROL_FLOW = ("Loop", "Scan", "SequenceMap")


def parse(path: Path) -> ModelProto:
    """The model, with weights that lie beside it left there, and functions put in place of their calls.

    Raises:
        UsageError: damaged, or not what the standard allows.
        UnsupportedError: older than what is read here, or with operators of others.
    """
    where = path.name
    if path.stat().st_size >= LARGEST:
        raise UsageError("the file is larger than ONNX files can be", where=where, remedy="keep its weights beside it")
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own kinds
        raise damaged(where, error) from error
    if not model.graph.node:
        raise damaged(where, "there is no operator in it")
    _check_external(model, path)
    _check_version(model, where)
    try:
        onnx.checker.check_model(_for_the_checker(model))
    except Exception as error:
        raise UsageError(
            f"it breaks the ONNX standard ({gist(error)})", where=where, remedy="export or download the file again"
        ) from error
    if model.functions:
        _refuse_many(model, where)
        model = onnx.inliner.inline_local_functions(model)
    _refuse_foreign(model, where)
    return model


def rename(graph: GraphProto, prefix: str, names: dict[str, str]) -> None:
    """Gives what a branch defines names of its own; in another branch the same ones mean something else.

    Args:
        graph: is changed.
        names: of the graphs around it, old and new.
    """
    own = [tensor.name for tensor in graph.initializer] + [name for node in graph.node for name in node.output if name]
    names = {**names, **{name: prefix + name for name in own}}
    for value in (*graph.initializer, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                rename(inner, prefix, names)


def beside(model: ModelProto, path: Path) -> list[Path]:
    """The files that hold its weights, without itself."""
    external = (one for one in _tensors(model) if one.data_location == TensorProto.EXTERNAL)
    names = {entry.value for one in external for entry in one.external_data if entry.key == "location"}
    return [within(path.parent, name, path.name) for name in sorted(names)]


def opset(model: ModelProto) -> int:
    """The version of the standard's operators."""
    return max((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)


def nodes_of(graph: GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, with those of branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes_of(inner)


def array(tensor: TensorProto, folder: Path, where: str) -> NDArray[Any]:
    """A constant. Integers of 2 and 4 bits come as int8 or uint8, all floats as float32.

    Raises:
        UsageError: it has not the values that its shape asks for.
        UnsupportedError: its values are no numbers that are computed with here.
    """
    name = f"{where}: {tensor.name}" if tensor.name else where
    try:
        value: NDArray[Any] = numpy_helper.to_array(tensor, base_dir=str(folder))
    except Exception as error:
        raise UsageError(
            f"a constant cannot be read ({gist(error)})", where=name, remedy="copy, download or export the file again"
        ) from error
    if value.dtype in (ml_dtypes.int4, ml_dtypes.int2):
        return value.astype(np.int8)
    if value.dtype in (ml_dtypes.uint4, ml_dtypes.uint2):
        return value.astype(np.uint8)
    if value.dtype in (ml_dtypes.bfloat16, np.float16, np.float64):
        return value.astype(np.float32)
    if value.dtype.kind not in "biuf":
        raise UnsupportedError(
            f"a constant is of the type {TensorProto.DataType.Name(tensor.data_type)}",
            where=name,
            remedy="export the model in float32",
        )
    return value


def _refuse_many(model: ModelProto, where: str) -> None:
    """Functions that call each other so often that no machine could hold them all."""
    functions = {(one.domain, one.name): one for one in model.functions}
    counts: dict[tuple[str, str], int] = {}
    while len(counts) < len(functions):
        ready = {
            key: sum(counts.get((node.domain, node.op_type), 1) for node in one.node)
            for key, one in functions.items()
            if key not in counts
            and all((n.domain, n.op_type) in counts for n in one.node if (n.domain, n.op_type) in functions)
        }
        if not ready:
            raise damaged(where, "a function calls itself")
        counts |= ready
    if sum(counts.get((node.domain, node.op_type), 1) for node in nodes_of(model.graph)) > MOST_NODES:
        raise UnsupportedError(
            f"its functions stand for more than {MOST_NODES} operators", where=where, remedy="export a smaller network"
        )


def _check_version(model: ModelProto, where: str) -> None:
    found = opset(model)
    if found == 0:
        raise damaged(where, "it names no version of the standard's operators")
    if found < OLDEST:
        raise UnsupportedError(
            f"its operators are those of version {found}, and {OLDEST} is the first that is read",
            where=where,
            remedy="convert it with onnx.version_converter, or export the model again",
        )


def _refuse_foreign(model: ModelProto, where: str) -> None:
    for node in nodes_of(model.graph):
        place = f"{where}: {node.name or next(iter(node.output), '')}"
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedError(
                f"the operator {node.op_type} is not of the ONNX standard (it is of {node.domain!r})",
                where=place,
                remedy="export the model without it, and without a runtime's own optimizations",
            )
        if node.op_type in _CONTROL_FLOW:
            raise UnsupportedError(
                f"{node.op_type} repeats a graph as often as a value says",
                where=place,
                remedy="export a network whose steps are the same for every input",
            )


def _check_external(model: ModelProto, path: Path) -> None:
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        where = f"{path.name}: {tensor.name}"
        beside = within(path.parent, said.get("location", ""), where)
        refuse_special(beside, where)
        if not beside.is_file():
            raise UsageError(
                f"its values lie in {said['location']!r}, which is not there",
                where=where,
                remedy="put that file beside it: an ONNX file and its data belong together",
            )
        try:
            start, length = int(said.get("offset", 0)), int(said.get("length", 0))
        except ValueError as error:
            raise damaged(where, error) from error
        if start < 0 or length < 0 or start + length > beside.stat().st_size:
            raise damaged(where, f"{beside.name} is shorter than it says")


def _for_the_checker(model: ModelProto) -> ModelProto:
    """As it can be checked: without weights that lie beside it, which it would look for in the working folder, and with
    some shape for outputs that have none, which runtimes do not mind."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph, known = copy.graph, {value.name for value in model.graph.input}
    held = [tensor for tensor in graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and tensor.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del graph.initializer[:]
    graph.initializer.extend(held)
    for output in graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.shape.SetInParent()
    return copy


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _tensors_of(model.graph)
    for function in model.functions:
        yield from _tensors_in(node for node in function.node)


def _tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _tensors_in(graph.node)


def _tensors_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors_of(inner)

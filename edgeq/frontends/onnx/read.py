"""An ONNX file as an exported program that answers as ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto

from edgeq.child import last_words, run_module
from edgeq.errors import UnsupportedError, UsageError
from edgeq.files import scratch_folder
from edgeq.frontends.examples import Given, in_order
from edgeq.frontends.interpreted import Network
from edgeq.frontends.loaded import Loaded
from edgeq.frontends.onnx.file import opset, parse
from edgeq.frontends.onnx.graph import inputs_of, network_of
from edgeq.frontends.trace import from_module
from edgeq.visible import whole

KIND = "ONNX"

_SECONDS = 600
_DTYPES = {
    TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float32, TensorProto.DOUBLE: torch.float32,
    TensorProto.BFLOAT16: torch.float32, TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32,
    TensorProto.UINT8: torch.uint8, TensorProto.BOOL: torch.bool,
}  # fmt: skip
_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

NEAR = 1e-3
"""How far answers may lie apart, in parts of the largest of them: float32 in another order."""

NEAR_ROUNDED = 0.05
"""The same where values are rounded on their way, to 8 bits or float16: root mean square, in parts of the answers'."""


def read_onnx(path: Path, given: Given) -> Loaded:
    """The program of a file; it keeps the file's names of inputs, outputs and layers.

    Raises:
        UsageError: it is damaged, or does not say how large its inputs are.
        UnsupportedError: an operator is not computed here, or the answers are others than ONNX Runtime's.
    """
    model = parse(path)
    inputs = inputs_of(model)
    names = tuple(one.name for one in inputs)
    free = bool(inputs) and all(_sizes(one)[:1] == [None] for one in inputs)
    if not given.tensors:
        given = Given(tuple(_example(one, path.name) for one in inputs), names)
    tensors = in_order(given, names, path.name)
    _check_sizes(inputs, tensors, path.name)
    network = network_of(model, path, tensors)
    compare(path, model, network, tensors)
    loaded = from_module(network, Given(tensors, ()), path.name, free=free)
    outputs = tuple(one.name for one in model.graph.output)
    notes = _notes(model)
    return replace(
        loaded, kind=KIND, input_names=names, output_names=_apart(outputs, names),
        notes=(*notes, *loaded.notes),
    )  # fmt: skip


def compare(path: Path, model: ModelProto, network: Network, tensors: tuple[torch.Tensor, ...]) -> None:
    """Holds what was made of a file against the file, on two draws of noise.

    Integers stay what they are, since they may be indices. Zeros tell little: a norm of them is rounding alone.

    Raises:
        UnsupportedError: ONNX Runtime cannot run the file, or answers otherwise.
    """
    generator = np.random.default_rng(0)
    runs = [
        [generator.standard_normal(one.shape, np.float32) if one.dtype == torch.float32 else one.numpy()
         for one in tensors]
        for _ in range(2)
    ]  # fmt: skip
    with scratch_folder() as folder:
        fed = {f"{n}/{name}": value for n, run in enumerate(runs)
               for name, value in zip(network.inputs, run, strict=True)}  # fmt: skip
        np.savez(folder / "inputs.npz", allow_pickle=False, **fed)
        done = run_module(
            "edgeq.frontends.onnx.answers", str(path.resolve()), str(folder / "inputs.npz"),
            str(folder / "outputs.npz"), timeout=_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise UnsupportedError(
                f"ONNX Runtime cannot run it ({last_words(done)})", where=path.name, remedy="check the file with it"
            )
        with np.load(folder / "outputs.npz") as data:
            wanted = {key: data[key] for key in data.files}
    rounds = any(node.op_type == "QuantizeLinear" for node in model.graph.node) or _is_narrow(model)
    for number, run in enumerate(runs):
        with torch.no_grad():
            found = network(*(torch.from_numpy(value) for value in run))
        for place, one in enumerate(found):
            _check_alike(one.numpy(), wanted[f"{number}/{place}"], network.outputs[place], path.name, rounds)


def _check_alike(found: NDArray[Any], wanted: NDArray[Any], name: str, where: str, rounds: bool) -> None:
    same = found.shape == wanted.shape
    if same and wanted.dtype.kind == "f" and wanted.size:
        a, b = found.astype(np.float64), wanted.astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        same = bool((np.isnan(a) == np.isnan(b)).all() and (a[~finite] == b[~finite])[~np.isnan(a[~finite])].all())
        apart, size = np.abs(a - b)[finite], np.abs(b)[finite]
        if same and rounds:
            same = not apart.size or bool(np.sqrt((apart**2).mean()) <= NEAR_ROUNDED * np.sqrt((size**2).mean()) + 1e-6)
        elif same:
            same = not apart.size or bool(apart.max() <= NEAR * size.max() + 1e-5)
    elif same and wanted.size:
        same = float((found != wanted).mean()) <= (0.05 if rounds else 0.01)
    if not same:
        raise UnsupportedError(
            f"what was made of it answers otherwise than ONNX Runtime does on the file (output {name!r})",
            where=where,
            remedy="give the program of torch.export, and tell edgeq's developers about this file",
        )


def _sizes(value: ValueInfoProto) -> list[int | None]:
    shape = value.type.tensor_type.shape
    return [one.dim_value if one.HasField("dim_value") and one.dim_value > 0 else None for one in shape.dim]


def _example(value: ValueInfoProto, where: str) -> torch.Tensor:
    sizes = _sizes(value)
    has_shape = value.type.tensor_type.HasField("shape")
    if not has_shape or None in sizes[1:]:
        shown = "x".join(str(size or "?") for size in [sizes[0] or 1, *sizes[1:]]) if has_shape and sizes else "?"
        raise UsageError(
            f"the file leaves open how large the input {value.name!r} is ({shown})",
            where=where,
            remedy=f"give all its sizes, such as --input {_shown(value.name)}1x3x224x224",
        )
    return torch.zeros([size or 1 for size in sizes], dtype=_dtype(value, where))


def _shown(name: str) -> str:
    return f"{name}:" if name.isidentifier() else ""


def _dtype(value: ValueInfoProto, where: str) -> torch.dtype:
    kind = value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0
    if kind not in _DTYPES:
        raise UnsupportedError(
            f"the input {value.name!r} is {TensorProto.DataType.Name(kind).lower() if kind else 'no tensor'}",
            where=where,
            remedy="export the model with inputs in float32 or integers",
        )
    return _DTYPES[kind]


def _check_sizes(inputs: Sequence[ValueInfoProto], tensors: Sequence[torch.Tensor], where: str) -> None:
    for one, tensor in zip(inputs, tensors, strict=True):
        sizes, dtype = _sizes(one), _dtype(one, where)
        fits = not one.type.tensor_type.HasField("shape") or (
            len(sizes) == tensor.dim() and all(a in (None, b) for a, b in zip(sizes, tensor.shape, strict=True))
        )
        if not fits or dtype != tensor.dtype:
            raise UsageError(
                f"the input {one.name!r} is {[size or 'free' for size in sizes]} {dtype}, not {list(tensor.shape)} "
                f"{tensor.dtype}",
                where=where,
                remedy="give the sizes that the file has; what it says itself need not be given",
            )


def _is_narrow(model: ModelProto) -> bool:
    held = {tensor.data_type for tensor in model.graph.initializer}
    given = {one.type.tensor_type.elem_type for one in model.graph.input}
    return bool((held | given).intersection(_NARROW))


def _notes(model: ModelProto) -> tuple[str, ...]:
    held = {tensor.data_type for tensor in model.graph.initializer}
    others = [one for one in (*_NARROW, TensorProto.DOUBLE) if one in held]
    names = " and ".join(TensorProto.DataType.Name(one).lower().replace("double", "float64") for one in others)
    said = (
        f"operators of ONNX, version {opset(model)}, as {whole(model.producer_name or 'an unknown program')} wrote them"
    )
    return (said, f"weights in {names} were converted to float32") if others else (said,)


def _apart(outputs: tuple[str, ...], inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Names of outputs, of which one that is an input's gets another: files know tensors by nothing else."""
    taken, found = set(inputs), []
    for name in outputs:
        free, number = name, 1
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        taken.add(free)
        found.append(free)
    return tuple(found)

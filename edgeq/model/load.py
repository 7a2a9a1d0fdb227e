"""From whatever holds a trained network to one exported program: files of several kinds, or a module in memory."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import logging
import math
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from edgeq.data.dataset import InputSpec
from edgeq.data.function import call, working_directory_importable
from edgeq.errors import EdgeqError, UnsupportedError, UsageError
from edgeq.model.kinds import (
    Found,
    damaged,
    gist,
    identify,
    refuse_code,
    unusual_globals,
    vet_export,
)

Kind = Literal["torch.export", "torchscript", "pickled module", "state_dict", "module"]

_DTYPES = {
    "float32": torch.float32,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")
# Where training scripts commonly put the weights inside a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "module")
# What wrappers around a network prepend to every name: DataParallel, torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
# Loggers on which PyTorch reports what reaches the user as an error of ours, or does not concern them.
_CHATTY = (
    "torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize", "torch._export.converter",
    "torch.export._trace", "torch.fx.experimental.symbolic_shapes", "torch._dynamo",
)  # fmt: skip
_CONTROL_FLOW = {"cond", "while_loop", "scan", "map_impl", "associative_scan"}
# Operators with a flag that says training, and its position among the arguments.
_TRAINING_FLAG = {
    "batch_norm": 5, "native_batch_norm": 5, "_native_batch_norm_legit": 5, "dropout": 2, "feature_dropout": 2,
    "alpha_dropout": 2, "native_dropout": 2,
}  # fmt: skip


def read(
    source: str | Path | torch.nn.Module | ExportedProgram,
    *,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    example: tuple[torch.Tensor, ...] | None = None,
) -> Loaded:
    """Load a network from a file or from memory as an exported program in inference mode.

    Args:
        source: a file, told apart by its content: torch.export's `.pt2`, TorchScript, a `torch.save` file of weights or
            of a whole module, safetensors; or a module or an exported program.
        inputs: for what carries no shapes: one `[name:]shape[:dtype]` an input, such as `1x3x224x224` or
            `tokens:1x256:int64`.
        arch: `package.module:factory`, called without arguments, for files that hold weights alone.
        trust_pickle: allow a file to run the code that it carries. Only for files of people you trust.
        example: sample inputs, instead of `inputs`.

    Raises:
        UsageError: no such file, not a model, damaged, needs trust, or an argument is missing or wrong.
        UnsupportedError: the network does something that cannot be exported, or is not in float32.
    """
    given = _example(inputs, example)
    if isinstance(source, ExportedProgram):
        return _from_program(source, "torch.export", "program", _hash_program(source), given)
    if isinstance(source, torch.nn.Module):
        return _from_module(source, given)
    path = Path(source)
    found = identify(path)
    with _quiet():
        loaded = _read_file(path, found, given, arch, trust_pickle)
    return replace(loaded, source=path.name, sha256=_hash_file(path))


def parse_input_spec(text: str) -> InputSpec:
    """Read `[name:]shape[:dtype]`, such as `1x3x224x224`, `1x256:int64` or `tokens:1x256:int64`; float32 by default.

    Returns:
        The input; its name is empty where none was given.

    Raises:
        UsageError: the text is nothing of the kind.
    """
    remedy = "write [name:]shape[:dtype], for example 1x3x224x224 or tokens:1x256:int64"
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} describes no input", remedy=remedy)
    dtype = match["dtype"] or "float32"
    if dtype not in _DTYPES:
        raise UsageError(f"{dtype!r} in {text!r} is no type of an input", remedy=f"use one of {', '.join(_DTYPES)}")
    shape = tuple(int(size) for size in match["shape"].split("x"))
    if 0 in shape:
        raise UsageError(f"{text!r} has an axis of length 0", remedy=remedy)
    return InputSpec(match["name"] or "", shape, dtype)


def _read_file(path: Path, found: Found, given: _Given, arch: str | None, trust: bool) -> Loaded:
    if found.content == "torch.export":
        return _read_export(path, found, given, trust)
    if found.content == "torchscript":
        return _read_torchscript(path, given)
    notes: tuple[str, ...] = ()
    if found.content == "safetensors":
        content: Any = _read_safetensors(path)
    else:
        content = _unpickle(path, found, trust)
    if found.content != "pickle":
        notes = ("files of this kind carry no checksum: damage to the weights cannot be noticed",)
    if isinstance(content, Mapping) and not _is_weights(content):
        content = next((content[key] for key in _WRAPPERS if _is_model(content.get(key))), content)
    if isinstance(content, torch.jit.ScriptModule):
        raise UnsupportedError("it holds a scripted module", remedy="save it with torch.jit.save", where=path.name)
    if isinstance(content, torch.nn.Module):
        kind: Kind = "pickled module"
        module = content
    elif _is_weights(content):
        kind = "state_dict"
        module, more = _with_weights(content, arch, path.name)
        notes += more
    else:
        raise UsageError(
            f"it holds a {type(content).__name__} and neither a module nor a dict of weights",
            remedy="save model.state_dict() with torch.save, or the program with torch.export.save",
            where=path.name,
        )
    loaded = _from_module(module, given, where=path.name)
    return replace(loaded, kind=kind, notes=notes + loaded.notes)


# ---------------------------------------------------------------- exported programs


def _read_export(path: Path, found: Found, given: _Given, trust: bool) -> Loaded:
    if not trust:
        vet_export(path, found.root)
    with path.open("rb") as file:
        try:
            program = _load_export(file, older=found.root == "")
        except EdgeqError:
            raise
        except Exception as error:
            # The checksums hold, so this is a matter of versions or of hand-made content rather than of damage.
            raise UsageError(
                f"the exported program cannot be read ({gist(error)})",
                remedy=f"export it again with PyTorch {torch.__version__.split('+')[0]}",
                where=path.name,
            ) from error
    return _from_program(program, "torch.export", path.name, "", given)


def _load_export(file: Any, *, older: bool) -> ExportedProgram:
    if older:
        return torch.export.load(file)
    # torch.export.load hides the cause of a failure in the log; what it calls does not.
    from torch.export.pt2_archive._package import load_pt2

    programs = load_pt2(file).exported_programs
    if len(programs) != 1:
        raise ValueError(f"the package holds {len(programs)} programs, and one is wanted")
    program: ExportedProgram = next(iter(programs.values()))
    return program


def _from_program(program: ExportedProgram, kind: Kind, source: str, sha256: str, given: _Given) -> Loaded:
    _check_program(program, source)
    names = tuple(str(name) for name in program.graph_signature.user_inputs)
    example = _needed(given, source, names) if given.tensors else _own_example(program)
    _check_example(program, names, example, source)
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [placeholders[name].meta["val"].shape for name in names]
    return Loaded(
        program=program,
        kind=kind,
        source=source,
        sha256=sha256,
        example=example,
        input_names=names,
        output_names=_output_names(program),
        dynamic_batch=all(len(shape) > 0 and isinstance(shape[0], torch.SymInt) for shape in shapes),
        notes=(),
    )


def _own_example(program: ExportedProgram) -> tuple[torch.Tensor, ...]:
    """The sample inputs that the program carries, in the order of its inputs; zeros where it has none."""
    if program.example_inputs is not None:
        leaves = pytree.tree_leaves(program.example_inputs)
        if leaves and all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return tuple(leaf.detach() for leaf in leaves)
    wanted = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    return tuple(
        torch.zeros([size if isinstance(size, int) else size.node.hint or 1 for size in value.shape], dtype=value.dtype)
        for value in values
    )


def _check_program(program: ExportedProgram, where: str) -> None:
    """Refuse what would silently be something else than the trained float32 network at inference."""
    for node in program.graph.nodes:
        if node.op == "call_function" and _is_training(node):
            raise UnsupportedError(
                f"the program was exported in training mode ({node.name})",
                remedy="call model.eval() before torch.export.export",
                where=where,
            )
        if node.op == "call_function" and str(node.target) in _CONTROL_FLOW:
            raise UnsupportedError(
                f"what the network computes depends on values (torch.{node.target})",
                remedy="export a network whose steps are the same for every input",
                where=where,
            )
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.CUSTOM_OBJ:
            raise UnsupportedError(f"it uses a custom object ({spec.target})", remedy="use tensors only", where=where)
        if spec.kind == InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument):
            raise UnsupportedError(
                f"the input {spec.arg.name!r} is not a tensor",
                remedy="wrap the model so that it takes tensors only, and export that",
                where=where,
            )
    for output in program.graph_signature.output_specs:
        if output.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
            raise UnsupportedError(
                f"the network keeps state between calls (it writes to {output.target!r})",
                remedy="make the state an input and an output of the model",
                where=where,
            )
    if not program.graph_signature.user_inputs:
        raise UnsupportedError("the network takes no inputs", remedy="export a module that takes tensors", where=where)
    for name, tensor in [*program.state_dict.items(), *program.constants.items()]:
        _check_weight(name, tensor, where)
    wanted = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            _check_input_type(node.name, node.meta["val"], where)


def _is_training(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    operator = schema.name.removeprefix("aten::").rstrip("_") if schema is not None else ""
    at = _TRAINING_FLAG.get(operator)
    return at is not None and len(node.args) > at and node.args[at] is True


def _check_weight(name: str, tensor: Any, where: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise UnsupportedError(f"{name!r} is a {type(tensor).__name__}", remedy="use tensors only", where=where)
    other_float = tensor.dtype.is_floating_point and tensor.dtype != torch.float32
    if tensor.is_quantized or tensor.dtype.is_complex or other_float:
        raise UnsupportedError(
            f"the weight {name!r} is {str(tensor.dtype).removeprefix('torch.')}, and the float32 network is wanted",
            remedy="give the network as it was trained, in float32: model.float() before saving",
            where=where,
        )
    if tensor.dtype == torch.float32 and not bool(torch.isfinite(tensor).all()) and not _is_mask(tensor):
        raise UsageError(
            f"the weight {name!r} contains NaN or infinity",
            remedy="give a checkpoint from before the training diverged, or copy the file again",
            where=where,
        )


def _is_mask(tensor: torch.Tensor) -> bool:
    """Attention masks are constants of 0 and minus infinity."""
    return bool(((tensor == 0) | (tensor == -torch.inf)).all())


def _check_input_type(name: str, value: Any, where: str) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype not in _DTYPES.values():
        kind = str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else type(value).__name__
        raise UnsupportedError(
            f"the input {name!r} is {kind}", remedy=f"use one of {', '.join(_DTYPES)} for inputs", where=where
        )


def _check_example(
    program: ExportedProgram, names: tuple[str, ...], example: tuple[torch.Tensor, ...], where: str
) -> None:
    if len(example) != len(names):
        raise UsageError(
            f"{len(example)} inputs are given and the model takes {len(names)} ({', '.join(names)})",
            remedy="give one for each input, or none: the file knows its shapes",
            where=where,
        )
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name, tensor in zip(names, example, strict=True):
        value = placeholders[name]
        fits = len(value.shape) == tensor.dim() and all(
            not isinstance(wanted, int) or wanted == got for wanted, got in zip(value.shape, tensor.shape, strict=True)
        )
        if not fits or value.dtype != tensor.dtype:
            raise UsageError(
                f"the input {name!r} is {list(value.shape)} {value.dtype}, not {list(tensor.shape)} {tensor.dtype}",
                remedy="leave the shape out: the file knows it",
                where=where,
            )


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    """Keys where the network returns a dict, otherwise the names of the graph's last nodes, made unique."""
    names = [str(name) for name in program.graph_signature.user_outputs]
    spec = program.call_spec.out_spec
    if spec is not None and spec.num_leaves == len(names):
        tree = pytree.tree_unflatten(list(range(len(names))), spec)
        for path, index in pytree.tree_flatten_with_path(tree)[0]:
            keys = [str(step.key) for step in path if isinstance(step, pytree.MappingKey)]
            if keys and len(keys) == len(path):
                names[index] = ".".join(keys)
    unique: list[str] = []
    for name in names:
        unique.append(name if name not in unique else f"{name}_{len(unique)}")
    return tuple(unique)


# ---------------------------------------------------------------- modules


def _from_module(module: torch.nn.Module, given: _Given, where: str = "module") -> Loaded:
    if isinstance(module, torch.jit.ScriptModule):
        return _convert_torchscript(module, given, where)
    tensors = _needed(given, where, _arguments(module, len(given.tensors)))
    for name, tensor in module.state_dict().items():
        _check_weight(name, tensor, where)
    was_training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with _quiet():
            program, dynamic = _export(module, tensors, where)
            _verify(program, module, tensors, where)
    finally:
        for part in was_training:
            part.training = True
    loaded = _from_program(program, "module", where, _hash_program(program), _Given(tensors, given.names))
    return replace(loaded, dynamic_batch=dynamic, notes=() if dynamic else (_STATIC,))


_STATIC = "the network fixes its batch size: it is exported with the batch size of the given inputs"


def _export(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], where: str) -> tuple[ExportedProgram, bool]:
    """Export with a free first axis, or, where the network fixes it, with the sizes given."""
    if all(tensor.dim() > 0 and len(tensor) == len(tensors[0]) for tensor in tensors):
        batch = torch.export.Dim("batch", min=1)
        # A first axis of 1 is taken for a constant while tracing, so two samples are traced.
        pair = tensors if len(tensors[0]) > 1 else tuple(torch.cat([tensor, tensor]) for tensor in tensors)
        with contextlib.suppress(Exception):
            shapes = _dynamic_shapes(module, [{0: batch} for _ in pair])
            return _trace(module, pair, shapes), True
    try:
        return _trace(module, tensors, None), False
    except Exception as error:
        raise UnsupportedError(
            f"torch.export cannot trace the network ({gist(error)})",
            remedy="check that the inputs fit; make its control flow independent of the values, or export it yourself "
            "with torch.export.export and give the .pt2",
            where=where,
        ) from error


def _trace(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], shapes: Any) -> ExportedProgram:
    # On failure PyTorch prints the half-traced graph to the error stream, past warnings and logging. Gradients are off
    # so that a `torch.no_grad()` inside the network does not become an operator of its own.
    with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        return torch.export.export(module, tensors, dynamic_shapes=shapes, strict=False)


def _arguments(module: torch.nn.Module, count: int) -> tuple[str, ...]:
    """Names of the arguments of a module: those without a default, and as many of the others as inputs are given."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return ()
    needed = sum(p.default is p.empty for p in positional)
    return tuple(p.name for p in positional[: max(needed, count)])


def _dynamic_shapes(module: torch.nn.Module, axes: list[dict[int, Any]]) -> Any:
    """One entry for each argument; `*args` takes all of its own in a tuple."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return (tuple(axes),)
    return tuple(axes)


def _verify(program: ExportedProgram, module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], where: str) -> None:
    """The program must answer as the network does, on the example and on noise; otherwise it is not the network.

    The noise comes twice: a network that remembers its last call answers differently the second time.
    """
    traced = program.module()
    noise = _noise(tensors)
    for inputs in (tensors, noise, noise):
        with torch.no_grad():
            wanted = pytree.tree_leaves(module(*inputs))
            got = pytree.tree_leaves(traced(*inputs))
        same = len(wanted) == len(got) and all(
            isinstance(a, torch.Tensor) and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
            for a, b in zip(wanted, got, strict=True)
        )
        if not same:
            raise UnsupportedError(
                "the exported program answers otherwise than the network",
                remedy="look for random numbers, state kept between calls, or branches on values or the training mode",
                where=where,
            )


def _noise(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Other inputs of the same shapes, always the same ones. Integers are kept: they may be indices of a table."""
    generator = np.random.default_rng(0)
    return tuple(
        torch.from_numpy(generator.standard_normal(tuple(tensor.shape), np.float32))
        if tensor.dtype == torch.float32
        else tensor
        for tensor in tensors
    )


# ---------------------------------------------------------------- TorchScript


def _read_torchscript(path: Path, given: _Given) -> Loaded:
    try:
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise damaged(path.name, error) from error
    return _convert_torchscript(module, given, path.name)


def _convert_torchscript(module: torch.jit.ScriptModule, given: _Given, where: str) -> Loaded:
    from torch._export.converter import TS2EPConverter

    module.eval()
    names = _script_inputs(module, where)
    tensors = _needed(given, where, names)
    for name, tensor in module.state_dict().items():
        _check_weight(name, tensor, where)
    dynamic = False

    class Converter(TS2EPConverter):  # type: ignore[misc]
        """Keeps the arguments' names, and frees the first axis alone: the converter's own export frees every axis."""

        def retrace_as_exported_program(self, graph: torch.fx.GraphModule, constants: Any) -> ExportedProgram:
            nonlocal dynamic
            for node, name in zip(graph.graph.find_nodes(op="placeholder"), names, strict=False):
                node._rename(name)
                node.target = name
            graph.recompile()
            program, dynamic = _export(graph, tensors, where)
            return program

    try:
        with _quiet(), torch.no_grad():
            module(*tensors)
            program = Converter(module, tensors).convert()
    except UnsupportedError:
        raise
    except Exception as error:
        construct = _construct(error)
        raise UnsupportedError(
            f"this TorchScript cannot be turned into one graph ({construct})",
            remedy="export the original Python model with torch.export.export and give the .pt2",
            where=where,
        ) from error
    with _quiet():
        _verify(program, module, tensors, where)
    loaded = _from_program(program, "torchscript", where, _hash_program(program), _Given(tensors, given.names))
    return replace(loaded, dynamic_batch=dynamic, notes=() if dynamic else (_STATIC,))


def _script_inputs(module: torch.jit.ScriptModule, where: str) -> tuple[str, ...]:
    """Names of the arguments of a scripted network, which must be a pure function of tensors."""
    try:
        arguments = [a for a in module.forward.schema.arguments[1:] if not a.has_default_value()]  # type: ignore[attr-defined]
        graph: Any = module.inlined_graph
    except (AttributeError, RuntimeError) as error:
        raise UnsupportedError(
            "the TorchScript file has no forward method", remedy="save a module with a forward method", where=where
        ) from error
    written = sorted({node.s("name") for node in graph.findAllNodes("prim::SetAttr")})
    if written:
        raise UnsupportedError(
            f"the network keeps state between calls (prim::SetAttr writes to {', '.join(map(repr, written[:3]))})",
            remedy="make the state an input and an output of the original Python model, and export that",
            where=where,
        )
    for argument in arguments:
        if str(argument.type) != "Tensor":
            raise UnsupportedError(
                f"the input {argument.name!r} is {argument.type}, not a tensor",
                remedy="wrap the model so that it takes tensors only, and export that",
                where=where,
            )
    return tuple(argument.name for argument in arguments)


def _construct(error: BaseException) -> str:
    """Which construct of TorchScript the converter could not handle, from what it says."""
    match = re.search(r"\b(prim|aten|torchvision|quantized|\w+)::\w+", str(error))
    if match is None:
        return gist(error)
    meaning = {"prim::If": ", a branch", "prim::Loop": ", a loop"}.get(match[0], "")
    return f"{match[0]}{meaning}"


# ---------------------------------------------------------------- weights and pickles


def _unpickle(path: Path, found: Found, trust: bool) -> Any:
    """The content of a `torch.save` file. Without trust, tensors and plain containers only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        plain = error
    try:
        if found.content == "pickle":
            with zipfile.ZipFile(path) as archive:
                listed = unusual_globals(archive.read(found.root + "data.pkl"))
        else:
            listed = unusual_globals(path.read_bytes())
    except Exception as error:
        raise damaged(path.name, error) from error
    if not listed:
        raise damaged(path.name, plain)
    if not trust:
        raise refuse_code(path.name, f"it imports {listed}")
    with working_directory_importable():
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"the pickled module needs code that is not here ({gist(error)})",
                remedy="run in the folder that holds the model's Python files, or install their package",
                where=path.name,
            ) from error
        except Exception as error:
            raise damaged(path.name, error) from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Format: 8 bytes of header length, a JSON header, then the raw tensors at the offsets that it gives."""
    types = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    }  # fmt: skip
    data = path.read_bytes()
    try:
        start = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            low, high = entry["data_offsets"]
            shape, dtype = entry["shape"], types[entry["dtype"]]
            if not 0 <= low <= high <= len(data) - start or high - low != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"the tensor {name!r} does not lie inside the file")
            buffer = bytearray(data[start + low : start + high])
            flat = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
            tensors[str(name)] = flat.reshape(shape)
    except Exception as error:
        raise damaged(path.name, error) from error
    return tensors


def _is_weights(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())
    )


def _is_model(content: Any) -> bool:
    return isinstance(content, torch.nn.Module) or _is_weights(content)


def _with_weights(
    weights: Mapping[str, torch.Tensor], arch: str | None, where: str
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The network that `arch` makes, with these weights in it."""
    if arch is None:
        raise UsageError(
            "the file holds weights without the network that they belong to",
            remedy="name the function that builds it, --arch package.module:factory, or give a .pt2",
            where=where,
        )
    for name, tensor in weights.items():
        _check_weight(name, tensor, where)
    module = _build(arch)
    own = module.state_dict()
    notes: tuple[str, ...] = ()
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights) and not any(name.startswith(prefix) for name in own):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
            notes += (f"the prefix {prefix!r} was removed from all {len(weights)} names of weights",)
    # Checkpoints from before PyTorch 0.4.1 lack these counters, which inference does not use.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    if missing or unexpected:
        parts = [f"missing: {_few(missing)}"] * bool(missing) + [f"unexpected: {_few(unexpected)}"] * bool(unexpected)
        raise UsageError(
            f"the weights do not belong to {arch} ({'; '.join(parts)})",
            remedy="name the function that builds exactly this network",
            where=where,
        )
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise UsageError(
                f"{name!r} is {list(tensor.shape)} in the file and {list(own[name].shape)} in {arch}",
                remedy="name the function that builds exactly this network, with the same number of classes",
                where=where,
            )
    module.load_state_dict(dict(weights), strict=False)
    return module, notes


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _build(arch: str) -> torch.nn.Module:
    module = call(arch, "--arch")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"{arch} returned a {type(module).__name__}, not a torch.nn.Module",
            remedy="name a function without arguments that returns the network",
            where="--arch",
        )
    return module


# ---------------------------------------------------------------- small helpers


def _example(inputs: Sequence[str], example: tuple[torch.Tensor, ...] | None) -> _Given:
    if example is not None:
        return _Given(tuple(example), ("",) * len(example))
    specs = [parse_input_spec(text) for text in inputs]
    tensors = tuple(torch.zeros([int(size or 1) for size in spec.shape], dtype=_DTYPES[spec.dtype]) for spec in specs)
    return _Given(tensors, tuple(spec.name for spec in specs))


def _needed(given: _Given, where: str, names: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """The example in the order of the arguments; an error where there is none, since shapes cannot be guessed."""
    if not given.tensors:
        raise UsageError(
            "nothing says what shape the inputs have",
            remedy="add --input [name:]shape[:dtype] for each input, for example --input 1x3x224x224",
            where=where,
        )
    if len(given.tensors) != len(names) and names:
        raise UsageError(
            f"{len(given.tensors)} inputs are given and the model takes {len(names)} ({', '.join(names)})",
            remedy="give --input once for each",
            where=where,
        )
    if not any(given.names):
        return given.tensors
    by_name = dict(zip(given.names, given.tensors, strict=True))
    unknown = [name for name in given.names if name not in names]
    if unknown or len(by_name) != len(names):
        raise UsageError(
            f"the inputs are named {', '.join(name or '(no name)' for name in given.names)} "
            f"and the model takes {', '.join(names)}",
            remedy="use the model's names, or none",
            where=where,
        )
    return tuple(by_name[name] for name in names)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _hash_program(program: ExportedProgram) -> str:
    """Over the generated code of the graph and all tensors, by name: the same network gives the same hash."""
    digest = hashlib.sha256(program.graph_module.code.encode())
    tensors = {**program.state_dict, **program.constants}
    for name in sorted(tensors):
        tensor = tensors[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's warnings and log lines to itself, for the duration."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in _CHATTY]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.addFilter(drop)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(drop)


@dataclass(frozen=True)
class _Given:
    """The sample inputs that the caller gave, with the names given for them (empty where there is none)."""

    tensors: tuple[torch.Tensor, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network, ready to be prepared.

    Attributes:
        program: the exported program, in inference mode.
        kind: what it was loaded from.
        source: the name of the file, without its folder.
        sha256: of the file's bytes; in memory, of the graph and the weights.
        example: sample inputs, in order. For tracing only: they may be zeros, and are never calibration data.
        input_names: the arguments' names.
        output_names: the keys of a returned dict, or names from the graph.
        dynamic_batch: whether the first axis of every input is free.
        notes: what was assumed, for the caller to show.
    """

    program: ExportedProgram
    kind: Kind
    source: str
    sha256: str
    example: tuple[torch.Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_batch: bool
    notes: tuple[str, ...] = ()

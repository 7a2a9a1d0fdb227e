"""What loading gives, whatever it was loaded from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

Kind = str
"""`torch.export`, `torchscript`, `pickled module`, `state_dict`, `module`, or what another frontend calls its files."""


def describe(program: ExportedProgram, kind: Kind, source: str, example: tuple[torch.Tensor, ...]) -> Loaded:
    """A program with what later stages want to know of it. Its hash is left to whoever knows if there is a file."""
    names = tuple(str(name) for name in program.graph_signature.user_inputs)
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [placeholders[name].meta["val"].shape for name in names]
    return Loaded(
        program=program,
        kind=kind,
        source=source,
        sha256="",
        example=example,
        input_names=names,
        output_names=_output_names(program),
        dynamic_batch=all(len(shape) > 0 and isinstance(shape[0], torch.SymInt) for shape in shapes),
    )


def sha256_program(program: ExportedProgram) -> str:
    """Over the generated code of the graph and all tensors, by name: the same network gives the same hash."""
    digest = hashlib.sha256(program.graph_module.code.encode())
    tensors = {**program.state_dict, **program.constants}
    for name in sorted(tensors):
        tensor = tensors[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    """Keys where the network returns a dict, otherwise the names of the graph's last nodes. Each differs from all
    others and from the inputs' names, since files know tensors by nothing else."""
    nodes = {node.name: node for node in program.graph.nodes}
    names = [_before_rounding(nodes[str(name)]) for name in program.graph_signature.user_outputs]
    spec = program.call_spec.out_spec
    if spec is not None and spec.num_leaves == len(names):
        tree = pytree.tree_unflatten(list(range(len(names))), spec)
        for path, index in pytree.tree_flatten_with_path(tree)[0]:
            keys = [str(step.key) for step in path if isinstance(step, pytree.MappingKey)]
            if keys and len(keys) == len(path):
                names[index] = ".".join(keys)
    taken = set(map(str, program.graph_signature.user_inputs))
    unique: list[str] = []
    for index, name in enumerate(names):
        number, found = index, name
        while found in taken:
            found, number = f"{name}_{number}", number + 1
        taken.add(found)
        unique.append(found)
    return tuple(unique)


def _before_rounding(node: torch.fx.Node) -> str:
    """The name of a value; of one that is rounded as it goes out, that of what is rounded."""
    for step in ("dequantize", "quantize"):
        if str(node.target).startswith(f"quantized_decomposed.{step}"):
            node = node.all_input_nodes[0]
    return node.name


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

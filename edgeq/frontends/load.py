"""From whatever holds a trained network to a model. To import this takes no PyTorch."""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.data.dataset import InputSpec
from edgeq.errors import UnsupportedError
from edgeq.model.graph import Program, Value
from edgeq.model.model import Model
from edgeq.visible import whole

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from edgeq.frontends.loaded import Loaded


def load(
    source: str | Path | torch.nn.Module | ExportedProgram,
    *,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    example: tuple[torch.Tensor, ...] | None = None,
) -> Model:
    """Loads a PyTorch model of any supported kind.

    Args:
        source: a file (torch.export, TorchScript, state_dict, pickled module), a module or an exported program.
        inputs: input shapes such as `1x3x224x224` or `tokens:1x256:int64`, where the source carries no example.
        arch: `package.module:factory` that builds the module for a state_dict.
        trust_pickle: allow the file to run code while it is unpickled.
        example: example inputs for a module.

    Raises:
        UsageError: the file is broken or not a model, or an option is missing.
        UnsupportedError: the model cannot be exported as a graph.
    """
    from edgeq.frontends.read import read

    return from_loaded(read(source, inputs=inputs, arch=arch, trust_pickle=trust_pickle, example=example))


def from_loaded(loaded: Loaded) -> Model:
    """Normalises what was read."""
    from edgeq.model.passes import normalise
    from edgeq.model.traced import program_of

    exported, left_out, grids = normalise(loaded.program, loaded.source)
    program = program_of(exported)
    nodes = {node.name: node for node in program.nodes}
    specs = []
    for name, node_name in zip(loaded.input_names, program.inputs, strict=True):
        value = nodes[node_name].value
        if not isinstance(value, Value):
            raise UnsupportedError(
                f"input {name!r} is no tensor", remedy="export the model with its constant arguments bound"
            )
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        specs.append(InputSpec(whole(name), shape, value.dtype))
    return Model(
        program=program,
        exported=lambda: exported,
        reference=lambda: program_of(loaded.program),
        inputs=tuple(specs),
        output_names=tuple(whole(name) for name in loaded.output_names),
        kind=loaded.kind,
        source=whole(loaded.source),
        sha256=loaded.sha256,
        example=tuple(tensor.detach().cpu().numpy() for tensor in loaded.example),
        notes=(*loaded.notes, *left_out),
        grids=grids,
    )


def reference_of(path: Path, inputs: Sequence[str]) -> Program:
    """The program of a file as it is."""
    from edgeq.frontends.read import read
    from edgeq.model.traced import program_of

    return program_of(read(path, inputs=inputs).program)


def _sent(model: Model) -> tuple[Any, ...]:
    from edgeq.frontends.kept import sent

    return sent(model)


copyreg.pickle(Model, _sent)  # to another process, as the cache keeps it; the program as it was loaded stays behind

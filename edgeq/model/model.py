"""The model: a normalised program with its inputs, outputs, fusion groups and hash."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeq.data.dataset import InputSpec
from edgeq.errors import UnsupportedError
from edgeq.model.execute import Constant, Hook, Reads, execute
from edgeq.model.fold import normalise
from edgeq.model.groups import Group, find_groups, find_trailing
from edgeq.model.load import read
from edgeq.model.loaded import Loaded, sha256_program
from edgeq.model.plain import PlainProgram


@dataclass(frozen=True)
class Model:
    """A trained model, ready to be measured, planned and exported.

    Attributes:
        program: functional, batch norms folded, evaluation mode. The exporters take `exported`.
        reference: gives the program as it was loaded: what "the float model" means in every comparison.
        inputs: name, shape (None where dynamic) and dtype of each input.
        output_names: the user's names of the outputs.
        kind: what the file was.
        source: file name, for people.
        sha256: of the file, or of the weights and graph of a module from memory.
        example: one input per argument, for tracing only.
        notes: what was assumed while loading, for the user to see.
    """

    program: ExportedProgram | PlainProgram
    reference: Callable[[], ExportedProgram]
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    kind: str
    source: str
    sha256: str
    example: tuple[torch.Tensor, ...]
    notes: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process, as the cache keeps it. Its program as it was loaded stays behind."""
        from edgeq.model.kept import sent

        return sent(self)

    @property
    def exported(self) -> ExportedProgram:
        """The program as PyTorch's exporters take it."""
        return self.program if isinstance(self.program, ExportedProgram) else self.program.exported(self.example)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return find_groups(self.program)

    @cached_property
    def trailing(self) -> frozenset[str]:
        """Graph nodes without multiply-accumulates through which values only pass to the outputs."""
        return find_trailing(self.program, self.groups)

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Graph nodes by name."""
        return {node.name: node for node in self.program.graph.nodes}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what is computed: the normalised graph and its numbers, wherever they came from."""
        return sha256_program(self.program)

    @property
    def input_nodes(self) -> tuple[str, ...]:
        """Graph nodes of the inputs, in order."""
        return tuple(map(str, self.program.graph_signature.user_inputs))

    @property
    def output_nodes(self) -> tuple[str, ...]:
        """Graph nodes of the outputs, in order."""
        return tuple(map(str, self.program.graph_signature.user_outputs))

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample."""
        return sum(g.macs for g in self.groups)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.program.state_dict.values())

    @cached_property
    def batchable(self) -> bool:
        """Whether several samples can go through at once. It is told by trying: two samples together must give what
        they give one by one. A graph that fixes its batch may not take two, and a free batch does not say that
        samples keep apart."""
        if not all(spec.batched for spec in self.inputs):
            return False
        generator = torch.Generator().manual_seed(0)
        samples = [
            [
                torch.randn((1, *x.shape[1:]), generator=generator) if x.is_floating_point() else x[:1]
                for x in self.example
            ]
            for _ in range(2)
        ]
        try:
            (together,) = self.run([[torch.cat(column) for column in zip(*samples, strict=True)]])
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
        alone = self.run(samples)
        return all(
            whole.shape[:1] == (2,)
            and all(
                torch.allclose(whole[i : i + 1], one[o], atol=1e-4, rtol=1e-3, equal_nan=True)
                for i, one in enumerate(alone)
            )
            for o, whole in enumerate(together)
        )

    @property
    def dynamic_batch(self) -> bool:
        return all(s.shape and s.shape[0] is None for s in self.inputs)

    def run(
        self,
        batches: Sequence[Sequence[torch.Tensor]],
        hook: Hook | None = None,
        replace: Mapping[str, Constant] | None = None,
        reads: Reads | None = None,
        *,
        differentiable: bool = False,
    ) -> list[list[torch.Tensor]]:
        """The normalised program's outputs, for each batch.

        Args:
            batches: for each batch one tensor per input, [N, ...]; N is what the graph was made with, or any number
                if `batchable`.
            hook: sees and may change every value (see `edgeq.model.execute`).
            replace: constants to use in place of the model's own, by graph node.
            reads: what is done to a value on its way to one reader alone (see `edgeq.model.execute`).
            differentiable: record what is needed for gradients.
        """
        if self.dynamic_batch:
            return execute(self.program, batches, hook, replace, reads, differentiable=differentiable)
        factors = [len(batch[0]) // len(self.example[0]) for batch in batches]
        return execute(self.program, batches, hook, replace, reads, factors, differentiable)


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
    return from_loaded(read(source, inputs=inputs, arch=arch, trust_pickle=trust_pickle, example=example))


def from_loaded(loaded: Loaded) -> Model:
    """Normalises what was read."""
    program = normalise(loaded.program)
    nodes = {node.name: node for node in program.graph.nodes}
    specs = []
    for name, node_name in zip(loaded.input_names, program.graph_signature.user_inputs, strict=True):
        value = nodes[str(node_name)].meta["val"]
        if not isinstance(value, torch.Tensor):
            raise UnsupportedError(
                f"input {name!r} is no tensor", remedy="export the model with its constant arguments bound"
            )
        shape = tuple(int(d) if isinstance(d, int) else None for d in value.shape)
        specs.append(InputSpec(name, shape, str(value.dtype).removeprefix("torch.")))
    return Model(
        program=program,
        reference=lambda: loaded.program,
        inputs=tuple(specs),
        output_names=loaded.output_names,
        kind=loaded.kind,
        source=loaded.source,
        sha256=loaded.sha256,
        example=tuple(loaded.example),
        notes=tuple(loaded.notes),
    )


def reference_of(path: Path, inputs: Sequence[str]) -> ExportedProgram:
    """The program of a file as it is."""
    return read(path, inputs=inputs).program

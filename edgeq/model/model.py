"""The model: a normalised program with its inputs, outputs, fusion groups and hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgeq.data.dataset import Dataset, InputSpec
from edgeq.model.graph import Array, Node, Program
from edgeq.model.grids import Grids
from edgeq.model.groups import Group, find_groups, find_trailing
from edgeq.model.heads import Head, heads_of

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from edgeq.model.execute import Constant, Hook, Reads


@dataclass(frozen=True)
class Model:
    """A trained model, ready to be measured, planned and exported. To be looked at, it takes no PyTorch.

    Attributes:
        program: functional, batch norms folded, evaluation mode.
        exported: gives the same as PyTorch's exporters take it.
        reference: gives the program as it was loaded: what "the float model" means in every comparison.
        inputs: name, shape (None where dynamic) and dtype of each input.
        output_names: the user's names of the outputs.
        kind: what the file was.
        source: file name, for people.
        sha256: of the file, or of the weights and graph of a module from memory.
        example: one input per argument, for tracing and to compare exported files with the model by: real samples where
            there is data (see `with_samples`).
        notes: what was assumed while loading, for the user to see.
        rewrites: what was rewritten since it was loaded: by name, the parameters by graph node (see `edgeq.rewrites`).
        levelled: graph nodes of values whose channels were made to reach equally far.
        grids: what it was rounded to where it came from; the program does not round. None where nobody did.
    """

    program: Program
    exported: Callable[[], ExportedProgram]
    reference: Callable[[], Program]
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    kind: str
    source: str
    sha256: str
    example: tuple[Array, ...]
    notes: tuple[str, ...] = ()
    rewrites: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    levelled: frozenset[str] = frozenset()
    grids: Grids | None = None

    def with_program(self, program: Program) -> Model:
        """The same model, computed by another program. What it is compared with stays the program as it was loaded."""

        def exported() -> ExportedProgram:
            from edgeq.model.rebuilt import exported_program

            return exported_program(program, self.example)

        return replace(self, program=program, exported=exported)

    def with_state(self, state: Mapping[str, Array]) -> Model:
        """Likewise, with other tensors in place of some of its parameters, by name."""
        return self.with_program(replace(self.program, state={**self.state, **state}))

    @property
    def state(self) -> Mapping[str, Array]:
        """Parameters and buffers by name."""
        return self.program.state

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return find_groups(self.program)

    @cached_property
    def trailing(self) -> frozenset[str]:
        """Graph nodes without multiply-accumulates through which values only pass to the outputs."""
        return find_trailing(self.program, self.groups)

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """What the graph tells of each output."""
        return heads_of(self.program, self.output_names)

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Graph nodes by name."""
        return {node.name: node for node in self.program.nodes}

    @property
    def fingerprint(self) -> str:
        """Hash of what is computed: the normalised graph, its numbers and grids, wherever they came from."""
        own = self.program.fingerprint
        return own if self.grids is None else hashlib.sha256(f"{own} {self.grids.sha256}".encode()).hexdigest()

    @cached_property
    def example_hash(self) -> str:
        """Hash of the example inputs: where an exporter finds the model's values in a file hangs on them."""
        digest = hashlib.sha256()
        for array in self.example:
            digest.update(f"{array.dtype}\0{array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def with_samples(self, data: Dataset) -> Model:
        """The same model with the data's first samples as its example, as many as it had.

        On zeros or noise a network may be far outside its range, where exported files cannot be told from others: what
        rounding makes of values a thousand times too large looks like another computation.
        """
        counts = [len(x) if spec.batched else 1 for spec, x in zip(self.inputs, self.example, strict=True)]
        first = data.first(max(counts))

        def samples(spec: InputSpec, count: int) -> Array:
            array = first[spec.name]
            return array[np.arange(count) % len(array)] if spec.batched else array[0]

        return replace(self, example=tuple(samples(s, n) for s, n in zip(self.inputs, counts, strict=True)))

    @property
    def input_nodes(self) -> tuple[str, ...]:
        """Graph nodes of the inputs, in order."""
        return self.program.inputs

    @property
    def output_nodes(self) -> tuple[str, ...]:
        """Graph nodes of the outputs, in order."""
        return self.program.outputs

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample."""
        return sum(g.macs for g in self.groups)

    @property
    def parameters(self) -> int:
        return sum(array.size for array in self.state.values())

    @cached_property
    def batchable(self) -> bool:
        """Whether several samples can go through at once. A graph that fixes its batch takes what it was made with: its
        sizes and states are of that batch, and which of them would follow another one is a guess. Where the batch is
        free it is told by trying: two samples together must give what they give one by one."""
        if not self.dynamic_batch:
            return False
        import torch

        generator = torch.Generator().manual_seed(0)
        samples = [
            [
                torch.randn((1, *x.shape[1:]), generator=generator)
                if x.is_floating_point()
                else (x[:1] if turn == 0 or x.dim() == 1 else x[:1].flip(-1))
                for x in map(torch.from_numpy, self.example)
            ]
            for turn in range(2)
        ]
        alone = self.run(samples)
        try:
            (together,) = self.run([[torch.cat(column) for column in zip(*samples, strict=True)]])
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
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
                if `batchable`: a graph that fixes its batch may read or write where it must not.
            hook: sees and may change every value (see `edgeq.model.execute`).
            replace: constants to use in place of the model's own, by graph node.
            reads: what is done to a value on its way to one reader alone (see `edgeq.model.execute`).
            differentiable: record what is needed for gradients.
        """
        from edgeq.model.execute import execute

        return execute(self.program, batches, hook, replace, reads, differentiable=differentiable)

"""A file's operators in PyTorch: each node becomes a module that is called as the file calls it, so that the network is
traced like any other. What is a node, and what it computes, each frontend says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from edgeq.errors import EdgeqError, UnsupportedError
from edgeq.model.refusals import gist


class Read(NamedTuple):
    """An argument that another node, or the caller, gives."""

    name: str


class Made(NamedTuple):
    """An argument that is made of tensors of the step: such as a weight of the integers that it is stored in."""

    make: Callable[..., torch.Tensor]
    tensors: tuple[torch.Tensor, ...]


class Step(torch.nn.Module):
    """One node.

    Args:
        run: from the arguments to the results: one value, or a tuple of them.
        arguments: by position: `Read`, tensors that become parameters or buffers, or anything else as it is.
        writes: the names of the results; empty where nobody asks for one.
        where: for messages.
    """

    def __init__(self, run: Callable[..., Any], arguments: Sequence[Any], writes: Sequence[str], where: str) -> None:
        super().__init__()
        self.run, self.writes, self.where = run, tuple(writes), where
        self.reads = tuple(one.name for one in arguments if isinstance(one, Read))
        self.arguments = [self._held(position, one) for position, one in enumerate(arguments)]

    def forward(self, *values: Any) -> Any:
        given = iter(values)
        arguments = [
            next(given) if isinstance(one, Read)
            else one.make(*(getattr(self, name) for name in one.names)) if isinstance(one, _Held)
            else one
            for one in self.arguments
        ]  # fmt: skip
        try:
            found = self.run(*arguments)
        except EdgeqError as error:
            error.where = error.where or self.where
            raise
        except Exception as error:
            if torch.compiler.is_exporting():
                raise
            raise UnsupportedError(
                f"it cannot be computed ({gist(error)})", where=self.where, remedy="check the file with its own runtime"
            ) from error
        return found if isinstance(found, tuple) else (found,)

    def _held(self, position: int, one: Any) -> Any:
        if isinstance(one, torch.Tensor):
            one = Made(lambda tensor: tensor, (one,))
        if not isinstance(one, Made):
            return one
        first = ("input", "weight", "bias")[position] if position < 3 else f"constant_{position}"
        names = []
        for number, tensor in enumerate(one.tensors):
            names.append(f"{first}_{number}" if number else first)
            if tensor.is_floating_point():
                self.register_parameter(names[-1], torch.nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(names[-1], tensor)
        return _Held(one.make, tuple(names))


class Network(torch.nn.Module):
    """All nodes of a file, in the order in which they run.

    Args:
        inputs, outputs: names of values.
        steps: each with the name of its layer, which may be a path.
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str], steps: Sequence[tuple[str, Step]]) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.steps: list[str] = []
        for name, step in steps:
            self.steps.append(self._place(name, step))

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        known: dict[str, Any] = dict(zip(self.inputs, values, strict=True))
        for name in self.steps:
            step: Any = self.get_submodule(name)
            found = step(*(known[one] for one in step.reads))
            known.update((one, value) for one, value in zip(step.writes, found, strict=False) if one)
        return tuple(known[name] for name in self.outputs)

    def _place(self, name: str, step: Step) -> str:
        """Puts a node at a path of its own, below modules that are there for their names alone."""
        *folders, last = [re.sub(r"\W+", "_", part) for part in re.split(r"[./]+", name) if part] or ["node"]
        owner: torch.nn.Module = self
        path: list[str] = []
        for part in folders:
            while part not in owner._modules and hasattr(owner, part):
                part += "_"
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
            path.append(part)
        free, number = last, 1
        while hasattr(owner, free):
            number += 1
            free = f"{last}_{number}"
        owner.add_module(free, step)
        return ".".join([*path, free])


class _Held(NamedTuple):
    """The same as `Made`, once the step has the tensors."""

    make: Callable[..., torch.Tensor]
    names: tuple[str, ...]

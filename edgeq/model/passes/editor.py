"""A program's graph, weights and signature, kept in step while it is edited."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.fx.node import map_arg

_NO_IDENTIFIER = re.compile(r"\W")


def value_of(node: Any) -> torch.Tensor:
    """What is known of a node's tensor before it is computed."""
    value: torch.Tensor = node.meta["val"]
    return value


class Editor:
    """A functional program that passes change in place, until `finish` puts it together again.

    Attributes:
        graph: its nodes.
        state: parameters and buffers by name.
        constants: tensors that are neither.
        targets: by the name of a placeholder, that of its tensor.
        outputs: what the outputs are.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program, self.graph = program, program.graph
        self.state, self.constants = dict(program.state_dict), dict(program.constants)
        self.specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.targets = {name: spec.target for name, spec in self.specs.items() if spec.target}
        self.outputs = list(program.graph_signature.output_specs)

    def value(self, node: object) -> torch.Tensor | None:
        """The constant behind a placeholder, None where the argument is absent or computed."""
        if not isinstance(node, Node) or node.op != "placeholder" or node.name not in self.targets:
            return None
        name = self.targets[node.name]
        held = self.state.get(name)
        constant = self.constants.get(name) if held is None else held
        return constant if isinstance(constant, torch.Tensor) else None

    def store(self, name: str, value: torch.Tensor, before: Node, *, constant: bool = False) -> Node:
        """Adds a parameter, or a constant that is none, and its placeholder in front of all others."""
        first = next(n for n in self.graph.nodes if n.op == "placeholder")
        with self.graph.inserting_before(first):
            node: Node = self.graph.placeholder(f"p_{_NO_IDENTIFIER.sub('_', name)}_folded")
        # in small letters, as its name is: a program that is written to a file comes back with names alone
        node.target = node.name
        node.meta["val"] = value_of(before).fake_mode.from_tensor(value, static_shapes=True)  # type: ignore[attr-defined]
        node.meta["tensor_meta"] = None
        kind = InputKind.CONSTANT_TENSOR if constant else InputKind.PARAMETER
        if constant:
            self.constants[name] = value
        else:
            self.state[name] = torch.nn.Parameter(value, requires_grad=False)
        self.targets[node.name] = name
        self.specs[node.name] = InputSpec(kind, TensorArgument(node.name), name, None)
        return node

    def unused(self, name: str) -> str:
        """A name for another tensor of a layer that has one: `conv.weight` becomes `conv#2.weight`."""
        owner, dot, last = name.rpartition(".")
        count = 2
        while (found := f"{owner}#{count}.{last}" if dot else f"{last}#{count}") in self.state:
            count += 1
        return found

    def insert(self, before: Node, target: Callable[..., Any], args: tuple[Any, ...]) -> Node:
        """A new operator in front of another, in the same module."""
        with self.graph.inserting_before(before):
            node: Node = self.graph.call_function(target, args)
        node.meta = copy.copy(before.meta)
        # without this, operators are asked for sizes as numbers, and free ones are fixed
        with torch.no_grad(), enable_python_dispatcher():
            node.meta["val"] = target(*map_arg(args, value_of))
        return node

    def finish(self) -> ExportedProgram:
        """Drops what nothing uses any more and puts the program together again."""
        graph = self.graph
        graph.eliminate_dead_code()
        kept: list[InputSpec] = []
        for node in [n for n in graph.nodes if n.op == "placeholder"]:
            spec = self.specs[node.name]
            if not node.users and spec.kind is not InputKind.USER_INPUT:
                graph.erase_node(node)
            else:
                kept.append(spec)
        used = {spec.target for spec in kept}
        # an output that was folded away goes by the name of what took its place
        (leaving,) = next(n for n in graph.nodes if n.op == "output").args
        outputs = [
            replace(spec, arg=TensorArgument(node.name)) if isinstance(node, Node) else spec
            for node, spec in zip(leaving, self.outputs, strict=True)
        ]
        graph.lint()
        self.program.graph_module.recompile()
        return ExportedProgram(
            root=self.program.graph_module,
            graph=graph,
            graph_signature=ExportGraphSignature(kept, outputs),
            state_dict={k: v for k, v in self.state.items() if k in used},
            range_constraints=self.program.range_constraints,
            module_call_graph=self.program.module_call_graph,
            example_inputs=self.program.example_inputs,
            constants={k: v for k, v in self.constants.items() if k in used},
            verifiers=[self.program.verifier],
        )

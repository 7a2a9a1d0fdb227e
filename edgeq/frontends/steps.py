"""How many operators a TorchScript network runs at most, told from its code before any of it runs."""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeq.errors import UnsupportedError

_MOST = 1_000_000
_ENDLESS = 2**62
_BUILT_IN = "__torch__.torch.classes."


def check_steps(module: torch.jit.ScriptModule, unit: Any, where: str) -> None:
    """Refuse a network whose code does not say that it ends soon: it would be run here, to be converted.

    Args:
        module: as it was read.
        unit: the compilation unit that it was read into, which has the functions that methods call.
        where: the file, for the message.

    Raises:
        UnsupportedError: a loop without a written number of turns, or a million steps and more.
    """
    try:
        steps = _Steps(module, unit).of_network(f"{_type_name(module._c._type())}.forward")
    except RecursionError:
        steps = math.inf
    if steps <= _MOST:
        return
    if steps == math.inf:
        cause = "nothing in the file says when its loops end"
    else:
        cause = f"it would run {steps:.3g} operators for one answer, and {_MOST} are the most"
    raise UnsupportedError(
        cause,
        remedy="export the original Python model with torch.export.export and give the .pt2, or pass --trust-pickle if "
        "you trust whoever made the file",
        where=where,
    )


class _Steps:
    """Counts, each method and function once. A branch counts with both of its sides."""

    def __init__(self, module: torch.jit.ScriptModule, unit: Any) -> None:
        self._modules: dict[str, list[Any]] = {}
        for part in module.modules():
            self._modules.setdefault(_type_name(part._c._type()), []).append(part)  # type: ignore[operator, union-attr]
        self._graphs: dict[str, list[Any]] = {}
        for function in unit.get_functions():  # methods among them
            for name in (function.name, function.qualified_name):
                self._graphs.setdefault(name, []).append(function.graph)
        self._known: dict[str, float] = {}

    def of_network(self, name: str) -> float:
        """Of a method that may be missing, which is told elsewhere."""
        return self.of_function(name) if name in self._graphs else 0

    def of_function(self, name: str) -> float:
        """Of the largest one of a name: a method has its whole one, a function that is called has the last part."""
        if name not in self._known:
            self._known[name] = math.inf  # where it calls itself
            self._known[name] = max(map(self._of_block, self._graphs.get(name, [])), default=math.inf)
        return self._known[name]

    def _of_block(self, block: Any) -> float:
        return sum(self._of_node(node) for node in block.nodes())

    def _of_node(self, node: Any) -> float:
        kind = node.kind()
        if kind == "prim::CallMethod":
            owner = _type_name(node.inputsAt(0).type())
            return 1 if owner.startswith(_BUILT_IN) else 1 + self.of_function(f"{owner}.{node.s('name')}")
        if kind == "prim::CallFunction":
            return 1 + self.of_function(node.inputsAt(0).node().s("name"))
        inner = sum(self._of_block(block) for block in node.blocks())
        return 1 + inner * self._turns(node.inputsAt(0)) if kind == "prim::Loop" else 1 + inner

    def _turns(self, count: Any) -> float:
        """Of a loop: written down, or an integer that the network keeps; `while` has the largest one."""
        node = count.node()
        turns = math.inf
        if node.kind() == "prim::Constant":
            turns = max(1, int(count.toIValue()))
        elif node.kind() == "prim::GetAttr":
            owners = self._modules.get(_type_name(node.inputsAt(0).type()), [])
            found = [getattr(part, node.s("name"), None) for part in owners]
            turns = max((value for value in found if isinstance(value, int)), default=math.inf)
        return turns if turns < _ENDLESS else math.inf


def _type_name(kind: Any) -> str:
    """Of a class; anything else has none."""
    return str(kind.qualified_name()) if hasattr(kind, "qualified_name") else ""

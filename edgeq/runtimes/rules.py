"""A runtime's documented rules for its files, which they are held against where nothing can be run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgeq.records.schema import COMPILES, Breach, Conformance
from edgeq.runtimes.onnx_graph import OnnxGraph, read_graph


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: what it is called.
        text: the rule, in words.
        remedy: what to do about a file that breaks it.
        source: where it is documented.
        breaks: (node, what is wrong there) for each place that breaks it.
        refused: whether the runtime refuses such a file, or computes something else. Else it runs it, slower than it
            might.
    """

    name: str
    text: str
    remedy: str
    source: str
    breaks: Callable[[OnnxGraph], Iterable[tuple[str, str]]]
    refused: bool = True


class Compiled(NamedTuple):
    """What became of a file in a compiler.

    Attributes:
        by: the compiler, and what it compiles for.
        node: that it refused; empty where it named none, or took them all.
        refused: why; empty where it took the file.
    """

    by: str
    node: str
    refused: str


@dataclass(frozen=True)
class Rulebook:
    """The rules of a runtime for ONNX files.

    Attributes:
        name: `TensorRT's rules for explicit quantization`.
        compiler: what takes the file as the runtime would, where it is installed.
    """

    name: str
    rules: tuple[Rule, ...]
    compiler: Callable[[Path], Compiled | None] = lambda path: None

    def hold(self, path: Path) -> Conformance:
        """Every place where a file breaks a rule.

        Raises:
            UsageError: it is no ONNX file, or one of its own files is missing.
        """
        graph = read_graph(path)
        breaches = [
            Breach(
                rule=rule.name,
                node=node,
                cause=cause,
                text=rule.text,
                remedy=rule.remedy,
                source=rule.source,
                refused=rule.refused,
            )
            for rule in self.rules
            for node, cause in rule.breaks(graph)
        ]
        compiled = self.compiler(path)
        if compiled is not None and compiled.refused:
            breaches.append(_refused(compiled))
        by = "" if compiled is None or compiled.refused else compiled.by
        return Conformance(rulebook=self.name, rules=len(self.rules), breaches=breaches, compiled_by=by)


def _refused(compiled: Compiled) -> Breach:
    return Breach(
        rule=COMPILES,
        node=compiled.node,
        cause=compiled.refused,
        text=f"{compiled.by} has to take the file",
        remedy="mend what it names, or leave the layer in float",
        source=compiled.by,
        refused=True,
    )

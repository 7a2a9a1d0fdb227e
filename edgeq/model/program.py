"""What is read of a program: all that `torch.export`'s own has for it, and so has one that the cache kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch.export.graph_signature import ExportGraphSignature
from torch.fx import Graph, GraphModule


class Program(Protocol):
    """A functional graph whose parameters, buffers and constants are placeholders."""

    @property
    def graph(self) -> Graph: ...

    @property
    def graph_module(self) -> GraphModule: ...

    @property
    def graph_signature(self) -> ExportGraphSignature: ...

    @property
    def state_dict(self) -> Mapping[str, Any]:
        """Parameters and buffers."""

    @property
    def constants(self) -> Mapping[str, Any]:
        """What is neither, and buffers that a state_dict leaves out."""

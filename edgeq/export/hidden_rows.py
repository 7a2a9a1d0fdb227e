"""Attention that hides every key from a row. PyTorch lets such a row give zeros; in files its softmax has nothing to
divide by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from edgeq.errors import UnsupportedError
from edgeq.model.graph import Node
from edgeq.model.model import Model

_ATTENTION = "aten.scaled_dot_product_attention.default"


def refuse_hidden_rows(model: Model, given: Sequence[Sequence[torch.Tensor]]) -> None:
    """To be asked where a file computes something else: whether that is why.

    Raises:
        UnsupportedError: on these batches, a mask hides every key from a row.
    """
    found: list[str] = []

    def look(attention: Node) -> Callable[[Any], Any]:
        def seen(mask: torch.Tensor) -> torch.Tensor:
            hidden = ~mask if mask.dtype == torch.bool else torch.isneginf(mask)
            if hidden.all(-1).any():
                found.append(attention.name)
            return mask

        return seen

    masked = [(node, _mask(node)) for node in model.program.nodes if node.target == _ATTENTION]
    reads = {(node.name, mask.name): [look(node)] * len(given) for node, mask in masked if mask is not None}
    model.run(given, reads=reads)
    if found:
        raise UnsupportedError(
            "its mask hides every key from a row: PyTorch gives zeros there, and what is exported NaN",
            where=f"layer {next((g.name for g in model.groups if found[0] in g.members), found[0])}",
            remedy="let such rows see a key and set what they give to zero behind the attention (torch.where)",
        )


def _mask(attention: Node) -> Node | None:
    mask = attention.args[3] if len(attention.args) > 3 else attention.kwargs.get("attn_mask")
    return mask if isinstance(mask, Node) else None

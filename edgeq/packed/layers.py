"""Layers of packed integers, in the place of PyTorch's own."""

from __future__ import annotations

from torch import Tensor, nn

from edgeq.packed.weight import PackedWeight


class PackedLinear(nn.Module):
    """In the place of `torch.nn.Linear`. The bias stays as it was."""

    bias: nn.Parameter | None

    def __init__(self, packed: PackedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.packed = packed
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features] in float, made anew each time: for code that looks at a layer's weight."""
        return self.packed.whole

    def forward(self, x: Tensor) -> Tensor:
        found = self.packed.times(x)
        return found if self.bias is None else found + self.bias


class PackedEmbedding(nn.Module):
    """In the place of `torch.nn.Embedding`: only the rows that are looked up become float."""

    def __init__(self, packed: PackedWeight, padding_idx: int | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = packed.shape
        self.padding_idx = padding_idx
        self.packed = packed

    @property
    def weight(self) -> Tensor:
        """[num_embeddings, embedding_dim] in float, made anew each time."""
        return self.packed.whole

    def forward(self, words: Tensor) -> Tensor:
        return self.packed.taken(words)

"""A matrix as packed integers that PyTorch keeps, moves and saves as it does parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edgeq.numerics.weights import QuantizedWeight

AT_ONCE = 1 << 22
"""Numbers that are float at a time, so that a large matrix never is as a whole."""


class Layout(NamedTuple):
    """How integers lie in bytes.

    Attributes:
        bits: of an integer; as many of them lie in a byte as go in, the first in its lowest bits.
        group: how many numbers of a row share a scale.
        columns: of the matrix; rows of integers are filled up to whole groups.
        middle: the zero point of all groups, where they have none of their own.
    """

    bits: int
    group: int
    columns: int
    middle: int


class PackedWeight(nn.Module):
    """A matrix [rows, columns] of integers. Layers whose weights are tied have the same one.

    Attributes:
        integers: uint8 [rows, bytes]; of 8 bits with one zero point for all, int8.
        scale: [rows, groups], in the type that the matrix had.
        zero_point: uint8 [rows, bytes], packed likewise; None where all groups have the same.
        was: bytes that the matrix had.
        error: the length of what rounding added to the matrix, in parts of the matrix's own (Frobenius).
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, w: QuantizedWeight, columns: int, like: Tensor, error: float) -> None:
        """Packs integers.

        Args:
            w: integers [rows, columns, filled up to whole groups].
            like: the float matrix, for its type and place.
            error: see above.
        """
        super().__init__()
        scheme = w.q.scheme
        rows, filled = w.integers.shape
        plain = scheme.signed and scheme.width == 8
        above = 1 << (scheme.width - 1) if scheme.signed and not plain else 0
        own = scheme.symmetry == "asymmetric"
        self.layout = Layout(scheme.width, scheme.group or filled, columns, above)
        self.was = like.numel() * like.element_size()
        self.error = error
        whole = torch.from_numpy(w.integers)
        integers = whole.contiguous() if plain else _packed((whole.to(torch.int16) + above).to(torch.uint8), self.bits)
        zero = torch.from_numpy(w.q.zero_point).reshape(rows, -1).to(torch.uint8) if own else None
        scale = torch.from_numpy(w.q.scale).reshape(rows, -1)
        self.register_buffer("integers", integers.to(like.device))
        self.register_buffer("scale", scale.to(like.device, like.dtype))
        self.register_buffer("zero_point", None if zero is None else _packed(zero, self.bits).to(like.device))

    @property
    def bits(self) -> int:
        return self.layout.bits

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.integers), self.layout.columns

    @property
    def nbytes(self) -> int:
        return sum(one.numel() * one.element_size() for one in self.buffers())

    @property
    def whole(self) -> Tensor:
        """[rows, columns] in float, made anew each time."""
        return torch.cat([part for _, part in _parts(self.integers, self.scale, self.zero_point, self.layout)])

    def taken(self, rows: Tensor) -> Tensor:
        """[..., columns] in float: some of its rows.

        Args:
            rows: whole numbers [...].
        """
        flat = rows.reshape(-1)
        parts = [None if one is None else one.index_select(0, flat) for one in self._held()]
        assert parts[0] is not None and parts[1] is not None
        return _real(parts[0], parts[1], parts[2], self.layout).reshape(*rows.shape, self.layout.columns)

    def times(self, x: Tensor) -> Tensor:
        """[..., rows]: x times the transposed matrix. A gradient flows to x, and none to the integers.

        Args:
            x: [..., columns].
        """
        found: Tensor = _Product.apply(x, *self._held(), self.layout)  # type: ignore[no-untyped-call]
        return found

    def _held(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.integers, self.scale, self.zero_point

    def extra_repr(self) -> str:
        zero = "" if self.zero_point is None else ", zero points"
        return f"{list(self.shape)}, {self.bits} bits, groups of {self.layout.group}{zero}"


class _Product(torch.autograd.Function):
    """Keeps nothing in float between the two directions: backward, the matrix is computed once more."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, integers: Tensor, scale: Tensor, zero_point: Tensor | None, layout: Layout
    ) -> Tensor:
        ctx.save_for_backward(integers, scale, zero_point)
        ctx.layout, ctx.dtype = layout, x.dtype
        parts = _parts(integers, scale, zero_point, layout)
        return torch.cat([nn.functional.linear(x, part.to(x.dtype)) for _, part in parts], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        found = grad.new_zeros(*grad.shape[:-1], ctx.layout.columns)
        integers, scale, zero_point = ctx.saved_tensors
        for at, part in _parts(integers, scale, zero_point, ctx.layout):
            found += grad[..., at : at + len(part)] @ part.to(grad.dtype)
        return found.to(ctx.dtype), None, None, None, None


def _parts(integers: Tensor, scale: Tensor, zero_point: Tensor | None, layout: Layout) -> Iterator[tuple[int, Tensor]]:
    """Where some rows begin, and they in float."""
    step = max(1, AT_ONCE // layout.columns)
    for at in range(0, len(integers), step):
        rows = slice(at, at + step)
        yield at, _real(integers[rows], scale[rows], None if zero_point is None else zero_point[rows], layout)


def _real(integers: Tensor, scale: Tensor, zero_point: Tensor | None, layout: Layout) -> Tensor:
    """[rows, columns]: scale * (integer - zero point), in the type of the scale. The difference is exact in any."""
    rows, groups = scale.shape
    whole = integers if layout.bits == 8 else _unpacked(integers, groups * layout.group, layout.bits)
    steps = whole.reshape(rows, groups, layout.group).to(scale.dtype)
    if zero_point is None:
        steps -= layout.middle
    else:
        steps -= _unpacked(zero_point, groups, layout.bits).to(scale.dtype)[..., None]
    steps *= scale[..., None]
    return steps.reshape(rows, -1)[:, : layout.columns]


def _packed(integers: Tensor, bits: int) -> Tensor:
    """uint8 [rows, ceil(columns * bits / 8)], of uint8 [rows, columns]."""
    each = 8 // bits
    filled = nn.functional.pad(integers, (0, -integers.shape[1] % each)).reshape(len(integers), -1, each)
    found = torch.zeros_like(filled[..., 0])
    for place in range(each):
        found |= filled[..., place] << (place * bits)
    return found


def _unpacked(integers: Tensor, columns: int, bits: int) -> Tensor:
    """The way back: uint8 [rows, columns]."""
    if bits == 8:
        return integers
    mask = (1 << bits) - 1
    places = [(integers >> at) & mask for at in range(0, 8, bits)]
    return torch.stack(places, dim=-1).reshape(len(integers), -1)[:, :columns]

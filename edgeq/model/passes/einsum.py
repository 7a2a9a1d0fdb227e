"""An einsum of two tensors becomes the product of matrices that it is; the axis of the samples stays where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def spell_out_einsum() -> dict[Any, Callable[..., Any]]:
    """What functionalizing is to take apart beyond in-place operators."""
    return {aten.einsum.default: _einsum}


def _einsum(equation: str, operands: Sequence[torch.Tensor], *, path: Any = None) -> torch.Tensor:
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    left, _, right = inputs.partition(",")
    once = all(len(set(axes)) == len(axes) for axes in (left, right, out))
    # what is in both operands or goes out, and nothing that is summed over by itself
    whole = set(left) ^ set(right) <= set(out) <= set(left) | set(right)
    if arrow and (left + right + out).isalpha() and once and whole and len(operands) == 2:
        return _product(left, right, out, *operands)
    # its own kernel, below the table that this entry is put into
    result: torch.Tensor = aten.einsum.default._op_dk(_COMPOSITE, equation, operands, path=path)
    return result


def _product(left: str, right: str, out: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[shared, rows, inner] x [shared, inner, columns]; several rows need not be one axis if nothing is shared."""
    shared = "".join(axis for axis in left if axis in right and axis in out)
    rows = "".join(axis for axis in left if axis not in right)
    inner = "".join(axis for axis in left if axis in right and axis not in out)
    columns = "".join(axis for axis in right if axis not in left)
    size = dict(zip(right + left, (*b.shape, *a.shape), strict=True))
    alone = not shared and bool(rows)
    first = _arranged(a, left, [*shared, *(rows if alone else [rows]), inner], size)
    second = _arranged(b, right, [*shared, inner, columns], size)
    product: torch.Tensor = aten.matmul.default(first, second)
    axes = shared + rows + columns
    if product.dim() != len(axes):
        product = product.reshape([size[axis] for axis in axes])
    return _permuted(product, axes, out)


def _arranged(tensor: torch.Tensor, axes: str, wanted: Sequence[str], size: dict[str, Any]) -> torch.Tensor:
    """With its axes in this order, several as one where an entry names several, and one of length 1 for none."""
    tensor = _permuted(tensor, axes, "".join(wanted))
    if all(len(entry) == 1 for entry in wanted):
        return tensor
    lengths = []
    for entry in wanted:
        length = 1
        for axis in entry:
            length = length * size[axis]
        lengths.append(length)
    return tensor.reshape(lengths)


def _permuted(tensor: torch.Tensor, axes: str, wanted: str) -> torch.Tensor:
    return tensor if axes == wanted else tensor.permute([axes.index(axis) for axis in wanted])

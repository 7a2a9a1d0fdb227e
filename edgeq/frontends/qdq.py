"""Grids that come with a file, and stay what they are.

In the program they are the operators of PyTorch's own quantization, pairs of quantize and dequantize, which every later
stage reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - it makes the operators known

from edgeq.errors import UnsupportedError
from edgeq.frontends.interpreted import Made

Tensor = torch.Tensor
Known = NDArray[Any]
q = torch.ops.quantized_decomposed

_DTYPES = {"int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16, "uint16": torch.uint16}


class Ends(NamedTuple):
    """The least and the largest integer of a grid, and the type that holds them."""

    low: int
    high: int
    dtype: str

    def narrowed(self, low: int, high: int) -> Ends:
        """After a Clip between the two."""
        return Ends(max(low, self.low), min(high, self.high), self.dtype)


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant that is integers.

    Attributes:
        scale, zero: of one number, one for each index along `axis`, or one for each block along it.
        block: how many values along `axis` share a scale; 0 where all do.
    """

    integers: Known
    scale: Known
    zero: Known | None
    axis: int
    block: int
    ends: Ends

    @property
    def real(self) -> Known:
        """float32. Source: ONNX's DequantizeLinear."""
        scale, zero = (self._spread(one) for one in (self.scale, self.zeros))
        return np.asarray((self.integers.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32))

    @property
    def zeros(self) -> Known:
        return np.zeros(self.scale.shape, np.int64) if self.zero is None else self.zero

    def _spread(self, values: Known) -> Known:
        if values.size == 1:
            return values.reshape(())
        if self.block:
            return np.repeat(values, self.block, self.axis).take(range(self.integers.shape[self.axis]), self.axis)
        return values.reshape([-1 if number == self.axis else 1 for number in range(self.integers.ndim)])

    def permuted(self, order: list[int]) -> Stored:
        """With its axes in another order."""
        blocks = bool(self.block)
        return replace(
            self,
            integers=np.ascontiguousarray(self.integers.transpose(order)),
            scale=self.scale.transpose(order) if blocks else self.scale,
            zero=self.zero.transpose(order) if blocks and self.zero is not None else self.zero,
            axis=order.index(self.axis) if self.integers.ndim else 0,
        )

    def argument(self, turned: bool) -> Made:
        """What a step makes of it.

        Args:
            turned: store the matrix with its axes exchanged, as a linear layer has them, and turn it back.
        """
        own = self.permuted([1, 0]) if turned else self
        shape, axis, (low, high, _), dtype = list(own.integers.shape), own.axis, self.ends, _DTYPES[self.ends.dtype]
        integers = own.integers.astype(self.ends.dtype)
        scale, zero = own.scale.astype(np.float32).reshape(-1), own.zeros.astype(np.int64).reshape(-1)
        if self.block:
            if axis != len(shape) - 1 or shape[-1] % self.block:
                raise _refused("blocks of its weights are no parts of rows")
            axis, integers = 0, integers.reshape(-1, self.block)

        def make(held: Tensor, *by: Tensor) -> Tensor:
            if by:
                real = q.dequantize_per_channel.default(held, *by, axis, low, high, dtype)
            else:
                real = q.dequantize_per_tensor.default(held, float(scale[0]), int(zero[0]), low, high, dtype)
            found: Tensor = real.reshape(shape) if own.block else real
            return found.t() if turned else found

        by = (torch.from_numpy(scale), torch.from_numpy(zero)) if scale.size > 1 else ()
        return Made(make, (torch.from_numpy(integers), *by))


def check_grid(scale: Known, zero: Known | None, axis: int, block: int, shape: tuple[int, ...] | None) -> None:
    """Refuses scales that are none, and as many as there is no place for.

    Args:
        axis: that they are along.
        block: how many values along it share one; 0 where all do.
        shape: of the constant that they are for; None of what flows.

    Raises:
        ValueError: what is wrong.
    """
    if not scale.size or not np.isfinite(scale).all() or (scale < np.finfo(np.float32).tiny).any():
        raise ValueError("a scale is no positive number")
    if zero is not None and zero.size != scale.size:
        raise ValueError("its scale and its zero point differ in shape")
    if block < 0 or (scale.size > 1 and shape is not None and not -len(shape) <= axis < len(shape)):
        raise ValueError("its scales lie along no axis")
    if scale.size > 1 and shape is not None:
        whole = list(shape)
        whole[axis] = -(-whole[axis] // block) if block else whole[axis]
        if list(scale.shape) != (whole if block else [whole[axis]]):
            raise ValueError(f"it has scales of the shape {list(scale.shape)} for values of the shape {list(shape)}")


def ends_of(bits: int, signed: bool) -> Ends:
    """All that so many bits hold."""
    dtype = f"{'' if signed else 'u'}int{max(8, bits)}"
    return Ends(-(1 << bits - 1), (1 << bits - 1) - 1, dtype) if signed else Ends(0, (1 << bits) - 1, dtype)


def quantize(x: Tensor, *, scale: Known, zero: Known | None, ends: Ends) -> Tensor:
    """A value that flows: one scale for all of it."""
    found: Tensor = q.quantize_per_tensor.default(x, *_one(scale, zero), ends.low, ends.high, _DTYPES[ends.dtype])
    return found


def dequantize(integers: Tensor, *, scale: Known, zero: Known | None, ends: Ends) -> Tensor:
    """The same, back."""
    of, dtype = _one(scale, zero), _DTYPES[ends.dtype]
    found: Tensor = q.dequantize_per_tensor.default(integers, *of, ends.low, ends.high, dtype)
    return found


def scaled(integers: Tensor, *, scale: Known, zero: Known | None) -> Tensor:
    """Of an input that is integers."""
    factor, less = _one(scale, zero)
    return (integers.float() - less) * factor


def rounded(x: Known, scale: Known, zero: Known | None, axis: int, ends: Ends) -> Known:
    """Integers of a constant that is stored as floats. Source: ONNX's QuantizeLinear."""
    shape = [-1 if number == axis else 1 for number in range(x.ndim)] if scale.size > 1 else []
    by, add = scale.astype(np.float32).reshape(shape), 0 if zero is None else zero.astype(np.int64).reshape(shape)
    found = np.rint(x.astype(np.float32) / by).astype(np.int64) + add
    return np.asarray(np.clip(found, ends.low, ends.high).astype(ends.dtype))


def _one(scale: Known, zero: Known | None) -> tuple[float, int]:
    if scale.size != 1:
        raise _refused("values that flow have a scale for each channel")
    return float(scale.reshape(-1)[0]), 0 if zero is None else int(zero.reshape(-1)[0])


def _refused(what: str) -> UnsupportedError:
    return UnsupportedError(what, remedy="quantize it in another way, or give the float model")

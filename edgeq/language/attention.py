"""Attention with a cache, of OpenVINO's operators, in the place of the one that its reader of ONNX leaves.

What it leaves has no form in a file. In its place stand rotary embedding (Su et al. 2021, arXiv 2104.09864), the
cache under a Gather by beams, and scaled dot-product attention over fewer heads of keys than of queries, as the CPU
plugin knows them.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from edgeq.errors import UnsupportedError
from edgeq.runtimes.openvino import import_openvino


class Steps:
    """What all layers share: where the new positions are, and which others each of them sees."""

    def __init__(self, model: Any, head_size: int, beams: Any) -> None:
        self._inputs = {name: port for port in model.inputs for name in port.get_names()}
        self._masks: dict[int, Any] = {}
        self._rotations: dict[str, Any] = {}
        self.head_size = head_size
        self.beams = beams

    @cached_property
    def positions(self) -> Any:
        """int64 [new]: behind all that the cache holds."""
        ops, total = import_openvino().opset15, self._total
        new = _size(self._inputs["input_ids"], 1)
        one = ops.constant(np.array(1, np.int64))
        return ops.range(ops.subtract(total, new), total, one, "i64")

    @cached_property
    def _total(self) -> Any:
        return _size(self._inputs["attention_mask"], 1)

    def rotation(self, table: Any) -> Any:
        """[1, 1, new, half]: the new positions' rows of a table of cosines or sines."""
        ops = import_openvino().opset15
        name = table.get_node().get_friendly_name()
        if name not in self._rotations:
            rows = ops.gather(table, self.positions, ops.constant(np.array(0, np.int64)))
            self._rotations[name] = ops.unsqueeze(rows, ops.constant(np.array([0, 1], np.int64)))
        return self._rotations[name]

    def mask(self, window: int) -> Any:
        """float32 [texts, 1, new, total]: nothing is seen that comes later, is masked, or lies before the window."""
        if window not in self._masks:
            ops = import_openvino().opset15
            zero, one = (ops.constant(np.array(value, np.int64)) for value in (0, 1))
            there = ops.range(zero, self._total, one, "i64")
            new = ops.unsqueeze(self.positions, one)
            seen = ops.less_equal(there, new)
            if window > 0:
                begin = ops.subtract(new, ops.constant(np.array(window, np.int64)))
                seen = ops.logical_and(seen, ops.greater(there, begin))
            given = ops.not_equal(self._inputs["attention_mask"], zero)
            given = ops.unsqueeze(given, ops.constant(np.array([1, 2], np.int64)))
            seen = ops.logical_and(ops.unsqueeze(seen, ops.constant(np.array([0, 1], np.int64))), given)
            nothing, least = (ops.constant(np.array(value, np.float32)) for value in (0, np.finfo(np.float32).min))
            self._masks[window] = ops.select(seen, nothing, least)
        return self._masks[window]


def attention(op: Any, steps: Steps) -> None:
    """Replaces a GroupQueryAttention.

    Raises:
        UnsupportedError: it does something that is not written here.
    """
    ops = import_openvino().opset15
    told = op.get_attributes()
    odd = [name for name in ("smooth_softmax", "sliding_window_cache", "rotary_interleaved") if told.get(name)]
    if odd:
        raise UnsupportedError(
            f"its attention has {odd[0]}", where=op.get_friendly_name(), remedy="choose another format for this model"
        )
    q, k, v, past_k, past_v = (op.input(at).get_source_output() for at in range(5))
    heads, kv_heads = int(told["num_heads"]), int(told["kv_num_heads"])
    if told["do_rotary"]:
        cos, sin = (steps.rotation(op.input(at).get_source_output()) for at in (7, 8))
        q, k = (_rotated(x, cos, sin, steps.head_size) for x in (q, k))
    keys, values = (_cached(past, x, steps.beams) for past, x in ((past_k, k), (past_v, v)))
    scale = float(told["scale"]) or 1 / math.sqrt(steps.head_size)
    found = ops.scaled_dot_product_attention(
        q,
        _repeated(keys, heads // kv_heads, heads, steps.head_size),
        _repeated(values, heads // kv_heads, heads, steps.head_size),
        steps.mask(int(told["local_window_size"])),
        ops.constant(np.array(scale, np.float32)),
    )
    rows = ops.transpose(found, ops.constant(np.array([0, 2, 1, 3], np.int64)))
    flat = ops.reshape(rows, ops.constant(np.array([0, 0, heads * steps.head_size], np.int64)), special_zero=True)
    flat.set_friendly_name(f"{op.get_friendly_name()}.attention")
    for at, new in enumerate((flat, keys, values)):
        new.output(0).set_names(op.output(at).get_names())
        op.output(at).replace(new.output(0))


def _rotated(x: Any, cos: Any, sin: Any, size: int) -> Any:
    """Each pair of a head's numbers turned by its position; numbers behind the table's are left."""
    ops = import_openvino().opset15
    axis = ops.constant(np.array(3, np.int64))
    half = cos.get_output_partial_shape(0)[3].get_length()
    widths = [half, half, *([size - 2 * half] if size > 2 * half else [])]
    parts = ops.variadic_split(x, axis, ops.constant(np.array(widths, np.int64))).outputs()
    first = ops.subtract(ops.multiply(parts[0], cos), ops.multiply(parts[1], sin))
    second = ops.add(ops.multiply(parts[1], cos), ops.multiply(parts[0], sin))
    return ops.concat([first, second, *parts[2:]], 3)


def _cached(past: Any, x: Any, beams: Any) -> Any:
    ops = import_openvino().opset15
    return ops.concat([ops.gather(past, beams, ops.constant(np.array(0, np.int64))), x], 2)


def _repeated(x: Any, times: int, heads: int, size: int) -> Any:
    """Each head of keys or values for all the heads of queries that share it."""
    if times == 1:
        return x
    ops = import_openvino().opset15
    apart = ops.unsqueeze(x, ops.constant(np.array(2, np.int64)))
    shape = ops.constant(np.array([1, 1, times, 1, 1], np.int64))
    wide = ops.broadcast(apart, shape, broadcast_spec="BIDIRECTIONAL")
    return ops.reshape(wide, ops.constant(np.array([0, heads, -1, size], np.int64)), special_zero=True)


def _size(value: Any, axis: int) -> Any:
    """int64 []: of an axis."""
    ops = import_openvino().opset15
    at, zero = (ops.constant(np.array(number, np.int64)) for number in (axis, 0))
    return ops.gather(ops.shape_of(value, "i64"), at, zero)

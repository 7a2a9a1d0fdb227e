"""Attention of any number of dimensions for PyTorch's ONNX exporter, which translates it with batch and heads alone."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import opset21 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`aten::scaled_dot_product_attention`, traced: [..., L, E], [..., S, E], [..., S, V] to [..., L, V].

    Axes of one are put in front, so that a mask of any fewer axes applies as it did; of more than four, which no
    network here has, the exporter says that it cannot.
    """
    missing = 4 - len(query.shape)
    settings = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if missing <= 0:
        return aten_scaled_dot_product_attention(query, key, value, attn_mask, **settings)
    front: Any = op.Constant(value_ints=list(range(missing)))
    raised = [op.Unsqueeze(x, front) for x in (query, key, value)]
    for new, old in zip(raised, (query, key, value), strict=True):
        new.shape, new.dtype = ir.Shape([1] * missing + list(old.shape)), old.dtype
    return op.Squeeze(aten_scaled_dot_product_attention(*raised, attn_mask, **settings), front)

"""LSTM, GRU and RNN, in the order of gates that PyTorch has."""

from __future__ import annotations

from typing import Any

import torch

from edgeq.frontends.onnx.operators.node import Node, Operator, Table, refused

Tensor = torch.Tensor

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Of the standard's (input, output, forget, cell; update, reset, hidden), in PyTorch's order."""


def _recurrent(
    node: Node,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> Any:
    """Source: the standard's LSTM, GRU and RNN; x is [steps, batch, inputs]."""
    _check(node, lengths, peepholes)
    if node.get("layout", 0):
        x = x.transpose(0, 1)
    directions, size = weight.shape[0], node.get("hidden_size", recurrence.shape[2])
    if hidden is None:
        hidden = torch.zeros([directions, x.shape[1], size], dtype=x.dtype)
    elif node.get("layout", 0):
        hidden = hidden.transpose(0, 1)
    flat: list[Tensor] = []
    for number in range(directions):
        flat += [_ordered(node, weight[number], size), _ordered(node, recurrence[number], size)]
        if bias is not None:
            flat += [_ordered(node, part, size) for part in bias[number].chunk(2)]
    backwards = node.get("direction", "forward") == "reverse"
    x = x.flip(0) if backwards else x
    rest = (bias is not None, 1, 0.0, False, directions == 2, False)
    if node.op == "LSTM":
        if cell is None:
            cell = torch.zeros_like(hidden)
        elif node.get("layout", 0):
            cell = cell.transpose(0, 1)
        y, *last = torch.lstm(x, [hidden, cell], flat, *rest)
    else:
        function = {"GRU": torch.gru, "RNN": torch.rnn_tanh}[node.op]
        if node.op == "RNN" and node.get("activations", ["Tanh"])[0].lower() == "relu":
            function = torch.rnn_relu
        y, *last = function(x, hidden, flat, *rest)
    y = y.flip(0) if backwards else y
    y = y.reshape(y.shape[0], y.shape[1], directions, size).permute(0, 2, 1, 3)
    if node.get("layout", 0):
        return (y.permute(2, 0, 1, 3), *(one.transpose(0, 1) for one in last))
    return (y, *last)


def _ordered(node: Node, values: Tensor, size: int) -> Tensor:
    parts = torch.split(values, size)
    return torch.cat([parts[number] for number in _GATES[node.op]])


def _check(node: Node, lengths: Tensor | None, peepholes: Tensor | None) -> None:
    usual = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}[node.op]
    found = [name.lower() for name in node.get("activations", usual)]
    both = len(found) // len(usual)
    if found != usual * both and not (node.op == "RNN" and set(found) == {"relu"}):
        raise refused(f"its activations are {', '.join(found)}")
    if lengths is not None:
        raise refused("its sequences have lengths of their own")
    if peepholes is not None:
        raise refused("it has peepholes")
    if node.get("clip") is not None or node.get("input_forget", 0):
        raise refused("it clips its gates, or couples them")
    if node.op == "GRU" and not node.get("linear_before_reset", 0):
        raise refused("it resets before its product (linear_before_reset=0)")


RECURRENT: Table = {name: Operator(_recurrent) for name in _GATES}

"""Functions that networks have behind their layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgeq.frontends.onnx.operators.node import Node, Operator, Table, axis

Tensor = torch.Tensor


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    channels = slope.numel()
    if channels == 1 or (x.dim() > 1 and channels == x.shape[1] and slope.shape[0] == channels):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


def _softmax(node: Node, x: Tensor) -> Tensor:
    function = torch.softmax if node.op == "Softmax" else torch.log_softmax
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    first = axis(node.get("axis", 1), x.dim())
    if first == x.dim() - 1:
        return function(x, first)
    return function(x.flatten(first), -1).reshape(x.shape)


def _hardmax(node: Node, x: Tensor) -> Tensor:
    along = node.get("axis", -1 if node.opset >= 13 else 1)
    return F.one_hot(x.argmax(along), x.shape[along]).movedim(-1, along).to(x.dtype)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    below = torch.clamp(alpha * (torch.exp(x) - 1), max=0)
    return torch.mul(torch.clamp(x, min=0) + below, gamma)


def _celu(node: Node, x: Tensor) -> Tensor:
    return F.celu(x, node.get("alpha", 1.0))


def _thresholded(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, 0.0)


def _swish(node: Node, x: Tensor) -> Tensor:
    alpha = node.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def _shrink(node: Node, x: Tensor) -> Tensor:
    lambd, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0.0))


ACTIVATIONS: Table = {
    "Relu": Operator(lambda node, x: torch.relu(x)), "Sigmoid": Operator(lambda node, x: torch.sigmoid(x)),
    "Tanh": Operator(lambda node, x: torch.tanh(x)), "Softplus": Operator(lambda node, x: F.softplus(x)),
    "Softsign": Operator(lambda node, x: F.softsign(x)), "HardSwish": Operator(lambda node, x: F.hardswish(x)),
    "Mish": Operator(lambda node, x: F.mish(x)), "Gelu": Operator(_gelu), "Selu": Operator(_selu),
    "LeakyRelu": Operator(lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01))),
    "Elu": Operator(lambda node, x: F.elu(x, node.get("alpha", 1.0))), "Celu": Operator(_celu),
    "PRelu": Operator(_prelu), "HardSigmoid": Operator(_hard_sigmoid), "Softmax": Operator(_softmax),
    "LogSoftmax": Operator(_softmax), "Hardmax": Operator(_hardmax), "ThresholdedRelu": Operator(_thresholded),
    "Swish": Operator(_swish), "Shrink": Operator(_shrink),
}  # fmt: skip

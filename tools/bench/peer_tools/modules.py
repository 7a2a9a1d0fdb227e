"""An exported program, which holds operators, as a network of PyTorch's layers, for tools that replace layers.

What is not in `LAYERS` or `FUNCTIONS` is an error, as is a network that does not answer as the program does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from peer_tools.job import Sample

aten = torch.ops.aten


def as_modules(program: torch.export.ExportedProgram, sample: Sample) -> fx.GraphModule:
    """The network, in evaluation mode.

    Args:
        sample: that both are run on.

    Raises:
        NotImplementedError: an operator is none of those below.
        ValueError: the network gives something else than the program.
    """
    source = program.module(check_guards=False)
    root, graph, there = nn.Module(), fx.Graph(), dict[fx.Node, Any]()
    for node in source.graph.nodes:
        if node.op == "get_attr":
            there[node] = operator.attrgetter(node.target)(source)
        elif node.op == "placeholder":
            there[node] = graph.placeholder(node.name)
        elif node.op == "output":
            answers = fx.map_arg(node.args[0], there.__getitem__)
            graph.output(answers[0] if len(answers) == 1 else answers)
        elif node.target is not aten.sym_size.int:  # sizes that are not known are those of the batch: see _reshape
            there[node] = _translated(node, there, root, graph)
    module = fx.GraphModule(root, graph).eval()
    inputs = [torch.from_numpy(array) for array in sample.values()]
    with torch.no_grad():
        wanted, found = source(*inputs), module(*inputs)
    if not torch.allclose(wanted[0] if isinstance(wanted, tuple) else wanted, found, rtol=1e-3, atol=1e-4):
        raise ValueError("the network of layers gives something else than the program")
    return module


def weighted(module: nn.Module) -> list[str]:
    """The names of the layers with weights, in order."""
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def _translated(node: fx.Node, there: Mapping[fx.Node, Any], root: nn.Module, graph: fx.Graph) -> Any:
    arguments = node.target._schema.arguments
    names = [argument.name for argument in arguments]
    given = {a.name: a.default_value for a in arguments} | dict(zip(names, node.args, strict=False)) | node.kwargs
    args = {name: fx.map_arg(value, lambda n: there.get(n, -1)) for name, value in given.items()}
    if node.target in LAYERS:
        root.add_module(node.name, LAYERS[node.target](args))
        return graph.call_module(node.name, (args[names[0]],))
    if node.target in FUNCTIONS:
        return graph.call_function(*FUNCTIONS[node.target](args, node))
    if node.target is aten.dropout.default:
        return args["input"]
    raise NotImplementedError(f"{node.target} is not translated to a layer of PyTorch's")


def _conv2d(args: Mapping[str, Any]) -> nn.Module:
    weight, bias, groups = args["weight"], args["bias"], args["groups"]
    sizes = {name: tuple(args[name]) for name in ("stride", "padding", "dilation")}
    outputs, inputs, *kernel = weight.shape
    layer = nn.Conv2d(inputs * groups, outputs, tuple(kernel), groups=groups, bias=bias is not None, **sizes)
    return _with(layer, weight=weight, bias=bias)


def _linear(args: Mapping[str, Any]) -> nn.Module:
    weight, bias = args["weight"], args["bias"]
    return _with(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight=weight, bias=bias)


def _batch_norm(args: Mapping[str, Any]) -> nn.Module:
    layer = nn.BatchNorm2d(len(args["running_mean"]), eps=args["eps"])
    held = ("weight", "bias", "running_mean", "running_var")
    return _with(layer, **{name: args[name] for name in held})


def _with(layer: nn.Module, **tensors: torch.Tensor | None) -> nn.Module:
    state = {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None}
    layer.load_state_dict(state, strict=False)
    return layer


def _hardtanh(args: Mapping[str, Any]) -> nn.Module:
    low, high = args["min_val"], args["max_val"]
    return nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high)


def _avg_pool2d(args: Mapping[str, Any]) -> nn.Module:
    return nn.AvgPool2d(tuple(args["kernel_size"]), tuple(args["stride"] or args["kernel_size"]))


def _reshape(args: Mapping[str, Any], node: fx.Node) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    sizes = tuple(int(size) for size in node.meta["val"].shape[1:])
    return (torch.flatten, (args["self"], 1)) if len(sizes) == 1 else (torch.reshape, (args["self"], (-1, *sizes)))


def _slice(args: Mapping[str, Any], node: fx.Node) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    part = slice(args["start"], args["end"], args["step"])
    return operator.getitem, (args["self"], (*[slice(None)] * args["dim"], part))


LAYERS: dict[Any, Callable[[Mapping[str, Any]], nn.Module]] = {
    aten.conv2d.default: _conv2d,
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.relu.default: lambda _: nn.ReLU(),
    aten.hardtanh.default: _hardtanh,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.adaptive_avg_pool2d.default: lambda args: nn.AdaptiveAvgPool2d(tuple(args["output_size"])),
}

FUNCTIONS: dict[Any, Callable[[Mapping[str, Any], fx.Node], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    aten.add.Tensor: lambda args, _: (torch.add, (args["self"], args["other"])),
    aten.add_.Tensor: lambda args, _: (torch.add, (args["self"], args["other"])),
    aten.mean.dim: lambda args, _: (torch.mean, (args["self"], args["dim"], args["keepdim"])),
    aten.pad.default: lambda args, _: (nn.functional.pad, (args["self"], tuple(args["pad"]))),
    aten.slice.Tensor: _slice,
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.flatten.using_ints: _reshape,
}

"""Takes rounding out of a program that was quantized elsewhere, and tells how it rounded.

Such programs say it in operators: a `quantize` behind a value and a `dequantize` in front of each of its readers, and a
`dequantize` behind weights that are stored as integers. Source: PyTorch's "PT2E" quantization, which writes them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - it makes the operators known
from torch.fx import Node

from edgeq.errors import UnsupportedError
from edgeq.model.grids import Grids, Rounded
from edgeq.model.passes.editor import Editor
from edgeq.numerics.grid import Grid

aten, q = torch.ops.aten, torch.ops.quantized_decomposed

_QUANTIZE = (q.quantize_per_tensor.default, q.quantize_per_tensor.tensor)
_DEQUANTIZE = (q.dequantize_per_tensor.default, q.dequantize_per_tensor.tensor)
_DEQUANTIZE_CHANNELS = q.dequantize_per_channel.default
_RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


def take_weights(editor: Editor) -> dict[str, Rounded]:
    """Puts a float weight in place of each `dequantize` of stored integers.

    Returns:
        By the name of the new parameter.
    """
    found: dict[str, Rounded] = {}
    for node in list(editor.graph.nodes):
        stored = editor.value(node.args[0]) if node.target in (*_DEQUANTIZE, _DEQUANTIZE_CHANNELS) else None
        if stored is None:
            continue
        integers, grid, last = stored.numpy(), _grid(editor, node), node
        users = list(node.users)
        if grid.axis == 0 and integers.ndim == 2 and len(users) == 1 and users[0].target in _RESHAPES:
            (last,) = users  # rows of it share a scale: groups
            grid, integers = replace(grid, group=integers.shape[1]), integers.reshape(tuple(last.meta["val"].shape))
        rounded = Rounded(integers, grid)
        name = _name(editor, node, last)
        new = editor.store(name, torch.from_numpy(rounded.real), last)
        last.replace_all_uses_with(new)
        found[name] = rounded
    editor.graph.eliminate_dead_code()
    return found


def _name(editor: Editor, node: Node, last: Node) -> str:
    """What the float weight is called: as the integers are, or after the module that reads it, where the integers have
    no module of their own."""
    name = editor.targets[node.args[0].name]  # type: ignore[union-attr]
    stack = next(iter(last.users)).meta.get("nn_module_stack", {}).values()
    path = next(reversed(stack), ("", None))[0] if stack else ""
    named = f"{path}.weight" if path and "." not in name else name
    # what convert_pt2e leaves of the float weights is read by nobody
    taken = {editor.targets.get(node.name) for node in editor.graph.nodes if node.op == "placeholder" and node.users}
    return name if named in taken else named


def take_grids(editor: Editor, weights: dict[str, Rounded], where: str) -> Grids | None:
    """Takes the pairs of `quantize` and `dequantize` out, once all else is in its form.

    Args:
        weights: as they were when they were taken.

    Returns:
        None where nothing rounds.

    Raises:
        UnsupportedError: it rounds in a way that this cannot tell.
    """
    reads: dict[tuple[str, str], tuple[Grid, ...]] = {}
    for node in list(editor.graph.nodes):
        _refuse_others(node, where)
        for read in node.all_input_nodes if node.target not in (*_QUANTIZE, *_DEQUANTIZE) else ():
            source, grids = _unrounded(editor, read)
            if grids:
                node.replace_input_with(read, source)
                if editor.value(source) is None:
                    reads[node.name, source.name] = tuple(grids)
    editor.graph.eliminate_dead_code()
    _refuse_changed(editor, weights, where)
    return Grids(weights, reads) if weights or reads else None


def _unrounded(editor: Editor, node: Node) -> tuple[Node, list[Grid]]:
    """What a reader reads before it is rounded, and to which grids it is, the last one last."""
    grids: list[Grid] = []
    while node.target in _DEQUANTIZE:
        stored = node.args[0]
        if not isinstance(stored, Node) or stored.target not in _QUANTIZE:
            break
        grids.insert(0, _grid(editor, stored))
        source = stored.args[0]
        assert isinstance(source, Node)
        node = source
    return node, grids


def _grid(editor: Editor, node: Node) -> Grid:
    """The grid of a `quantize` or `dequantize`."""
    arguments: tuple[Any, ...] = node.args
    scale = _numbers(editor, arguments[1], np.float32)
    zero = np.broadcast_to(_numbers(editor, arguments[2], np.int32), scale.shape)
    if node.target is _DEQUANTIZE_CHANNELS:
        axis, low, high = arguments[3:6]
        return Grid(scale, zero, low, high, axis)
    return Grid(scale.reshape(()), zero.reshape(()), *arguments[3:5])


def _numbers(editor: Editor, argument: Any, dtype: type) -> Any:
    """Scales or zero points: numbers of the graph, constants of the program, or none, which are zeros."""
    if not isinstance(argument, Node):
        return np.array(argument or 0, dtype)
    held = editor.value(argument)
    if held is None:
        raise UnsupportedError(
            "it rounds by scales that are found while it runs",
            remedy="quantize it statically, or give the float model and let edgeq quantize it",
            where=argument.name,
        )
    return held.detach().numpy().astype(dtype)


def _refuse_others(node: Node, where: str) -> None:
    target = node.target
    strange = getattr(target, "namespace", "") == "quantized_decomposed" and target not in (*_QUANTIZE, *_DEQUANTIZE)
    integers = [r for r in node.all_input_nodes if r.target in _QUANTIZE and target not in _DEQUANTIZE]
    if strange or integers:
        what = str(target) if strange else f"{target} on integers"
        raise UnsupportedError(
            f"it holds {what}",
            remedy="give pairs of quantize and dequantize, as convert_pt2e writes them, or the float model",
            where=f"{where}: {node.name}" if where else node.name,
        )


def _refuse_changed(editor: Editor, weights: dict[str, Rounded], where: str) -> None:
    for name, rounded in weights.items():
        held = editor.state.get(name)
        if held is None or not np.array_equal(held.detach().numpy(), rounded.real):
            raise UnsupportedError(
                "a weight that is stored as integers is changed before it is used",
                remedy="fold batch norms before quantizing, as prepare_pt2e does, and give each layer its own weight",
                where=f"{where}: {name}" if where else name,
            )

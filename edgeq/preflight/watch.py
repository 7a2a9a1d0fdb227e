"""A copy of an artefact that also gives what its layers write as integers; one file for each format says how."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray


class Layer(NamedTuple):
    """A layer on integers that is watched.

    Attributes:
        name: of the layer in the file.
        writes: the output of the copy that holds what it writes; `reads`: likewise, None where that is not known.
        weight: int8 or uint8 [O, I / groups, ...], None where it has none, or where its sums are not counted.
        input_zero: the zero point of what is read, which stands for what is padded.
        stride, padding, dilation: of the kernel's axes, padding at both ends of each; empty for a matrix product.
            Padding may also be "same_upper" or "same_lower", by the size of what is read: for outputs as many as steps
            fit into it, with the odd one at the end or at the start.
        apart: the kernels pair channels of one place of the kernel alone, and an odd one with nothing.
    """

    name: str
    writes: str
    reads: str | None = None
    weight: NDArray[Any] | None = None
    input_zero: int = 0
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] | str = ()
    dilation: tuple[int, ...] = ()
    apart: bool = False


def _later(name: str) -> Callable[[Path, Path], list[Layer]]:
    """The function of a file, both of that name; imported when it is called, since its packages may be missing."""

    def watch(path: Path, copy: Path) -> list[Layer]:
        layers: list[Layer] = getattr(import_module(f"edgeq.preflight.{name}"), name)(path, copy)
        return layers

    return watch


WATCH: dict[str, Callable[[Path, Path], list[Layer]]] = {
    "onnx": _later("watch_onnx"),
    "openvino": _later("watch_openvino"),
    "tflite": _later("watch_tflite"),
}
"""By format: from a file and the path of its copy, the layers in the order in which they run."""

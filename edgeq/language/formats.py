"""The file formats of decoders: how each is written and read back. A format is an entry here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeq.language import onnx_decoder, openvino_decoder
from edgeq.language.decoder import Decoder
from edgeq.language.onnx_decoder import Stored
from edgeq.language.rounding import Rounded


class Format(NamedTuple):
    """A file format.

    Attributes:
        write: a decoder with the weights that were rounded; with none of them, the float model. Gives the file that a
            runtime loads, the others beside it.
        loads: the name of that file.
        files: names of all that `write` leaves.
        read_back: what the written file holds, by initializer, read from it alone.
    """

    write: Callable[[Decoder, Rounded, Path], Path]
    loads: str
    files: tuple[str, ...]
    read_back: Callable[[Path], dict[str, Stored]]


FORMATS: dict[str, Format] = {
    "onnx": Format(onnx_decoder.write_onnx, "model.onnx", ("model.onnx", "model.onnx.data"), onnx_decoder.read_back),
    "openvino": Format(
        openvino_decoder.write_openvino,
        "openvino_model.xml",
        ("openvino_model.xml", "openvino_model.bin"),
        openvino_decoder.read_back,
    ),
}


def differing(written: dict[str, Stored], rounded: Rounded) -> list[str]:
    """Names of matrices that a file does not hold as they were rounded, to the bit."""
    return [
        name for name, w in rounded.weights.items() if name not in written or not _same(written[name], rounded, name)
    ]


def _same(stored: Stored, rounded: Rounded, name: str) -> bool:
    w = rounded.weights[name]
    above = 1 << (w.q.scheme.width - 1) if w.q.scheme.signed else 0
    return (
        stored.bits == w.q.scheme.width
        and np.array_equal(stored.integers, w.integers.astype(np.int16) + above)
        and np.array_equal(stored.scale.reshape(-1), w.q.scale)
        and np.array_equal(stored.zero_point.reshape(-1), w.q.zero_point + above)
    )

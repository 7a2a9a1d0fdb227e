"""What each format's own tool makes of an exported program, with the options that its guide gives for 8 bits.

    pip install nncf ai-edge-quantizer
    python tools/bench/peers.py onnx|openvino|tflite FOLDER OUT [--transformer]

FOLDER holds `model.pt2` and `calib.npz`. Called by wild.py, in a process of its own: some of these end it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Sample = dict[str, NDArray[Any]]


def samples(folder: Path) -> Iterator[Sample]:
    """Calibration samples, one at a time, by input name."""
    with np.load(folder / "calib.npz") as data:
        arrays = {name: data[name] for name in data.files}
    yield from ({k: v[i : i + 1] for k, v in arrays.items()} for i in range(len(next(iter(arrays.values())))))


def float_onnx(folder: Path) -> Path:
    """The program as PyTorch's own exporter writes it."""
    path = folder / "float.onnx"
    program = torch.export.load(folder / "model.pt2")
    names = list(next(samples(folder)))
    torch.onnx.export(program, (), path, input_names=names, dynamo=True, external_data=False)
    return path


def onnxruntime(folder: Path, out: Path, transformer: bool) -> None:
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = folder / "ready.onnx"
    quant_pre_process(float_onnx(folder), ready, skip_symbolic_shape=True)

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        rows = samples(folder)

        def get_next(self) -> Sample | None:
            return next(self.rows, None)

    q.quantize_static(ready, out, Reader(), per_channel=True, activation_type=q.QuantType.QUInt8)


def nncf(folder: Path, out: Path, transformer: bool) -> None:
    import nncf as tool
    import openvino

    model = openvino.convert_model(float_onnx(folder))
    kind = tool.ModelType.TRANSFORMER if transformer else None
    openvino.save_model(tool.quantize(model, tool.Dataset(list(samples(folder))), model_type=kind), out)


class _Whole(torch.nn.Module):
    """A program as a module that may be told to be in evaluation mode, as this converter does."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.inner = program.module()

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.inner(*inputs)


def ai_edge_quantizer(folder: Path, out: Path, transformer: bool) -> None:
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    program = torch.export.load(folder / "model.pt2")
    rows = list(samples(folder))
    example = tuple(torch.from_numpy(v) for v in rows[0].values())
    whole = folder / "float.tflite"
    litert_torch.convert(_Whole(program), example).export(str(whole))
    tool = quantizer.Quantizer(str(whole), recipe.static_wi8_ai8())
    narrow = {np.dtype(np.int64): np.int32}  # what the converter makes of such inputs
    data = [{f"args_{i}": v.astype(narrow.get(v.dtype, v.dtype)) for i, v in enumerate(row.values())} for row in rows]
    tool.quantize(tool.calibrate({"serving_default": data})).export_model(str(out))


TOOLS: dict[str, Callable[[Path, Path, bool], None]] = {
    "onnx": onnxruntime, "openvino": nncf, "tflite": ai_edge_quantizer
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("format", choices=TOOLS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--transformer", action="store_true")
    asked = parser.parse_args()
    TOOLS[asked.format](asked.folder, asked.out, asked.transformer)


if __name__ == "__main__":
    main()

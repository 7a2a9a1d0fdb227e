"""What OpenVINO files leave out: operators that change no number, text that nobody reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import small_models as small

from edgeq.export.artifact import Exporter

openvino = pytest.importorskip("openvino")


def operators(path: Path) -> Counter[str]:
    return Counter(op.get_type_name() for op in openvino.Core().read_model(path).get_ops())


@pytest.mark.parametrize("name", ["depthwise", "grouped", "mlp", "split-shuffle"])
def test_layers_on_integers_store_nothing_idle(name: str) -> None:
    """A conversion and a product with the scales for each layer; no zero points, no weights that are split anew."""
    made = small.written(name, "openvino")
    found = operators(made.path)
    layers = len(made.quantized.weights)
    assert found["Convert"] == found["Multiply"] == layers > 0
    assert found["Subtract"] == found["ShapeOf"] == found["VariadicSplit"] == 0
    assert "\n" not in made.path.read_text(encoding="utf-8").split("?>", 1)[1].strip()


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    """Although OpenVINO's own names count on."""
    made = small.written("grouped", "openvino")
    again = Exporter(small.load_anew("grouped"), tmp_path).write(made.quantized, tmp_path)
    for path in again:
        assert path.read_bytes() == made.path.with_name(path.name).read_bytes()

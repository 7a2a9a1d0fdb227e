"""NVIDIA's parser and compiler on files that hold TensorRT's documented rules, and on such as break them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from test_tensorrt_rules import (
    Break,
    asymmetric,
    computed_scale,
    few_scales,
    in_every_call,
    integer_bias,
    mixed,
    negative_scale,
    right,
    sixteen_bits,
    uneven_blocks,
)

from edgeq.cli.app import run
from edgeq.runtimes import NOT_RUN

pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'edgeq[tensorrt]'")


def write(tmp_path: Path, breaks: Break | None = None) -> Path:
    model = right()
    if breaks is not None:
        breaks(model)
    onnx.save(model, tmp_path / "file.onnx")
    return tmp_path / "file.onnx"


def test_it_compiles_a_file_that_holds_the_rules_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    found = NOT_RUN["tensorrt"].hold(path)
    assert found.breaches == [] and "TensorRT for RTX" in found.compiled_by and "8.6" in found.compiled_by
    assert run(["inspect", str(path), "--target", "nvidia-gpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not executed; compiled by TensorRT for RTX" in said


@pytest.mark.parametrize(
    ("breaks", "node"),
    [
        (asymmetric, "image/quantize"),
        (negative_scale, "inner/weight"),
        (few_scales, "inner/weight"),
        (uneven_blocks, "few/weight"),
        (integer_bias, "inner/bias"),
        (in_every_call, "rows/rounded"),
        (sixteen_bits, ""),
        (mixed, ""),
        (computed_scale, ""),  # the compiler crashes on it, which is told like any other refusal
    ],
)
def test_it_refuses_what_the_rules_refuse(breaks: Break, node: str, tmp_path: Path) -> None:
    found = NOT_RUN["tensorrt"].hold(write(tmp_path, breaks))
    (refused,) = [breach for breach in found.breaches if breach.rule == "compiles"]
    assert refused.node == node and refused.cause and refused.refused
    assert {breach.rule for breach in found.breaches} - {"compiles"}, "the documented rules say so too"
    assert found.compiled_by == ""


def test_a_free_batch_is_one(tmp_path: Path) -> None:
    def free(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"

    assert NOT_RUN["tensorrt"].hold(write(tmp_path, free)).compiled_by


def test_a_file_is_refused_by_the_compiler_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, lambda model: model.graph.node[-1].__setattr__("op_type", "NoSuchOperator"))
    assert run(["inspect", str(path), "--target", "nvidia-gpu", "--json"]) == 3
    (target,) = json.loads(capsys.readouterr().out)["targets"]
    assert "NoSuchOperator" in " ".join(
        breach["cause"] for breach in target["breaches"] if breach["rule"] == "compiles"
    )

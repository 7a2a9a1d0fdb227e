"""`edgeq deploy`, `plan`, `generate` and `verify` on the folder of a language model, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_text import TEXT

from edgeq.cli import app

pytest.importorskip("openvino")
EIGHT = ["--weights", "w8g32", "--words", "w8g64"]  # random weights do not bear fewer
TARGET = ["--target", "x86-avx512", "--device", "local"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, Any, str]:
    """Exit code, the JSON document, and what stands on standard error."""
    capsys.readouterr()
    code = app.run([*map(str, arguments), "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out) if told.out.strip() else None, told.err


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "calib.txt").write_text(TEXT)
    np.save(folder / "eval.npy", np.random.default_rng(5).integers(3, 200, (12, 40)))
    return ["--calib", str(folder / "calib.txt"), "--eval", str(folder / "eval.npy")]


@pytest.fixture(scope="module")
def built(
    folders: dict[str, Path], texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Both formats, and their report."""
    out = tmp_path_factory.mktemp("built") / "build"
    rest = ["--format", "all", *EIGHT, "--max-drop", "50%", "--allow-slower", "--out", str(out), "--quiet"]
    code = app.run(["deploy", str(folders["tied"]), *TARGET, *texts, *rest])
    report = json.loads((out / "report.json").read_text())
    assert code == 0, report["verdict_text"]
    return out, report


def test_the_report_tells_what_language_models_are_judged_by(built: tuple[Path, dict[str, Any]]) -> None:
    out, report = built
    assert {one["format"] for one in report["builds"]} == {"onnx", "openvino"}
    for build in report["builds"]:
        accuracy, decoding = build["accuracy"], build["decoding"]
        assert accuracy["metric"] == "perplexity"
        assert not accuracy["higher_is_better"]
        assert accuracy["drop"]["value"] == pytest.approx(accuracy["score"] - accuracy["float_score"])
        assert accuracy["drop"]["low"] <= accuracy["drop"]["value"] <= accuracy["drop"]["high"]
        assert build["size_bytes"] == sum((out / name).stat().st_size for name in build["files"])
        assert build["size_bytes"] < build["float_size_bytes"]
        assert decoding["token"]["p50"] > 0 and decoding["first_token"]["p50"] > 0
        assert build["speed"]["baselines"][0]["name"] == "float32"
        assert build["audit"]["tensors_checked"] > 0 and build["audit"]["float_operators"] == []
        assert {"tokenizer.json", "genai_config.json"} <= set(build["sources"])
    assert "tokens a second" in (out / "report.html").read_text()


def test_the_same_folder_gives_the_same_artefact(
    built: tuple[Path, dict[str, Any]], folders: dict[str, Path], texts: list[str], tmp_path: Path
) -> None:
    rest = ["--format", "onnx", *EIGHT, "--allow-slower", "--out", str(tmp_path / "again"), "--quiet"]
    assert app.run(["deploy", str(folders["tied"]), *TARGET, *texts, *rest]) == 0
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "again" / name).read_bytes() == (built[0] / name).read_bytes()


def test_of_two_formats_one_is_kept_whole(
    folders: dict[str, Path], texts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Both have the tokenizer beside them."""
    rest = ["--method", "nearest", *EIGHT, "--allow-slower", "--out", tmp_path / "build"]
    code, report, _ = run(capsys, "deploy", folders["tied"], *TARGET, *texts, *rest)
    assert code == 0 and len(report["builds"]) == 2
    chosen, other = sorted(report["builds"], key=lambda one: one["format"] != report["chosen"])
    kept = {file.name for file in (tmp_path / "build").iterdir()}
    assert {*chosen["files"], *chosen["sources"]} <= kept and not kept & set(other["files"])
    assert run(capsys, "verify", tmp_path / "build")[0] == 0


def test_a_build_answers_prompts(
    built: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, found, _ = run(capsys, "generate", built[0], "the cat", "--most", "6")
    assert code == 0
    assert len(found["tokens"]) == 6 or found["stopped"]
    assert found["format"] == built[1]["chosen"]
    code, near, _ = run(capsys, "generate", built[0], "cat" * 100, "--most", "1000")  # 256 tokens are the context
    assert code == 0 and (near["stopped"] or len(near["tokens"]) < 256)
    capsys.readouterr()
    assert app.run(["generate", str(built[0]), "the cat", "--most", "6"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == found["text"]
    for arguments, told in (
        ([built[0], ""], "the prompt is empty"),
        ([built[0], "the cat sat " * 300], "and the model takes 256 with the answer"),
        ([built[0], "hello", "--chat"], "no template for chats"),
        ([tmp_path, "hello"], "there is no build here"),
    ):
        code, found, _ = run(capsys, "generate", *arguments)
        assert code == 2 and told in found["error"]["cause"]


def test_a_build_is_verified(
    built: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(built[0], tmp_path / "copy"))
    assert run(capsys, "verify", copy)[0] == 0
    with (copy / "model.onnx.data").open("r+b") as file:
        file.seek(100)
        file.write(b"\x55\xaa\x55")
    code, found, _ = run(capsys, "verify", copy)
    assert code == 3 and "model.onnx.data" in json.dumps(found["files_changed"])


def test_a_plan_holds_its_limit_and_is_followed(
    folders: dict[str, Path], texts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    rest = ["--format", "onnx", "--max-drop", "20%", "--allow-unrecognizable", "--out", out]
    code, plan, _ = run(capsys, "plan", folders["apart"], *TARGET, *texts, *rest)
    assert code == 0 and plan["proof"]["held"]
    assert plan["proof"]["drop"] <= 0.2 * plan["proof"]["float_score"]
    rest = ["--device", "local", "--allow-slower", "--allow-unrecognizable", "--out", tmp_path / "build"]
    code, report, _ = run(capsys, "deploy", folders["apart"], "--plan", out, *texts, *rest)
    assert code == 0
    (build,) = report["builds"]
    assert build["size_bytes"] == plan["proof"]["size"]
    assert build["accuracy"]["score"] == pytest.approx(plan["proof"]["score"], rel=1e-6)
    assert {one["name"]: one["weights"] for one in build["layers"]} == {
        name: one["choice"] for name, one in plan["matrices"].items()
    }


def test_a_plan_within_a_size(
    folders: dict[str, Path], texts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rest = [
        "--format",
        "openvino",
        "--max-size",
        "300kB",
        "--method",
        "nearest",
        "--allow-unrecognizable",
        "--out",
        tmp_path / "plan.json",
    ]
    code, plan, _ = run(capsys, "plan", folders["tied"], *TARGET, *texts, *rest)
    assert code == 0 and plan["proof"]["size"] <= 300_000
    rest[3] = "20kB"
    code, found, _ = run(capsys, "plan", folders["tied"], *TARGET, *texts, *rest)
    assert code == 2 and "no choices are within the limits" in found["error"]["cause"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--metric", "top-5"], "--metric"),
        (["--preprocess", "imagenet"], "--preprocess"),
        (["--input", "1x3"], "--input"),
        (["--io", "int8"], "--io"),
        (["--smooth-quant", "off"], "--smooth-quant"),
        (["--method", "reconstruct"], "no method 'reconstruct'"),
        (["--weights", "w5g32"], "no 'w5g32'"),
        (["--format", "tflite"], "no runtime for language models"),
    ],
)
def test_options_that_are_for_others(
    folders: dict[str, Path],
    texts: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    told: str,
) -> None:
    given = ["--format", "onnx", *arguments] if "--format" not in arguments else arguments
    code, found, _ = run(capsys, "deploy", folders["tied"], *TARGET, *texts, *given, "--out", tmp_path / "build")
    assert code == 2 and told in f"{found['error']['where']} {found['error']['cause']}"
    assert not (tmp_path / "build").exists()


def test_text_is_missing(folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found, _ = run(capsys, "deploy", folders["tied"], *TARGET, "--out", tmp_path / "build")
    assert code == 2 and "looks at text" in found["error"]["cause"]


def test_without_text_to_judge_by_nothing_passes(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rest = ["--method", "nearest", "--format", "onnx", "--out", tmp_path / "build"]
    code, report, _ = run(capsys, "deploy", folders["tied"], *TARGET, *rest)
    assert code == 0 and report["verdict"] == "not validated"
    rest = [*rest, "--max-drop", "1%", "--overwrite"]
    code, report, _ = run(capsys, "deploy", folders["tied"], *TARGET, *rest)
    assert code == 3


def test_weights_are_for_language_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"x")
    code, found, _ = run(
        capsys,
        "deploy",
        tmp_path / "model.pt2",
        *TARGET,
        "--weights",
        "w4g32",
        "--calib",
        "c.npz",
        "--out",
        tmp_path / "b",
    )
    assert code == 2 and "language models" in found["error"]["cause"]

"""`edgeq validate` of a build of a language model, as a user calls it: by text, and by tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import asked
import numpy as np
import pytest

from edgeq.cli import app

EIGHT = ["--weights", "w8g32", "--words", "w8g64"]  # random weights do not bear fewer
FREE = ["--max-drop", "50%", "--allow-slower"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, Any, str]:
    """Exit code, the JSON document, and what stands on standard error."""
    capsys.readouterr()
    code = app.run([*map(str, arguments), "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out) if told.out.strip() else None, told.err


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "eval.npy"
    np.save(path, np.random.default_rng(5).integers(3, 200, (12, 40)))
    return path


@pytest.fixture(scope="module")
def built(folders: dict[str, Path], text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "build"
    how = ["--target", "x86-avx512", "--device", "local", "--format", "onnx", "--method", "nearest", *EIGHT, *FREE]
    assert app.run(["deploy", str(folders["tied"]), *how, "--eval", str(text), "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return asked.write_task(tmp_path / "tasks")


def test_a_build_is_measured_again(
    built: Path, folders: dict[str, Path], text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    junit = tmp_path / "out.xml"
    how = ["--model", folders["tied"], "--eval", text, "--device", "local", *FREE, "--junit", junit]
    code, found, _ = run(capsys, "validate", built, *how)
    assert code == 0
    before = json.loads((built / "report.json").read_text())
    (mine,), (theirs,) = found["builds"], before["builds"]
    assert mine["accuracy"]["score"] == pytest.approx(theirs["accuracy"]["score"], rel=1e-6)
    assert mine["accuracy"]["float_score"] == pytest.approx(theirs["accuracy"]["float_score"], rel=1e-6)
    assert mine["accuracy"]["score"] != mine["accuracy"]["float_score"]
    assert mine["decoding"]["token"]["p50"] > 0 and mine["speed"]["baselines"][0]["name"] == "float32"
    assert mine["files"] == theirs["files"] and mine["float_size_bytes"] == theirs["float_size_bytes"]
    assert (found["model_hash"], found["target"]) == (before["model_hash"], before["target"])
    assert mine["audit"] is None and not any("another folder" in one for one in found["warnings"])
    cases = [case.get("name") for case in ElementTree.parse(junit).iter("testcase")]
    assert cases[0] == "validated" and len(cases) == 1 + len(mine["gates"])


def test_a_limit_that_is_missed(
    built: Path, folders: dict[str, Path], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--model", folders["tied"], "--eval", text, "--device", "local", "--allow-slower", "--max-size", "1kB"]
    code, found, error = run(capsys, "validate", built, *how)
    assert (code, found["verdict"]) == (3, "failed")
    assert "size" in error


def test_another_model_is_refused(
    built: Path, folders: dict[str, Path], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run(capsys, "validate", built, "--model", folders["apart"], "--eval", text, "--device", "local")
    assert code == 2 and "its matrices are not those of the build" in error


def test_a_model_of_the_same_shapes_is_told_of(
    built: Path, folders: dict[str, Path], text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folders["tied"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-2}))
    how = ["--model", other, "--eval", text, "--device", "local", *FREE, "--allow-unrecognizable"]
    _, found, _ = run(capsys, "validate", built, *how)
    assert "the build was made from another folder than other" in found["warnings"]
    before = json.loads((built / "report.json").read_text())["builds"][0]["accuracy"]
    mine = found["builds"][0]["accuracy"]
    assert mine["score"] == pytest.approx(before["score"], rel=1e-6) and mine["float_score"] != before["float_score"]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ("--eval e.npy", "--model is missing"),
        ("--model m", "--eval is missing"),
        ("--model m --eval e.npy --metric top-5", "--metric: this is not for language models"),
        ("--model m --eval e.npy --sustain 60s", "--sustain: this is not for language models"),
        ("--model m --eval e.npy --preprocess imagenet", "--preprocess: this is not for language models"),
        ("--model m --eval e.npy --device local --device local", "--device: this is not for language models"),
        ("--model m --eval e.npy --tasks-from d", "--tasks-from: there is no task to ask"),
        ("--model m --eval e.npy --trust-tasks", "--trust-tasks: there is no task to ask"),
        ("--lm-eval t --eval e.npy", "--eval: this does not go with tasks"),
        ("--lm-eval t --max-drop 1%", "--max-drop: this does not go with tasks"),
        ("--lm-eval t --threads 2", "--threads: this does not go with tasks"),
        ("--lm-eval t --target x86-avx512", "--target: this does not go with tasks"),
        ("--lm-eval t --input 1x3", "--input: this is not for language models"),
    ],
)
def test_options_that_make_no_sense(built: Path, capsys: pytest.CaptureFixture[str], options: str, cause: str) -> None:
    code, _, error = run(capsys, "validate", built, *options.split())
    assert code == 2 and cause in " ".join(error.split())


def test_tasks_are_for_builds_of_language_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    code, _, error = run(capsys, "validate", tmp_path, "--lm-eval", "t")
    assert code == 2 and "there is no build here" in error
    code, _, error = run(capsys, "validate", tmp_path / "a.onnx", "--model", "m", "--eval", "e", "--tasks-from", "d")
    assert code == 2 and "there is no task to ask" in error
    code, _, error = run(capsys, "validate", tmp_path / "a.onnx", "--eval", "e")
    assert code == 2 and "--model is missing" in error


def test_a_build_answers_questions_beside_float(
    built: Path, folders: dict[str, Path], tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    how = ["--lm-eval", "small_choices", "--tasks-from", tasks, "--model", folders["tied"]]
    code, found, error = run(capsys, "validate", built, *how)
    assert code == 0, error
    by_metric = {one["metric"]: one for one in found["scores"]}
    assert by_metric.keys() == {"acc", "acc_norm"}
    acc = by_metric["acc"]
    assert (acc["task"], acc["samples"], acc["higher_is_better"]) == ("small_choices", 20, True)
    assert acc["difference"] == pytest.approx(acc["score"] - acc["float_score"])
    assert acc["drop"]["value"] == pytest.approx(-100 * acc["difference"])
    assert acc["drop"]["low"] < acc["drop"]["value"] < acc["drop"]["high"]
    share = acc["score"]
    assert acc["stderr"] == pytest.approx((share * (1 - share) / 19) ** 0.5)
    assert (found["format"], found["device"], found["model"]) == ("onnx", "local", folders["tied"].name)
    assert "acc" in error and "points" in error  # the table, where standard output holds JSON


def test_a_build_answers_questions_alone(built: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    code, found, error = run(capsys, "validate", built, "--lm-eval", "small_choices", "--tasks-from", tasks)
    assert code == 0, error
    assert {one["float_score"] for one in found["scores"]} == {None} and found["model"] is None
    code, _, error = run(capsys, "validate", built, "--lm-eval", "nothing", "--tasks-from", tasks)
    assert code == 2 and "there is no task 'nothing'" in error and "small_choices" in error


def test_templates_cannot_reach_out_of_their_sandbox(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    out = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "ran") + "') }}"
    folder = asked.write_task(tmp_path / "tasks", doc_to_text=out)
    code, _, error = run(capsys, "validate", built, "--lm-eval", "small_choices", "--tasks-from", folder)
    assert code == 2 and "SecurityError" in error
    assert not (tmp_path / "ran").exists()


def test_functions_run_where_tasks_are_trusted(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    folder = asked.write_task(tmp_path / "tasks")
    text = json.dumps(asked.CHOICES)
    (folder / "choices.yaml").write_text(text[:-1] + ', "process_docs": !function few.first}')
    (folder / "few.py").write_text("def first(docs):\n    return docs.select(range(3))\n")
    how = ["--lm-eval", "small_choices", "--tasks-from", folder]
    code, _, error = run(capsys, "validate", built, *how)
    assert code == 2 and "--trust-tasks" in error
    code, found, error = run(capsys, "validate", built, *how, "--trust-tasks")
    assert code == 0, error
    assert {one["samples"] for one in found["scores"]} == {3}

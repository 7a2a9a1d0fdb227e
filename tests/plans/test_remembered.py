"""A plan may name data that it was made with, and no code runs because it does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trained_model

from edgeq.cli.app import run
from edgeq.data.dataset import InputSpec
from edgeq.data.load import load_data
from edgeq.errors import UsageError
from edgeq.plans.plan import Given, Plan, read_plan
from edgeq.plans.remembered import data_of, metric_of

RAN = "a_module_that_says_that_it_ran"
CODE = f"{RAN}:samples"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module that leaves a mark when it is imported."""
    (tmp_path / f"{RAN}.py").write_text("open('ran', 'w')\nsamples = metric = lambda *a, **k: []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, RAN, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data and a build of it."""
    folder = trained_model.make(tmp_path_factory.mktemp("model"))
    arguments = ["deploy", "model.pt2", "--target", "x86-avx512", "--format", "onnx", "--calib", "calib.npz"]
    arguments[1], arguments[-1] = str(folder / "model.pt2"), str(folder / "calib.npz")
    assert run([*arguments, "--out", str(folder / "build"), "--quiet"]) == 0
    return folder


def edited(plan: Plan, path: Path, **given: str) -> str:
    content = json.loads(plan.model_dump_json()) | {"given": {"calibration": "c.npz"} | given}
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("role", "option"), [("calibration", "--calib"), ("evaluation", "--eval"), ("metric", "--metric")]
)
@pytest.mark.parametrize("command", ["deploy", "explain"])
def test_code_that_a_plan_names_is_not_run(
    built: Path, trap: Path, capsys: pytest.CaptureFixture[str], role: str, option: str, command: str
) -> None:
    given = {"calibration": str(built / "calib.npz"), "evaluation": str(built / "eval.npz")} | {role: CODE}
    plan = edited(read_plan(built / "build/plan.json"), trap / "plan.json", **given)
    model = str(built / "model.pt2")
    rest = (
        ["deploy", model, "--plan", plan, "--out", "out"]
        if command == "deploy"
        else ["explain", plan, "--model", model]
    )
    code = run([*rest, "--quiet"])
    err = capsys.readouterr().err
    assert not (trap / "ran").exists() and RAN not in sys.modules
    if command == "deploy" or role == "calibration":  # the others are nothing that `explain` reads
        assert code == 2 and CODE in err and f"give {option} yourself" in err
        assert not (trap / "out").exists()


def test_code_on_the_command_line_runs(built: Path, trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = edited(read_plan(built / "build/plan.json"), trap / "plan.json", calibration=CODE)
    assert run(["deploy", str(built / "model.pt2"), "--plan", plan, "--calib", CODE, "--out", "out", "--quiet"]) == 2
    assert (trap / "ran").exists() and "yielded no samples" in capsys.readouterr().err


def test_a_file_may_be_called_like_a_function(trap: Path) -> None:
    (trap / CODE).write_bytes(b"")
    assert data_of(Given(calibration=CODE), "--calib", None, "calibration") == Path(CODE)
    assert metric_of(Given(calibration=CODE), None) is None
    # and if it is gone by the time that it is read, nothing is called in its place
    (trap / CODE).unlink()
    with pytest.raises(UsageError, match="there is no calibration data"):
        load_data(Path(CODE), [InputSpec("x", (None, 2), "float32")], role="calibration")
    assert not (trap / "ran").exists()


def test_what_is_told_counts(trap: Path) -> None:
    given = Given(calibration=CODE, evaluation="e.npz", metric=CODE)
    assert data_of(given, "--calib", "own.npz", "calibration") == "own.npz"
    assert data_of(given, "--eval", None, "evaluation") == Path("e.npz")
    assert metric_of(given, "own:metric") == "own:metric"
    assert data_of(None, "--calib", None, "calibration") is None and metric_of(None, None) is None
    assert not (trap / "ran").exists()

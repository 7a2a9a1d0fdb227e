"""`edgeq train`: a plan as a file, a trained network, its page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import few_bits
import pytest
from typer.testing import CliRunner

from edgeq.cli.app import app
from edgeq.frontends.load import load


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    made, plan = few_bits.folder(), tmp_path / "plan.json"
    plan.write_text(few_bits.plan("w2a4", "xnor").model_dump_json())
    target = ["--target", str(made / "few-bits.toml")]
    samples = ["--train", str(made / "train.npz"), "--labels", "--epochs", "2", "--batch", "64"]
    return ["train", str(made / "model.pt2"), "--plan", str(plan), *target, *samples, "--out", str(tmp_path / "t.pt")]


def test_what_it_writes(asked: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--json", *asked])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    losses = [epoch["held_out"] for epoch in told["epochs"]]
    assert losses[told["best"]] == min(losses) < losses[0]
    trained = load(tmp_path / "t.pt")
    assert trained.grids is not None
    inner = [grid.integers for grid in trained.grids.weights.values()][1:-1]
    assert inner and all(set(integers.reshape(-1)) == {-1, 1} for integers in inner)
    page = (tmp_path / "t.pt.html").read_text()
    assert (
        f"Epoch {told['best']} of 2 was kept" in page and "Simulated" in page and page.count('class="curve own"') == 2
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "t.pt", "t.pt.html"]


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        (["--ranges", "magic"], "lsq, pact"),
        (["--augment", "magic"], "crop-flip"),
        (["--autocast", "int8"], "bfloat16, float16"),
        (["--plan", "nowhere.json"], "nowhere.json"),
        (["--train", "nowhere.npz"], "nowhere.npz"),
        (["--target", "x86-avx2"], "few-bits"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_written(
    more: list[str], cause: str, asked: list[str], tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, [*asked, *more])
    assert done.exit_code == 2 and cause in done.output.replace("\n", " "), done.output
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_that_is_there_stays(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.pt").write_text("mine")
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2 and "--overwrite" in done.output
    assert (tmp_path / "t.pt").read_text() == "mine"

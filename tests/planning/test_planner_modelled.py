"""Plans for devices that cannot be timed or reached from here: what is modelled is labelled wherever it is shown, and
nothing that no device judged is called held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_models as small
import trained_model

from edgeq.cli.app import run
from edgeq.export import vela
from edgeq.planning.costs import estimates
from edgeq.planning.solver.restate import restate
from edgeq.planning.solver.solve import cost_of
from edgeq.plans.plan import Planned, read_plan

BOARD = """
extends = "arm-neon"
name = "my-board"
execution = "none"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trained_model.make(tmp_path_factory.mktemp("model"))
    (folder / "board.toml").write_text(BOARD)
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def _cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(kept))


class Answer:
    """One run of `edgeq plan --json`."""

    def __init__(self, files: Path, told: pytest.CaptureFixture[str], target: str, *more: str) -> None:
        self.path = files / "plan.json"
        self.path.unlink(missing_ok=True)
        told.readouterr()
        given = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "-o", str(self.path), "--json"]
        self.code = run(["plan", str(files / "model.pt2"), "--target", target, *given, *more])
        out, self.said = told.readouterr()
        self.document: dict[str, Any] = json.loads(out) if out else {}

    @property
    def planned(self) -> Planned:
        found = read_plan(self.path).planned
        assert found is not None
        return found


def board(files: Path) -> str:
    return str(files / "board.toml")


def test_a_target_that_cannot_be_executed_is_planned_without_a_proof(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Answer(files, capsys, board(files), "--format", "onnx", "--max-drop", "2%", "--max-latency", "1ms")
    assert answer.code == 0, answer.said
    planned = answer.planned
    assert planned.proof is None and planned.held is True and all(a.proof is None for a in planned.attempts)
    assert planned.latency_from == "modelled" and planned.latency_by is not None
    assert (planned.latency_by.by, planned.latency_by.profile) == ("a roofline", "raspberry-pi-5")
    assert any(figure.startswith("bandwidth 17.1 GB/s (modelled: ") for figure in planned.latency_by.figures)
    choices = {layer.name: layer.choice for layer in read_plan(answer.path).layers}
    assert cost_of(restate(read_plan(answer.path)), choices) == pytest.approx(planned.predicted)
    # of what no device judged, both limits say so, in the document, in a warning and on the screen
    assert [text.split(":")[0] for text in planned.unvalidated] == [
        "a drop of at most 2%", "a latency of at most 1 ms",
    ]  # fmt: skip
    assert "modelled" in planned.unvalidated[1]
    assert answer.said.count("warning: not validated: ") == 2
    assert "not validated" in answer.said and "held" not in answer.said
    assert "latency (modelled by a roofline)" in answer.said and "energy (modelled)" in answer.said
    assert any("not measured" in note for note in planned.notes)
    changed = [layer.reason for layer in read_plan(answer.path).layers if "instead" in layer.reason]
    assert changed and all(" us (modelled)" in text for text in changed if " us" in text)
    # what it says of the size is counted
    out = tmp_path / "out"
    assert run(["deploy", str(files / "model.pt2"), "--plan", str(answer.path), "--target", board(files), "--out", str(out)]) == 0  # fmt: skip  # noqa: E501
    capsys.readouterr()
    assert (out / "model.onnx").stat().st_size == planned.size
    assert json.loads((out / "report.json").read_text())["verdict"] == "not validated"
    # explain and --check carry the label on
    assert run(["explain", str(answer.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["latency_from"] == "modelled"
    assert run(["explain", str(answer.path)]) == 0
    shown = capsys.readouterr().out
    assert "latency (modelled)" in shown and "modelled, not measured" in shown
    # in the table the heading says it; a step stands alone
    steps = [line for line in shown.splitlines() if line.startswith("  ") and line[2] != " " and " us" in line]
    assert steps and all("(modelled)" in line for line in steps)
    assert run(["plan", "--check", str(answer.path)]) == 0
    assert "latency (modelled)" in capsys.readouterr().out


def test_another_profile_gives_other_numbers_and_a_wrong_one_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Answer(files, capsys, board(files), "--format", "onnx").planned.predicted
    slow = files / "slow.toml"
    slow.write_text('extends = "raspberry-pi-5"\nname = "slow"\ntarget = "my-board"\n'
                    '[bandwidth]\nvalue = 1.71\nunit = "GB/s"\nhow = "measured"\nsource = "this test"\n')  # fmt: skip
    answer = Answer(files, capsys, board(files), "--format", "onnx", "--profile", str(slow))
    assert answer.code == 0 and answer.planned.predicted["latency"] > own["latency"]
    assert answer.planned.latency_by is not None and answer.planned.latency_by.profile == "slow"
    wrong = Answer(files, capsys, board(files), "--format", "onnx", "--profile", "ethos-u55-128")
    assert wrong.code == 2 and "is a device of npu-ethos-u" in wrong.said


def test_energy_is_minimized_where_it_is_known(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = Answer(files, capsys, board(files), "--format", "onnx").planned
    least = Answer(files, capsys, board(files), "--format", "onnx", "--minimize", "energy").planned
    assert least.minimize == "energy" and least.energy_by is not None and "45 nm" in least.energy_by.figures[0]
    assert least.predicted["energy"] <= fast.predicted["energy"] * (1 + 1e-6)
    unknown = Answer(files, capsys, small.away("npu-hexagon", files), "--minimize", "energy")
    assert unknown.code == 2 and "energy_per_byte" in unknown.said and "snapdragon" in unknown.said


def test_without_figures_the_size_is_minimized_and_a_limit_on_latency_refused(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away, bare = small.away("npu-hexagon", files), files / "bare.toml"
    bare.write_text('schema = 1\nname = "bare"\ntarget = "npu-hexagon-away"\nsummary = "no figures"\nlink = "adb"\n')
    answer = Answer(files, capsys, away, "--profile", str(bare))
    assert answer.code == 0, answer.said
    assert answer.planned.minimize == "size" and answer.planned.latency_from is None
    assert "latency" not in answer.planned.predicted
    assert any("cannot be modelled for bare" in note for note in answer.planned.notes)
    refused = Answer(files, capsys, away, "--max-latency", "1ms", "--profile", str(bare))
    assert refused.code == 2 and "neither be measured nor modelled" in refused.said and not refused.path.exists()


def test_only_a_size_that_was_counted_can_be_missed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("litert_torch", reason="the tflite extra (litert-torch) is not installed")
    given = (small.away("mcu-cortex-m", files), "--minimize", "size")
    first = Answer(files, capsys, *given).planned
    assert first.size is not None and first.latency_from is None
    expected = first.predicted["size"]
    fits = Answer(files, capsys, *given, "--max-size", str(int(max(first.size, expected)) + 1))
    assert fits.code == 0 and fits.planned.held is True
    # what was built is larger than what was predicted: a limit between them cannot be known to be missed before
    assert first.size > expected + 2
    limit = int((first.size + expected) / 2)
    missed = Answer(files, capsys, *given, "--max-size", str(limit))
    assert missed.planned.size is not None
    assert missed.planned.held is (missed.planned.size <= limit) and missed.code == (0 if missed.planned.held else 3)
    assert missed.planned.held or "a limit was missed" in missed.said
    never = Answer(files, capsys, *given, "--max-size", "100")
    assert never.code == 3 and "the smallest plan is written" in never.said and not never.planned.held
    assert never.planned.size is not None and never.planned.size <= 1.02 * first.size


def test_a_modelled_latency_that_no_plan_reaches_is_said_to_be_modelled(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Answer(files, capsys, board(files), "--format", "onnx", "--max-latency", "1ns")
    assert answer.code == 3 and "modelled, not measured" in answer.said


def test_a_front_needs_what_can_be_run(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(files, capsys, board(files), "--format", "onnx", "--pareto", "2", "--minimize", "size")
    assert answer.code == 2 and "a front is measured" in answer.said
    assert Answer(files, capsys, board(files), "--pareto", "2", "--minimize", "energy").code == 2


def test_float_layers_of_an_npu_without_float32_compute_in_what_it_has(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Answer(files, capsys, "npu-intel", "--rules", str(_rules(files)))
    assert answer.code == 0, answer.said
    assert read_plan(answer.path).float_precision == "float16" and answer.planned.proof is None


def _rules(files: Path) -> Path:
    path = files / "rules.toml"
    path.write_text('[[rules]]\nmatch = "head"\nchoice = "float32"\n')
    return path


def test_ethos_u_is_planned_with_what_vela_estimates(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ethosu", reason="the ethos-u extra (ethos-u-vela) is not installed")
    pytest.importorskip("litert_torch", reason="the tflite extra (litert-torch) is not installed")
    answer = Answer(files, capsys, small.away("npu-ethos-u", files))
    assert answer.code == 0, answer.said
    planned = answer.planned
    assert planned.proof is None and planned.latency_by is not None and planned.compiled is not None
    assert planned.latency_by.by == planned.compiled.by == f"Vela {vela.version()}"
    assert "ethos-u55-128" in planned.latency_by.figures[0]
    # every layer runs on the NPU, so that the sum of the layers is what Vela says of the whole file
    assert not planned.compiled.left_to_cpu and {layer.choice for layer in read_plan(answer.path).layers} == {"w8a8", "a8"}  # fmt: skip  # noqa: E501
    assert planned.predicted["latency"] == pytest.approx(planned.compiled.seconds, rel=1e-6)
    assert 0 < planned.compiled.sram < 20_000 and 0 < planned.compiled.flash < 20_000
    assert f"latency (modelled by Vela {vela.version()})" in answer.said
    assert f"as Vela {vela.version()} compiles it (modelled)" in answer.said
    assert any(note == "float32 was left out: its latency cannot be modelled" for note in planned.notes)
    # a layer that a rule leaves in float is the CPU's, and its time is in no number
    ruled = Answer(files, capsys, small.away("npu-ethos-u", files), "--rules", str(_rules(files)))
    assert ruled.code == 0, ruled.said
    assert "the modelled latency is without that of head" in ruled.planned.notes
    assert ruled.planned.compiled is not None and ruled.planned.compiled.left_to_cpu
    assert "left to the CPU: " in ruled.said


def test_without_vela_a_roofline_takes_its_place_and_it_says_so(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("litert_torch", reason="the tflite extra (litert-torch) is not installed")
    monkeypatch.setattr(vela, "version", lambda: None)
    monkeypatch.setattr(estimates, "version", lambda: None)
    answer = Answer(files, capsys, small.away("npu-ethos-u", files))
    assert answer.code == 0, answer.said
    planned = answer.planned
    assert planned.compiled is None and planned.latency_by is not None and planned.latency_by.by == "a roofline"
    assert any("no estimate of Vela's" in note and "edgeq[ethos-u]" in note for note in planned.notes)


def test_vela_says_why_it_cannot_compile(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("ethosu", reason="the ethos-u extra (ethos-u-vela) is not installed")
    from edgeq.errors import UnsupportedError
    from edgeq.registry.load import load_profile

    system = load_profile("ethos-u55-128").vela
    assert system is not None
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model at all")
    with pytest.raises(UnsupportedError, match="Vela cannot compile the file: "):
        vela.estimate(broken, system)

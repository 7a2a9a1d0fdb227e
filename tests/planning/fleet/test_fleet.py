"""Fleets from model to artefacts, in a real runtime: targets of one machine that differ in what their files offer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import trained_model

from edgeq.api.verify import verify
from edgeq.cli.app import run
from edgeq.errors import UsageError
from edgeq.limits import Drop, Limits
from edgeq.lock import changed_files, read_lock
from edgeq.planning.fleet import fleet as fleet_of
from edgeq.planning.fleet.fleet import fleet
from edgeq.plans.fleet import Fleet, Status, Verdict, is_fleet, read_fleet, write_fleet
from edgeq.plans.plan import Plan
from edgeq.progress import Silent

TARGETS = {
    # as x86-avx512
    "full": "",
    # weights of 7 bits and no 4-bit ones: all that it stores, `full` runs as well
    "narrow": """
        [[runtimes]]
        name = "onnxruntime"
        [[runtimes.kernels]]
        ops = ["conv1d", "conv2d", "depthwise_conv2d", "linear"]
        activations = "uint8"
        weights = "int8"
        weight_bits = 7
        bias = "int32"
        source = "a test"
        [[runtimes.kernels]]
        ops = ["add", "avg_pool2d"]
        activations = "uint8"
        source = "a test"
    """,
    # the same, out of reach
    "away": 'execution = "none"',
}


class Stages(Silent):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def start(self, stage: str) -> None:
        self.seen.append(stage)


@dataclass
class Made:
    folder: Path
    fleet: Fleet
    plans: dict[str, Plan]
    stages: list[str]

    def target(self, name: str) -> str:
        return str(self.folder / f"{name}.toml")

    def at(self, candidate: str) -> dict[str, Verdict]:
        found = next(c for c in self.fleet.candidates if c.name == candidate)
        return {verdict.target: verdict for verdict in found.verdicts}

    def again(self, *targets: str, **changes: object) -> tuple[Fleet, dict[str, Plan]]:
        options: dict[str, object] = {"minimize": "size", "limits": Limits.parse(max_drop="4%")} | changes
        return planned(self.folder, targets or ("full", "narrow", "away"), **options)


def planned(folder: Path, targets: tuple[str, ...], **options: object) -> tuple[Fleet, dict[str, Plan]]:
    return fleet(
        folder / "model.pt2",
        targets=[str(folder / f"{name}.toml") for name in targets],
        calibration=folder / "calib.npz",
        evaluation=folder / "eval.npz",
        format="onnx",
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of this file share."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def _cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(kept))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, kept: Path) -> Made:
    folder = trained_model.make(tmp_path_factory.mktemp("fleet"), width=64)
    for name, text in TARGETS.items():
        base = "narrow.toml" if name == "away" else "x86-avx512"
        (folder / f"{name}.toml").write_text(f'extends = "{base}"\nschema = 1\nname = "{name}"\n{text}')
    stages = Stages()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEQ_CACHE", str(kept))
        found, plans = planned(
            folder,
            ("full", "narrow", "away"),
            minimize="size",
            limits=Limits.parse(max_drop="4%"),
            progress=stages,
        )
    return Made(folder, found, plans, stages.seen)


def test_one_artefact_serves_all_that_can_run_it(made: Made) -> None:
    (artefact,) = made.fleet.artefacts
    assert sorted(artefact.serves) == ["away", "full", "narrow"] and made.fleet.held
    full, narrow, away = (member.verdict for member in made.fleet.targets)
    assert (full.status, narrow.status, away.status) == ("held", "held", "not validated")
    assert full.proof is not None and full.proof.drop is not None and full.proof.drop <= 4
    assert full.proof.size == artefact.size and full.device == "local"
    assert away.proof is None and away.device is None and "cannot be executed" in away.because
    assert {a.name for a in made.fleet.artefacts} == made.plans.keys()


def test_what_only_one_target_offers_serves_no_other(made: Made) -> None:
    own = made.at("full/onnx")
    assert own["full"].status == "held"
    assert own["narrow"].status == own["away"].status == "not offered"
    assert "no kernel" in own["narrow"].because
    assert made.at("full/onnx/common")["narrow"].status in ("held", "missed")
    assert made.at("narrow/onnx")["full"].status == "held"


def test_a_plan_for_what_is_not_here_is_measured_where_it_can_be(made: Made) -> None:
    found = made.at("away/onnx")
    assert found["away"].proof is None and found["away"].status == "not validated"
    size = next(c.size for c in made.fleet.candidates if c.name == "away/onnx")
    for target in ("full", "narrow"):
        proof = found[target].proof
        assert proof is not None and proof.size == size
        assert proof.latency is not None and proof.held is (found[target].status == "held")


def test_accuracy_that_was_lost_elsewhere_counts_where_nothing_can_be_run(made: Made) -> None:
    """No plan gains 100 points, and each was run for another target."""
    found, _ = made.again("full", "away", limits={"away": Limits(max_drop=Drop(-100.0, percent=False))})
    at_away = [v for c in found.candidates for v in c.verdicts if v.target == "away" and v.status != "not offered"]
    assert at_away and all(v.status == "missed" and "drop of top-1" in v.because for v in at_away)
    assert not found.held and found.targets[0].verdict.status == "held"


def test_a_latency_that_nobody_knows_does_not_stop_the_fleet(made: Made) -> None:
    """`away` has no clock here, and its profile no figures to model one from."""
    found, _ = made.again("full", "away", limits={"away": Limits.parse(max_latency="1us", max_drop="4%")})
    away = found.targets[1].verdict
    assert away.status == "not validated" and "nobody measured its latency" in away.because


def test_what_is_predicted_to_lose_too_much_serves_only_where_nothing_else_does() -> None:
    def verdict(status: Status, doubtful: bool) -> Verdict:
        return Verdict(target="a", status=status, because="", runtime="litert", device=None, doubtful=doubtful)

    sizes = (("small", 1), ("large", 3), ("missed", 1))
    found: Any = {name: SimpleNamespace(found=SimpleNamespace(size=size)) for name, size in sizes}
    job: Any = SimpleNamespace(target=SimpleNamespace(name="a"), limits=Limits())
    at = {("small", "a"): verdict("not validated", True), ("large", "a"): verdict("not validated", False)}
    at["missed", "a"] = verdict("missed", False)
    assert fleet_of._serving(job, found, at, "size") == {"large": 1.0}
    del found["large"]
    assert fleet_of._serving(job, found, at, "size") == {"small": 1.0}


def test_a_target_is_told_what_its_own_artefact_would_gain(made: Made) -> None:
    gain = made.fleet.targets[0].alone
    sizes = {c.name: c.size for c in made.fleet.candidates}
    assert gain is not None and gain.candidate == "full/onnx"
    assert gain.size == made.fleet.artefacts[0].size - sizes["full/onnx"] > 0
    assert gain.in_turns and gain.latency is not None and abs(gain.latency) < 1e-3
    assert made.fleet.targets[1].alone is None


def test_what_targets_share_is_measured_once(made: Made) -> None:
    """`narrow` and `away` have the same arithmetic."""
    assert [s for s in made.stages if s.startswith("sensitivity")] == ["sensitivity for onnxruntime"] * 2
    assert made.stages.count("calibrate") == made.stages.count("load") == made.stages.count("float model") == 1
    stages = Stages()
    made.again(progress=stages)
    assert not [s for s in stages.seen if s.startswith(("sensitivity", "builds", "times"))]


def test_a_limit_of_one_target_may_cost_a_second_artefact(made: Made) -> None:
    sizes = {c.name: c.size for c in made.fleet.candidates}
    middle = (sizes["full/onnx"] + sizes["narrow/onnx"]) // 2
    limits = {"full": Limits.parse(max_drop="4%", max_size=str(middle)), "narrow": Limits.parse(max_drop="4%")}
    found, plans = made.again("full", "narrow", limits=limits)
    assert found.held and [a.name for a in found.artefacts] == ["onnx", "onnx-2"]
    assert [a.serves for a in found.artefacts] == [["full"], ["narrow"]]
    assert all(member.alone is None for member in found.targets)
    assert {plans["onnx"].target, plans["onnx-2"].target} == {"full", "narrow"}
    with pytest.raises(UsageError, match="fulll"):
        made.again("full", "narrow", limits={"fulll": Limits()})


def test_what_comes_closest_is_written_with_exit_code_3(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fleet.json"
    assert run([*command(made, out), "--max-drop", "4%", "--max-size", "narrow=100", "--json"]) == 3
    told = capsys.readouterr()
    assert "narrow" in told.err and "remedy" in told.err
    found = Fleet.model_validate_json(told.out)
    assert not found.held
    statuses = {member.target: member.verdict.status for member in found.targets}
    assert statuses["narrow"] == "missed" and statuses["full"] == "held"
    assert read_fleet(out)[0] == found


def command(made: Made, out: Path) -> list[str]:
    return [
        "plan", str(made.folder / "model.pt2"), "--target", made.target("full"), "--target", made.target("narrow"),
        "--calib", str(made.folder / "calib.npz"), "--eval", str(made.folder / "eval.npz"), "--format", "onnx",
        "--minimize", "size", "-o", str(out),
    ]  # fmt: skip


def test_a_fleet_is_planned_shown_and_deployed_from_the_shell(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, build = tmp_path / "fleet.json", tmp_path / "build"
    assert run([*command(made, out), "--max-drop", "4%"]) == 0
    shown = capsys.readouterr().out
    table = [line for line in shown.splitlines() if line.startswith((" full", " narrow"))]
    assert len(table) == 2 and max(map(len, table)) <= 100
    assert is_fleet(out) and (tmp_path / "fleet.onnx.json").is_file()
    assert run(["explain", str(tmp_path / "fleet.onnx.json")]) == 0 and run(["explain", str(out)]) == 2
    assert "is a fleet" in capsys.readouterr().err
    given = ["deploy", str(made.folder / "model.pt2"), "--plan", str(out), "--out", str(build), "--allow-slower"]
    assert run([*given, "--target", "x86-avx512"]) == 2
    assert "one target" in capsys.readouterr().err and not build.exists()
    assert run([*given, "--max-drop", "4%", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {target: report["verdict"] for target, report in answer["reports"].items()} == {
        "full": "passed",
        "narrow": "passed",
    }
    seconds = [report["seconds"] for report in answer["reports"].values()]
    assert [sorted(one) for one in seconds] == [sorted(seconds[0])] * 2
    assert seconds[0]["load"] == seconds[1]["load"]
    assert answer["folders"] == {"full": "onnx", "narrow": "onnx/narrow"}
    assert json.loads((build / "onnx" / "narrow" / "report.json").read_text()) == answer["reports"]["narrow"]
    # the file holds what the plan says: weights of 7 bits
    weights = [i for i in onnx.load(build / "onnx" / "model.onnx").graph.initializer if i.data_type == 3]
    stored = [onnx.numpy_helper.to_array(w) for w in weights if len(w.dims) > 1]
    assert stored and all(array.min() >= -64 and array.max() <= 63 for array in stored)
    # every file is locked, in the fleet's lock and in that of the build
    assert not changed_files(build, read_lock(build)) and verify(build / "onnx").ok
    (build / "onnx" / "narrow" / "report.json").write_text("{}")
    assert [c.name for c in changed_files(build, read_lock(build))] == ["onnx/narrow/report.json"]
    built, plans = read_fleet_build(build)
    assert built.artefacts[0].plan == "onnx/plan.json" and plans["format"] == "onnx"
    assert run([*given, "--max-size", "10", "--overwrite", "--quiet"]) == 3
    assert "full" in capsys.readouterr().err


def read_fleet_build(build: Path) -> tuple[Fleet, dict[str, object]]:
    found = Fleet.model_validate_json((build / "fleet.json").read_text())
    return found, json.loads((build / found.artefacts[0].plan).read_text())


def test_a_fleet_file_that_was_tampered_with_is_refused(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    written = write_fleet(path, made.fleet, made.plans)
    assert read_fleet(path) == (written, made.plans)
    content = json.loads(path.read_text())

    def refused(match: str, **changes: object) -> None:
        path.write_text(json.dumps(content | changes))
        with pytest.raises(UsageError, match=match):
            read_fleet(path)

    refused("schema version", schema_version=9)
    refused("not a fleet", kind="edgeq.lock")
    refused("targets", targets="none")
    refused("do not name each other", artefacts=[])
    (artefact,) = content["artefacts"]
    refused("beside", artefacts=[artefact | {"plan": "../fleet.onnx.json"}])
    refused("no name of a folder", artefacts=[artefact | {"name": "../x"}],
            targets=[member | {"artefact": "../x"} for member in content["targets"]])  # fmt: skip
    refused("another target", model_hash="0" * 64)
    path.write_text("{")
    with pytest.raises(UsageError, match="JSON"):
        read_fleet(path)
    assert not is_fleet(path) and not is_fleet(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--pareto", "3"], "--pareto goes with one target"),
        (["--check", "plan.json"], "--check goes with one target"),
        (["--device", "local"], "--device goes with one target"),
        (["--profile", "local-x86"], "--profile goes with one target"),
        (["--minimize", "energy"], "cannot minimize 'energy'"),
        (["--max-drop", "nobody=1%"], "no target 'nobody'"),
        (["--max-drop", "full=lots"], "cannot read 'lots'"),
        (["--format", "tflite", "--target", "nowhere"], "there is no target 'nowhere'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_use_of_several_targets(
    made: Made, tmp_path: Path, option: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command(made, tmp_path / "fleet.json"), *option]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_targets_are_different_and_one_of_them_is_here(made: Made) -> None:
    with pytest.raises(UsageError, match="given twice"):
        made.again("full", "full")
    with pytest.raises(UsageError, match="nothing can be measured"):
        made.again("away")

"""A CPU that is not of the class that a target describes is named wherever it is measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trained_model

from edgeq.api.validate import validate
from edgeq.case import Case
from edgeq.devices import Device, open_device
from edgeq.devices.likeness import unlike
from edgeq.prepare import prepare, take_aim
from edgeq.progress import Clock, Silent
from edgeq.registry.load import load_target

AVX2 = {"cpu": "Old One", "cpu_isa": "avx2 fma"}
VNNI = {"cpu": "New One", "cpu_isa": "avx2 fma avx512f avx512_vnni"}
DOT = {"cpu": "Small One", "cpu_isa": "asimd asimddp"}


@pytest.mark.parametrize(
    ("target", "facts"), [("x86-avx512", VNNI), ("x86-avx2", AVX2), ("arm-neon", DOT), ("npu-intel", AVX2)]
)
def test_a_cpu_of_its_class_speaks_for_a_target(target: str, facts: dict[str, str]) -> None:
    assert unlike(load_target(target), open_device("local"), facts) == ""


@pytest.mark.parametrize(
    ("target", "facts", "difference", "other"),
    [
        ("x86-avx512", AVX2, "(Old One) lacks avx512f, avx512_vnni,", "x86-avx2"),
        ("x86-avx512", {"cpu": "Half", "cpu_isa": "avx2 avx512f"}, "(Half) lacks avx512_vnni,", "x86-avx2"),
        ("x86-avx512", {"cpu": "Oldest", "cpu_isa": ""}, "lacks avx512f, avx512_vnni", ""),
        ("x86-avx2", VNNI, "(New One) has avx512_vnni,", "x86-avx512"),
        ("arm-neon", VNNI, "lacks asimd,", "x86-avx512"),
    ],
)
def test_another_cpu_is_named_with_what_differs_and_what_describes_it(
    target: str, facts: dict[str, str], difference: str, other: str
) -> None:
    told = unlike(load_target(target), open_device("local"), facts)
    assert difference in told and f"unlike those of {target}: answers and times are not of that target" in told
    assert (f"(--target {other} --device local)" in told) if other else "--target" not in told


@pytest.mark.parametrize("isa", ["unknown", "as the model has it"])
def test_nobody_guesses_at_instructions_that_are_not_listed(isa: str) -> None:
    assert unlike(load_target("x86-avx512"), open_device("local"), {"cpu": "?", "cpu_isa": isa}) == ""


def old() -> Device:
    return replace(open_device("local"), facts=AVX2)


def test_reports_and_plans_carry_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained_model.make(tmp_path)
    notes: list[str] = []

    class Heard(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    target = load_target("x86-avx512")
    aim = replace(take_aim(target, "onnx"), device=old())
    (job,) = prepare(
        Case(folder / "model.pt2", calibration=folder / "calib.npz", evaluation=folder / "eval.npz"),
        [aim],
        Clock(Heard()),
    )
    told = unlike(target, old(), AVX2)
    assert job.warnings == [told] and told in notes

    monkeypatch.setattr("edgeq.api.validate.open_device", lambda _: old())
    from edgeq.export.artifact import Exporter

    (file, *_) = Exporter(job.model, tmp_path).float_model("onnx")
    report = validate(file, model=folder / "model.pt2", target="x86-avx512", evaluation=folder / "eval.npz")
    assert told in report.warnings

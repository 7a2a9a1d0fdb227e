"""`edgeq probe`: cells tried in the real runtimes, evidence as files, and what the commands make of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import small_models as small
import torch
from pydantic import ValidationError

from edgeq.cli.app import run
from edgeq.devices import open_device
from edgeq.devices.link import Exit
from edgeq.errors import DeviceError, UsageError
from edgeq.frontends.load import load
from edgeq.probing import evidence as kept
from edgeq.probing.evidence import (
    Cell,
    Evidence,
    Speed,
    cells_of,
    claim_of,
    file_name,
    read_evidence,
    shipped_files,
    standing,
    unproven,
    write_evidence,
)
from edgeq.probing.operators import OPERATORS, samples, seeded
from edgeq.probing.probe import allowed, on_integers, probe, runtimes_on
from edgeq.progress import Silent
from edgeq.records.schema import Placement
from edgeq.registry.load import load_target, target_names
from edgeq.registry.schema import OpClass, Runtime, Target
from edgeq.runtimes import runtime as info

FALSE_CLAIMS = """
extends = "x86-avx512"
name = "my-board"

[[runtimes]]
name = "openvino"

[[runtimes.kernels]]
ops = ["softmax", "max_pool2d"]
activations = "uint8"
source = "wishful thinking"

[[runtimes]]
name = "onnxruntime"

[[runtimes.kernels]]
ops = ["tanh"]
activations = "uint8"
source = "wishful thinking"

[[runtimes.kernels]]
ops = ["matmul"]
activations = "int16"
source = "wishful thinking"
"""


@pytest.fixture(autouse=True, scope="module")
def _operators_are_parsed_once() -> None:
    small._parse_operators_once()


def target() -> Target:
    return load_target("x86-avx512")


def of(name: str, aim: Target | None = None) -> Runtime:
    return next(r for r in (aim or target()).runtimes if r.name == name)


def cell(**changes: Any) -> Cell:
    fields: dict[str, Any] = {
        "op": "conv2d", "kernel": "w8a8", "claim": claim_of(of("onnxruntime"), "conv2d", of("onnxruntime").kernels[0]),
        "converts": True, "runs": True, "integer": True, "steps": 1, "allowed": 1, "ran_as": ["QLinearConv, CPU"],
    }  # fmt: skip
    return Cell(**fields | changes)


def evidence(*cells: Cell, **changes: Any) -> Evidence:
    fields: dict[str, Any] = {
        "schema": 1, "target": "x86-avx512", "runtime": "onnxruntime", "version": "1.31.1", "device": "local",
        "emulated": False, "cpu": "a CPU", "cells": list(cells),
    }  # fmt: skip
    return Evidence(**fields | changes)


# ---------------------------------------------------------------- real runtimes


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("onnxruntime", ["conv2d", "reshape"]),
        ("openvino", ["add", "max_pool2d"]),
        ("litert", ["depthwise_conv2d"]),
    ],
)
def test_cells_are_proven_in_the_real_runtime(name: str, ops: list[OpClass]) -> None:
    here = load_target(small.HERE)
    (found,) = probe(here, open_device("local"), [of(name, here)], ops)
    assert (found.target, found.runtime, found.device, found.emulated) == (small.HERE, name, "local", False)
    assert found.version == info(name).version() and found.cpu
    tried = [(op, kernel.name) for op, kernel in cells_of(of(name, here)) if op in ops]
    assert [(c.op, c.kernel) for c in found.cells] == tried
    for one in found.cells:
        assert one.proven and one.steps is not None and one.steps <= 1 and one.ran_as, one
        assert one.speed is not None and one.speed.integer_us > 0


def test_false_claims_are_refuted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = tmp_path / "my-board.toml"
    board.write_text(FALSE_CLAIMS)
    claims = ["--op", "softmax", "--op", "max_pool2d", "--op", "tanh"]
    cells: dict[tuple[str, str], Cell] = {}
    for name in ("openvino", "onnxruntime"):
        ops = [part for part in claims if part != "--op" and of(name, load_target(str(board))).kernel(part)]
        given = [part for op in ops for part in ("--op", op)]
        out = tmp_path / f"{name}.json"
        assert run(["probe", "--target", str(board), "--runtime", name, "--json", "-o", str(out), *given]) == 3
        document, err = capsys.readouterr()
        found = read_evidence(out)
        assert found.target == "my-board"
        cells |= {(name, c.op): c for c in found.cells}
        refuted = [c.op for c in found.cells if not c.proven]
        assert [row["op"] for row in json.loads(document)["unproven"]] == refuted
        assert all(f"{op} a8 in {name}" in err for op in refuted)
    softmax = cells["openvino", "softmax"]
    assert softmax.runs and softmax.integer is False and "in float" in softmax.doubt
    assert cells["openvino", "max_pool2d"].proven
    assert cells["onnxruntime", "tanh"].integer is False


def test_a_type_that_the_runtime_does_not_have_is_refuted(tmp_path: Path) -> None:
    (tmp_path / "my-board.toml").write_text(FALSE_CLAIMS)
    aim = load_target(str(tmp_path / "my-board.toml"))
    (found,) = probe(aim, open_device("local"), [of("onnxruntime", aim)], ["matmul"])
    (one,) = found.cells
    assert one.kernel == "a16" and not one.proven and one.doubt


@pytest.mark.parametrize(("name", "kernel"), [("onnxruntime", "w4g32"), ("openvino", "w4"), ("litert", "w8")])
def test_weights_alone_are_proven_by_answers_as_of_floats(name: str, kernel: str) -> None:
    (found,) = probe(target(), open_device("local"), [_narrowed(name, "linear", kernel)], ["linear"])
    (one,) = found.cells
    assert one.proven and one.integer is False and one.steps == 0  # of 65535


def test_weights_alone_beside_inputs_that_the_runtime_rounds_are_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteRT rounds the input of a float layer that reads integer weights itself."""
    from edgeq.export import tflite_quantize

    def straight(model: Any, quantized: Any, group: Any, graph: Any, operator: Any, name: str) -> Any:
        step = store_weights_alone(model, quantized, group, graph, operator, name)
        operator.inputs[1] = step.inputs[0]
        return step

    store_weights_alone = tflite_quantize.store_weights_alone
    monkeypatch.setattr(tflite_quantize, "store_weights_alone", straight)
    (found,) = probe(target(), open_device("local"), [_narrowed("litert", "linear", "w8")], ["linear"])
    (one,) = found.cells
    assert one.steps is not None and one.steps > 100
    assert not one.proven and "does not say" in one.doubt


def _narrowed(name: str, op: OpClass, kernel: str) -> Runtime:
    """A runtime with one cell."""
    whole = of(name)
    only = whole.kernel(op, kernel)
    assert only is not None
    kernels = [only.model_copy(update={"ops": [op]})]
    return whole.model_copy(update={"kernels": kernels, "shared_scale": [], "fixed_outputs": []})


def test_a_crash_is_recorded_and_the_next_cell_is_tried() -> None:
    here = open_device("local")
    tasks: list[str] = []

    def crash_once(folder: Path, command: Any, on_line: Any) -> Exit:
        task = json.loads((folder / "job.json").read_text())["task"]
        tasks.append(task)
        if task == "outputs" and tasks.count("outputs") == 1:
            return Exit(-11, "fault in /somewhere/secret/lib.so")
        return here.link(folder, command, on_line)

    device = replace(here, link=crash_once)
    runtime = of("onnxruntime").model_copy(
        update={"kernels": [k.model_copy(update={"ops": ["mul"]}) for k in of("onnxruntime").kernels if "mul" in k.ops]}
    )
    again = runtime.kernels[0].model_copy(update={"ops": ["add"]})
    runtime = runtime.model_copy(update={"kernels": [*runtime.kernels, again]})
    (found,) = probe(target(), device, [runtime])
    crashed, fine = found.cells
    assert crashed.converts and not crashed.runs and "SIGSEGV" in crashed.error and "/somewhere" not in crashed.error
    assert fine.proven


def test_an_operator_without_a_probe_is_not_proven() -> None:
    runtime = _narrowed("onnxruntime", "linear", "w8a8")
    runtime = runtime.model_copy(update={"kernels": [runtime.kernels[0].model_copy(update={"ops": ["embedding"]})]})
    (found,) = probe(target(), open_device("local"), [runtime])
    assert found.cells[0].doubt == "there is no probe for this operator"


# ---------------------------------------------------------------- pieces


# Those that a shipped table lists have shown it in the shipped evidence.
@pytest.mark.parametrize("op", ["hardsigmoid", "hardtanh", "silu", "prelu", "layer_norm", "pad"])
def test_every_probe_is_one_operator_of_its_class(op: OpClass) -> None:
    operator = OPERATORS[op]
    model = load(torch.export.export(seeded(operator), tuple(samples(operator, 1, seed=0))))
    assert [group.op for group in model.groups].count(op) == 1
    assert len(model.groups) == (2 if op == "pad" else 1)


def test_all_operator_classes_but_embedding_have_a_probe() -> None:
    assert set(get_args(OpClass)) - set(OPERATORS) == {"embedding"}


def test_curves_on_sixteen_bits_may_differ_by_more() -> None:
    litert = of("litert")
    kernel = {name: litert.kernel("gelu", name) for name in ("a8", "a16")}
    assert kernel["a8"] is not None and kernel["a16"] is not None
    assert (allowed("gelu", kernel["a8"]), allowed("gelu", kernel["a16"])) == (1, 2)
    assert allowed("add", kernel["a16"]) == 1


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([], None),
        ([("QLinearConv", True), ("DequantizeLinear", None)], True),
        ([("Reshape", None)], True),
        ([("DequantizeLinear", None), ("Reshape", None), ("QuantizeLinear", None)], False),
        ([("Transpose", None), ("Softmax", False)], False),
    ],
)
def test_integers_are_told_from_the_runtimes_account(rows: list[tuple[str, bool | None]], answer: bool | None) -> None:
    placements = [Placement(name="", op=op, where="CPU", integer=told, microseconds=None) for op, told in rows]
    assert on_integers(placements) is answer


def test_other_silicon_is_no_evidence() -> None:
    with pytest.raises(UsageError, match="no evidence for arm-neon"):
        probe(load_target("arm-neon"), open_device("local"), [of("onnxruntime", load_target("arm-neon"))])


def test_a_runtime_that_is_missing_is_passed_over_unless_asked_for() -> None:
    here = open_device("local")

    def without_openvino(folder: Path, command: Any, on_line: Any) -> Exit:
        if json.loads((folder / "job.json").read_text())["runtime"] == "openvino.py":
            (folder / "result.json").write_text('{"error": {"kind": "missing", "message": "", "artifact": null}}')
            return Exit(0, "")
        return here.link(folder, command, on_line)

    device = replace(here, link=without_openvino)
    heard: list[str] = []

    class Listening(Silent):
        def note(self, text: str) -> None:
            heard.append(text)

    common = target().model_copy(update={"runtimes": [one for one in target().runtimes if not one.on_request]})
    found = runtimes_on(common, device, progress=Listening())
    assert sorted(r.name for r in found) == ["litert", "onnxruntime"]
    assert len(heard) == 1 and heard[0].startswith("openvino is not probed")
    with pytest.raises(DeviceError, match="openvino"):
        runtimes_on(target(), device, "openvino")
    with pytest.raises(UsageError, match="no runtime to probe"):
        runtimes_on(target(), device, "tensorrt")


# ---------------------------------------------------------------- files


def test_evidence_round_trips(tmp_path: Path) -> None:
    written = evidence(
        cell(speed=Speed(integer_us=12.5, float_us=20.0)),
        cell(op="linear", converts=False, runs=False, integer=None, steps=None, error="no exporter"),
    )
    write_evidence(written, tmp_path / "e.json")
    assert read_evidence(tmp_path / "e.json") == written
    before = (tmp_path / "e.json").read_bytes()
    write_evidence(read_evidence(tmp_path / "e.json"), tmp_path / "e.json")
    assert (tmp_path / "e.json").read_bytes() == before


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: evidence(cell(), cell()),
        lambda: evidence(cell(speed=Speed(integer_us=1, float_us=1)), emulated=True),
        lambda: evidence(runtime="abacus"),
        lambda: evidence(colour="red"),
        lambda: cell(runs=False),
        lambda: cell(steps=None),
        lambda: cell(op="convolution"),
        lambda: Speed(integer_us=0, float_us=1),
    ],
)
def test_evidence_is_validated(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        wrong()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('{"schema": 1}')
    with pytest.raises(UsageError, match=r"e\.json: target"):
        read_evidence(tmp_path / "e.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_evidence(tmp_path / "none.json")


def test_verdicts() -> None:
    assert cell().proven
    assert cell(steps=2).doubt == "off by 2 steps, 1 allowed"
    assert "in float: Softmax, CPU" in cell(integer=False, ran_as=["Softmax, CPU"]).doubt
    assert "does not say" in cell(integer=None).doubt
    assert cell(error="it crashed").doubt == "it crashed"


def test_only_standing_claims_count(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = of("onnxruntime")
    kernel = onnxruntime.kernels[0]
    assert standing(evidence(cell()), onnxruntime, "conv2d", kernel) == cell()
    assert standing(evidence(cell(claim="0" * 12)), onnxruntime, "conv2d", kernel) is None
    monkeypatch.setattr(kept, "shipped", lambda aim, by: evidence(cell(), cell(op="linear", claim="0" * 12)))
    left = unproven(target(), onnxruntime)
    assert ("conv2d", "w8a8") not in left and ("linear", "w8a8") in left and ("linear", "w4") in left


def test_a_claim_changes_with_what_the_table_says_and_not_with_its_source() -> None:
    runtime = of("onnxruntime")
    kernel = runtime.kernels[0]
    same = kernel.model_copy(update={"source": "elsewhere", "ops": ["conv2d"]})
    assert claim_of(runtime, "conv2d", kernel) == claim_of(runtime, "conv2d", same)
    for other in ({"bias": "float32"}, {"weight_bits": 7}, {"activations": "int8"}):
        assert claim_of(runtime, "conv2d", kernel) != claim_of(runtime, "conv2d", kernel.model_copy(update=other))
    loose = runtime.model_copy(update={"shared_scale": []})
    pool = runtime.kernel("max_pool2d")
    assert pool is not None and claim_of(runtime, "max_pool2d", pool) != claim_of(loose, "max_pool2d", pool)


# ---------------------------------------------------------------- what is shipped


def test_every_shipped_file_belongs_to_a_shipped_table() -> None:
    files = shipped_files()
    assert {"x86-avx512.litert.json", "x86-avx512.onnxruntime.json", "x86-avx512.openvino.json"} <= {
        f.name for f in files
    }
    for file in files:
        found = read_evidence(file)
        assert file.name == file_name(found.target, found.runtime)
        assert found.target in target_names()
        runtime = of(found.runtime, load_target(found.target))
        order = [(op, kernel.name, claim_of(runtime, op, kernel)) for op, kernel in cells_of(runtime)]
        shown = [(c.op, c.kernel, c.claim) for c in found.cells]
        assert shown == [key for key in order if key in shown], "cells of the table, in its order"
        text = file.read_text()
        assert "/tmp" not in text and "/root" not in text and "/work" not in text


def test_what_carries_every_model_is_proven_on_this_machine() -> None:
    for runtime in target().runtimes:
        if runtime.name == "executorch":  # proven on a CPU of another class alone
            continue
        left = unproven(target(), runtime)
        assert not {(op, "w8a8") for op in ("conv1d", "conv2d", "depthwise_conv2d", "linear")} & left, runtime.name
        assert not {
            cell
            for cell in left
            if cell[1] in ("w8", "w4", "w4g32", "w4asym", "w4g32asym", "w2", "w2g32", "w4codebook", "w2codebook")
        }, runtime.name


def test_a_target_without_evidence_has_nothing_proven() -> None:
    npu = load_target("npu-intel")
    runtime = npu.runtimes[0]
    assert unproven(npu, runtime) == {(op, kernel.name) for op, kernel in cells_of(runtime)}


# ---------------------------------------------------------------- commands


def test_show_prints_the_evidence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["targets", "show", "x86-avx512"]) == 0
    out = capsys.readouterr().out
    assert "evidence: edgeq probe, openvino" in out
    assert "not proven" not in out
    assert run(["targets", "show", "npu-intel"]) == 0
    assert "no evidence" in capsys.readouterr().out

    def doubted(target: Target, runtime: Runtime) -> Evidence | None:
        found = kept.read_evidence(next(p for p in kept.shipped_files() if p.name == "arm-neon.litert.json"))
        cells = [
            c.model_copy(update={"steps": 9}) if (c.op, c.kernel) == ("linear", "w8a16") else c for c in found.cells
        ]
        return found.model_copy(update={"cells": cells}) if runtime.name == "litert" else None

    monkeypatch.setattr(kept, "shipped", doubted)
    assert run(["targets", "show", "arm-neon"]) == 0
    assert "- linear w8a16: not proven" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--target", "x86-avx512", "--op", "embedding"], 2, "no kernel of x86-avx512 lists 'embedding'"),
        (["--target", "x86-avx512", "--runtime", "vela"], 2, "no runtime to probe"),
        (["--target", "x86-avx512", "-o", "e.json"], 2, "must be a folder"),
        (["--target", "x86-avx512", "--runtime", "openvino", "-o", "nowhere/e.json"], 2, "there is no such folder"),
        (["--target", "x86-avx512", "--device", "toaster"], 2, "there is no device"),
        (["--target", "npu-intel"], 5, "cannot be executed"),
    ],
)
def test_wrong_use(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["probe", *arguments]) == code
    assert said in capsys.readouterr().err


def test_a_table_that_holds_ends_with_zero(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    arguments = ["probe", "--target", "x86-avx512", "--runtime", "onnxruntime", "--op", "sigmoid", "-o", str(out)]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert "sigmoid" in shown and "proven" in shown and "of that operator alone" in shown
    assert read_evidence(out).cells[0].proven

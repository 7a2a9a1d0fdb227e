"""Text from files does nothing on a terminal and on a page, and can always be written."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from rich.table import Table
from rich.text import Text
from test_report import report
from torch import nn

from edgeq.cli.app import run
from edgeq.cli.terminal import Live, Plain, Visible
from edgeq.data.dataset import InputSpec, make_dataset
from edgeq.frontends.load import load
from edgeq.records.schema import Build, Report
from edgeq.report.console import render
from edgeq.report.html import render_html
from edgeq.report.junit import junit_xml
from edgeq.visible import visible, whole

EVIL = "a\x1b[2J\x9b31m\x07\x00\r\u202egnp\u2066\u200b\u2028\ud800<script>[bold red]\nPASSED"


def hidden(text: str) -> set[str]:
    return {c for c in text if not c.isprintable() and c != "\n"}


def test_escapes_name_what_they_stand_for() -> None:
    assert visible("a b\u00e9\u4e2d") == "a b\u00e9\u4e2d"
    assert visible("\x1b\n\u202e\ud800") == r"\x1b\n\u202e\ud800"
    assert visible("\x1b\n", keep="\n") == "\\x1b\n"
    assert whole("caf\udce9\u00e9") == "caf\\udce9\u00e9"


def test_nothing_that_a_console_is_given_steers_it() -> None:
    out = io.StringIO()
    console = Visible(file=out, width=300, markup=False, highlight=False)
    table = Table(EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL, "bold"))
    for one in (EVIL, Text(EVIL), Text.assemble(("b", "bold"), EVIL), table):
        console.print(one)
    with Plain(console) as stages:
        stages.note(EVIL)
        stages.end(EVIL, 1.0)
    assert hidden(out.getvalue()) == set()
    assert r"\x1b[2J" in out.getvalue() and "[bold red]" in out.getvalue()
    assert not any(line.startswith("PASSED") for line in out.getvalue().splitlines())


def test_colours_of_ours_stay_and_moving_lines_show_names_as_they_are() -> None:
    out = io.StringIO()
    console = Visible(file=out, width=100, force_terminal=True, color_system="standard", markup=False)
    console.print(Text.assemble(("red", "red"), ("\x1b[32m", "bold")))
    assert out.getvalue() == "\x1b[31mred\x1b[0m\x1b[1m\\x1b\x1b[0m\x1b[1m[32m\x1b[0m\n"
    with Live(console) as stages:
        stages.start("plan [bold]\x9b")
    assert "plan [bold]\\x9b" in out.getvalue() and "\x9b" not in out.getvalue()


def evil_report() -> Report:
    base = report()
    broken = base.builds[0].model_copy(update={"error": EVIL})
    named = base.builds[1].model_dump() | {"files": {EVIL: 1}, "runtime": EVIL}
    return Report.model_validate(
        base.model_dump() | {"builds": [broken.model_dump(), named], "model": EVIL, "warnings": [EVIL]}
    )


def test_a_report_of_evil_names_is_shown_and_written_everywhere() -> None:
    found = evil_report()
    assert isinstance(found.builds[0], Build) and whole(EVIL) == found.model
    out = io.StringIO()
    render(found, Visible(file=out, width=100, markup=False, highlight=False), Path("x"))
    page, suites, document = render_html(found), junit_xml(found), found.model_dump_json()
    assert hidden(out.getvalue()) == hidden(page) == hidden(suites) == set()
    assert "<script>" not in page and "alert" not in page
    assert [suite.tag for suite in ET.fromstring(suites)] == ["testsuite"] * 2
    assert Report.model_validate_json(document.encode()) == found


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose layers, file and data have names from hell; their folder is the returned one."""
    folder = tmp_path_factory.mktemp("names")
    x = torch.zeros(1, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    torch.export.save(torch.export.export(net, (x,)), folder / "plain.pt2")
    with zipfile.ZipFile(folder / "plain.pt2") as old, zipfile.ZipFile(folder / "evil\udce9.pt2", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("models/model.json"):
                content = json.dumps(renamed(json.loads(content))).encode()
            new.writestr(name, content)
    images = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "c\udce9.npz", x=images)
    return folder


def renamed(model: dict) -> dict:  # type: ignore[type-arg]
    for node in model["graph_module"]["graph"]["nodes"]:
        stack = node["metadata"].get("nn_module_stack")
        if stack:
            # brackets in it are counted when it is read
            head, path, kind = stack.split(";")[-1].split(",", 2)
            node["metadata"]["nn_module_stack"] = ";".join([*stack.split(";")[:-1], f"{head},{path}{EVIL}],{kind}"])
    return model


def test_a_run_with_names_that_are_no_text_ends_well(evil: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (model,), (data,) = evil.glob("evil*.pt2"), evil.glob("c*.npz")
    assert any("\\ud800" in group.name for group in load(model).groups)
    out = evil / "out"
    arguments = ["deploy", str(model), "--target", "x86-avx512", "--format", "onnx", "--calib", str(data)]
    assert run([*arguments, "--out", str(out)]) == 0
    for command in (["inspect", str(model)], ["explain", str(out / "plan.json")], ["report", str(out)]):
        assert run(command) in (0, 2)
    assert run(["verify", str(out)]) == 0
    told = capfd.readouterr()
    assert hidden(told.out) == hidden(told.err) == set()
    assert json.loads((out / "report.json").read_text())["model"].startswith("evil\\udce9")
    assert hidden((out / "report.html").read_text()) == set()
    assert run([*arguments, "--plan", str(out / "plan.json"), "--out", str(evil / "again"), "--quiet"]) == 0


def test_sources_and_names_can_be_written() -> None:
    data = make_dataset(
        {"x": np.zeros((1, 2))}, [InputSpec("x", (None, 2), "float64")], labels=None, source="c\udce9.npz"
    )
    assert data.source == "c\\udce9.npz"

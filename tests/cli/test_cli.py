"""The command line: its answers, its errors, and its two streams, which belong to it alone."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from edgeq import __version__
from edgeq.cli import signals
from edgeq.cli.app import app, run
from edgeq.cli.shell import plain
from edgeq.cli.terminal import Live, Plain
from edgeq.errors import DeviceError, UnsupportedError
from edgeq.lock import Drift
from edgeq.progress import Clock
from edgeq.records.schema import Audit, Build, Gate, Report
from edgeq.registry.load import target_names

PROGRAM = (sys.executable, "-m", "edgeq.cli")
COMMANDS = [
    ["deploy"], ["inspect"], ["targets"], ["targets", "show"], ["device"], ["device", "list"], ["device", "setup"],
    ["validate"], ["verify"], ["report"], ["plan"], ["explain"], ["cache"], ["cache", "clear"],
    ["probe"], ["train"],
]  # fmt: skip
LEAVES = [command for command in COMMANDS if command != ["device"]]
DEPLOY = ["deploy", "m.pt2", "--target", "x86-avx512", "--calib", "c.npz", "--out", "out"]

# A network whose module writes to every stream there is, at import, while it is built, and at exit.
CHATTY = """
import atexit, ctypes, os, sys, warnings, logging
import torch

def shout(text):
    print(text)
    print(text, file=sys.stderr)
    os.write(1, text.encode() + b"\\n")
    os.write(2, text.encode() + b"\\n")
    ctypes.CDLL(None).puts(text.encode())
    warnings.warn(text)
    logging.getLogger("chatty").warning(text)

shout("chatter")
atexit.register(shout, "chatter at exit")

def make():
    shout("chatter while building")
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())

def leave():
    sys.exit(0)

def wait():
    import time
    open("waiting", "w").close()
    time.sleep(60)
"""
CHATTY_INSPECT = ["inspect", "weights.pt", "--input", "1x3x8x8", "--target", "arm-neon"]


class Tiny(torch.nn.Module):
    """One of each thing that `inspect` tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.relu(self.norm(self.conv(image)))
        return self.head(torch.atan(x).mean((2, 3)))


def report(verdict: str = "passed", gates: Sequence[Gate] = ()) -> Report:
    audit = Audit(tensors_checked=1, bytes_checked=1, integer_mac_percent=100.0, float_operators=[])
    build = Build(
        format="onnx", runtime="onnxruntime", runtime_version="1", device="local", emulated=False,
        files={"model.onnx": 1000}, size_bytes=1000, validated=False, not_validated_because="a test", accuracy=None,
        speed=None, no_speed_because=None, peak_memory_bytes=None, cold_start_seconds=None, placements=[], audit=audit,
        layers=[], gates=list(gates),
    )  # fmt: skip
    return Report(
        edgeq=__version__, model="m.pt2", model_hash="0" * 64, model_kind="torch.export", parameters=1, macs=1,
        target="x86-avx512", profile=None, verdict=verdict, verdict_text="So it went.", chosen="onnx",  # type: ignore[arg-type]
        chosen_because="it is the only one", builds=[build], warnings=[], data={}, environment={},
        seconds={"load": 1.5},
    )  # fmt: skip


@dataclass
class FakeDeploy:
    """Stands for `edgeq.deploy`, `validate` and `verify`: remembers how it was called, and answers or fails as told."""

    answer: Any = None
    error: BaseException | None = None
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        progress = options.pop("progress")
        self.calls.append((name, args, options))
        with Clock(progress).stage("calibrate"):
            progress.step(1, 2)
            progress.note("look [here]")
        if self.error is not None:
            raise self.error
        return self.answer


@dataclass
class Verified:
    ok: bool
    files_changed: list[str]
    versions_changed: dict[str, tuple[str, str]]
    drifts: dict[str, Drift]

    def lines(self) -> list[str]:
        return ["files: as locked", f"drift: {len(self.drifts)}"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDeploy:
    made = FakeDeploy(report())
    for name in ("deploy", "validate", "verify"):
        module = ModuleType(f"edgeq.api.{name}")
        setattr(module, name, partial(made.call, name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.pt2"
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Tiny().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatty")
    (folder / "chatty.py").write_text(CHATTY)
    torch.save({"0.weight": torch.zeros(4, 3, 3, 3), "0.bias": torch.zeros(4)}, folder / "weights.pt")
    return folder


def execute(arguments: Sequence[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def told(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The error as JSON and as text."""
    captured = capsys.readouterr()
    error: dict[str, Any] = json.loads(captured.out)["error"]
    return error, captured.err


# ---------------------------------------------------------------- help and wrong use


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_every_command_has_the_common_options(command: list[str]) -> None:
    text = CliRunner().invoke(app, [*command, "--help"]).output
    assert all(option in text for option in ("--json", "--quiet", "--debug"))


def test_help_shows_brackets() -> None:
    assert "[name:]shape[:dtype]" in " ".join(
        CliRunner().invoke(app, ["deploy", "--help"], env={"COLUMNS": "200"}).output.split()
    )


def test_start_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'onnx', 'onnxruntime'} & set(sys.modules)"
    code = f"import sys, edgeq.cli.app; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["--version", "--json"]], ids=" ".join)
def test_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a command is missing"),
        (["depoly"], "Did you mean 'deploy'?"),
        (["deploy"], "missing argument"),
        (["deploy", "m.pt2"], "missing option"),
        ([*DEPLOY, "--calibration", "x"], "no such option"),
        ([*DEPLOY, "--format", "exe"], "'exe' is not one of"),
        ([*DEPLOY, "--io", "int4"], "'int4' is not one of"),
        ([*DEPLOY, "--threads", "0"], "--threads"),
        ([*DEPLOY, "--max-drop", "lots"], "--max-drop: cannot read 'lots'"),
        ([*DEPLOY, "--max-latency", "2"], "--max-latency: cannot read '2'"),
        (["targets", "show", "x86-avx51"], "there is no target"),
        (["targets", "show", "./none.toml"], "there is no file"),
        (["inspect", "none.pt2"], "there is no file"),
        (["inspect", __file__], "not a model that edgeq reads"),
        (["device", "setup", "toaster"], "toaster"),
        (["report", "nowhere"], "there is no report.json here"),
        (["report", "nowhere", "--html"], "there is no report.html here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_use_is_told_with_a_remedy(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, "--json"]) == 2
    error, text = told(capsys)
    assert said in f"{error['where']}: {error['cause']}"
    assert (error["kind"], error["exit_code"]) == ("usage", 2)
    assert error["remedy"]
    first, second = text.splitlines()
    assert first.startswith("error: ") and said in first
    assert second == f"  remedy: {error['remedy']}"


def test_an_unknown_target_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "show", "x86-avx51"]) == 2
    assert "did you mean x86-avx512" in capsys.readouterr().err


# ---------------------------------------------------------------- answers


def test_targets_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets"]) == 0
    out, err = capsys.readouterr()
    assert all(name in out for name in target_names()) and err == ""
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    "arguments", [["--json", "targets", "show"], ["targets", "--json", "show"], ["targets", "show", "--json"]]
)
def test_flags_may_stand_anywhere(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, "arm-neon"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "arm-neon"


def test_targets_show_names_the_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "show", "x86-avx2"]) == 0
    out = capsys.readouterr().out
    assert "depthwise_conv2d" in out and "7 bits" in out


def test_targets_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeq.registry.load.check_all", list)
    assert run(["targets", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"problems": []}
    monkeypatch.setattr("edgeq.registry.load.check_all", lambda: ["targets/x.toml: name: is wrong"])
    assert run(["targets", "--check"]) == 2
    assert "name: is wrong" in capsys.readouterr().out


def test_device_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["device", "list", "--json"]) == 0
    devices = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["devices"]}
    assert devices["local"]["ready"] and devices["arm64"]["emulated"]
    assert run(["device", "list"]) == 0
    assert "local" in capsys.readouterr().out


def test_inspect_tells_what_a_model_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["kind"] == "torch.export"
    assert found["inputs"] == [{"name": "image", "shape": [None, 3, 8, 8], "dtype": "float32"}]
    assert found["outputs"][0]["shape"] == [None, 5]
    assert found["macs"] == 8 * 8 * 4 * 27 + 20
    assert [(layer["name"], layer["op"], layer["activation"]) for layer in found["layers"][:1]] == [
        ("conv", "conv2d", "relu")
    ]
    assert {fit["target"] for fit in found["targets"]} == set(target_names())
    assert all(fit["integer_mac_percent"] == 100 for fit in found["targets"])
    assert all(fit["float_operators"]["aten.atan.default"] == 1 for fit in found["targets"])
    assert "aten.atan.default" in found["notes"][0]


def test_inspect_refuses_what_returns_no_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Rows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return x * 2, x.shape[0]

    free = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.export.save(torch.export.export(Rows(), (torch.ones(2, 3),), dynamic_shapes=free), tmp_path / "rows.pt2")
    assert run(["inspect", str(tmp_path / "rows.pt2")]) == 4
    assert "output 1 is a size" in capsys.readouterr().err


def test_inspect_fits_the_console(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model), "--target", "arm-neon", "--target", "npu-intel"]) == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 100 and err == ""
    assert "conv2d + relu" in out and "image [N, 3, 8, 8] float32" in out
    assert "npu-intel" in out and "x86-avx512" not in out


def test_report_shows_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(report().model_dump_json())
    (tmp_path / "report.html").write_text("<p>")
    assert run(["report", str(tmp_path)]) == 0
    assert "So it went." in capsys.readouterr().out
    assert run(["report", str(tmp_path), "--json"]) == 0
    assert Report.model_validate_json(capsys.readouterr().out) == report()
    assert run(["report", str(tmp_path), "--html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["html"] == str(tmp_path / "report.html")
    (tmp_path / "report.json").write_text('{"schema_version": 7}')
    assert run(["report", str(tmp_path)]) == 2
    assert "is no report that this edgeq can read" in capsys.readouterr().err


# ---------------------------------------------------------------- deploy, validate, verify


def test_deploy_hands_on_every_option(fake: FakeDeploy, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--eval e.npz --preprocess imagenet --metric pkg.mod:fn --format tflite --device arm64 --profile p.toml "
        "--threads 2 --io int8 --input 1x3x8x8 --input ids:1x4:int64 --arch a:b --trust-pickle --max-drop 1% "
        "--max-latency 2ms --max-size 4MB --min-speedup 1.5x --allow-slower --allow-unrecognizable "
        "--smooth-quant off --method nearest --effort max --emit c --overwrite"
    )
    assert run([*DEPLOY, *options.split()]) == 0
    ((name, args, given),) = fake.calls
    limits = given.pop("limits")
    assert (name, args) == ("deploy", ("m.pt2",))
    assert given == {
        "target": "x86-avx512", "calibration": "c.npz", "evaluation": "e.npz", "out": Path("out"), "format": "tflite",
        "preprocess": "imagenet", "metric": "pkg.mod:fn", "device": "arm64", "profile": "p.toml", "threads": 2,
        "io": "integer", "inputs": ["1x3x8x8", "ids:1x4:int64"], "arch": "a:b", "trust_pickle": True, "overwrite": True,
        "plan": None, "smooth_quant": "off", "method": "nearest", "effort": "max", "emit": "c",
    }  # fmt: skip
    assert limits.allow_unrecognizable
    assert (str(limits.max_drop), limits.max_latency, limits.max_size) == ("1%", 2e-3, 4_000_000)
    assert (limits.min_speedup, limits.allow_slower) == (1.5, True)


def test_deploy_shows_stages_and_the_outcome(fake: FakeDeploy, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(DEPLOY) == 0
    out, err = capsys.readouterr()
    assert "PASSED" in out and "out/model.onnx" in out
    assert re.search(r"^  calibrate +\d", err, re.M) and "note: look [here]" in err


def test_deploy_writes_pure_json(fake: FakeDeploy, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*DEPLOY, "--json"]) == 0
    out, err = capsys.readouterr()
    assert Report.model_validate_json(out) == report()
    assert "calibrate" in err and "PASSED" in err


def test_quiet_says_nothing(fake: FakeDeploy, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*DEPLOY, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("flags", [[], ["--quiet"], ["--json"]], ids=str)
def test_a_missed_limit_is_exit_code_3(flags: list[str], fake: FakeDeploy, capsys: pytest.CaptureFixture[str]) -> None:
    gate = Gate(name="size", limit="at most 1 kB", measured="2 kB", passed=False, reason="1 kB over")
    fake.answer = report("failed", [gate])
    assert run([*DEPLOY, *flags]) == 3
    out, err = capsys.readouterr()
    assert "error: m.pt2 on x86-avx512: size 2 kB, limit at most 1 kB" in err
    if flags == ["--json"]:
        assert json.loads(out)["verdict"] == "failed"


def test_not_validated_is_no_failure(fake: FakeDeploy) -> None:
    fake.answer = report("not validated")
    assert run(DEPLOY) == 0


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (UnsupportedError("no", where="conv1", remedy="do"), 4, "unsupported"),
        (DeviceError("no", where="conv1", remedy="do"), 5, "device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "internal"),
        (OSError(28, "No space left on device", "/x"), 2, "usage"),
        (ValueError("boom\nand more"), 1, "internal"),
        (SystemExit(0), 2, "usage"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_have_exit_codes_and_no_traceback(
    error: BaseException, code: int, kind: str, fake: FakeDeploy, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.error = error
    assert run([*DEPLOY, "--quiet", "--json"]) == code
    document, text = told(capsys)
    assert (document["kind"], document["exit_code"]) == (kind, code)
    assert "Traceback" not in text and text.count("error: ") >= 1
    assert len(text.splitlines()) <= 2


def test_debug_shows_the_traceback(fake: FakeDeploy, capsys: pytest.CaptureFixture[str]) -> None:
    fake.error = ValueError("boom")
    assert run(DEPLOY) == 1
    text = capsys.readouterr().err
    assert "internal error: ValueError: boom (run with --debug for the traceback)" in text
    assert "Traceback" not in text
    assert run([*DEPLOY, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_errors_cannot_steer_the_terminal(fake: FakeDeploy, capsys: pytest.CaptureFixture[str]) -> None:
    fake.error = UnsupportedError("\x1b[2Jgone", where="a\rb")
    assert run(DEPLOY) == 4
    text = capsys.readouterr().err
    assert "\x1b" not in text and "\r" not in text and "gone" in text


def test_validate_hands_on_its_options(fake: FakeDeploy) -> None:
    arguments = "validate a.onnx --model m.pt2 --target t --eval e.npz --device local --max-drop 1%"
    assert run(arguments.split()) == 0
    ((name, args, given),) = fake.calls
    assert (name, args, given["model"], given["evaluation"]) == ("validate", (Path("a.onnx"),), "m.pt2", "e.npz")
    assert (given["target"], given["device"], given["threads"]) == ("t", "local", 1)


def test_verify(fake: FakeDeploy, capsys: pytest.CaptureFixture[str]) -> None:
    drift = Drift(samples=4, bit_equal=False, max_abs=float("inf"), max_steps=None, top1_changes=1)
    fake.answer = Verified(True, [], {"torch": ("1", "2")}, {"onnx": drift})
    assert run(["verify", "build", "--device", "local"]) == 0
    assert capsys.readouterr().out == "files: as locked\ndrift: 1\n"
    assert fake.calls == [("verify", (Path("build"),), {"device": "local"})]
    fake.answer.ok = False
    assert run(["verify", "build", "--json"]) == 3
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["drifts"]["onnx"]["max_abs"] is None and found["versions_changed"] == {"torch": ["1", "2"]}
    assert "error: build: the build is not what its lock says" in err


# ---------------------------------------------------------------- streams of a real process


def test_libraries_reach_neither_stream(chatty: Path) -> None:
    done = execute([*CHATTY_INSPECT, "--arch", "chatty:make", "--json"], chatty)
    assert done.returncode == 0
    assert json.loads(done.stdout)["kind"] == "state_dict"
    assert done.stderr == ""


def test_with_debug_chatter_goes_to_standard_error(chatty: Path) -> None:
    done = execute([*CHATTY_INSPECT, "--arch", "chatty:make", "--json", "--debug"], chatty)
    assert json.loads(done.stdout)["kind"] == "state_dict"
    assert "chatter while building" in done.stderr and "chatter at exit" in done.stderr


def test_code_that_exits_is_no_success(chatty: Path) -> None:
    done = execute([*CHATTY_INSPECT, "--arch", "chatty:leave"], chatty)
    assert done.returncode == 2
    assert "called sys.exit(0)" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_cleanly(number: signal.Signals, code: int, chatty: Path) -> None:
    (chatty / "waiting").unlink(missing_ok=True)
    process = subprocess.Popen(
        [*PROGRAM, *CHATTY_INSPECT, "--arch", "chatty:wait"],
        cwd=chatty,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 40
    while not (chatty / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (code, "", "error: interrupted\n")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report().model_dump_json())
    for arguments in (["report", ".", "--json"], ["report", "."], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*PROGRAM, *arguments], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
        )
        os.close(writing)
        assert done.stderr == ""


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=str)
def test_colours_on_a_terminal_unless_refused(environment: dict[str, str], coloured: bool, tmp_path: Path) -> None:
    text = on_terminal(["report", "nowhere"], tmp_path, {"TERM": "xterm-256color", **environment})
    assert "there is no report.json here" in text
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) == coloured


def test_no_colours_when_piped(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report().model_dump_json())
    done = execute(["report", "."], tmp_path, TERM="xterm-256color")
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr


def test_an_ascii_terminal_is_enough(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report().model_dump_json())
    done = execute(["report", "."], tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0 and "So it went." in done.stdout


def on_terminal(arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> str:
    """What the program shows on a terminal of its own."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments], cwd=folder, env={**inherited, **environment}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    text = b"".join(iter_terminal(ours))
    process.wait(timeout=60)
    os.close(ours)
    return text.decode()


def iter_terminal(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            block = os.read(descriptor, 4096)
        except OSError:  # so Linux says that the other side has closed
            return
        if not block:
            return
        yield block


# ---------------------------------------------------------------- stages


def test_live_stages_stand_when_they_are_over() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with Live(console) as stages:
        clock = Clock(stages)
        with clock.stage("plan [x]"), clock.stage("sensitivity"):
            stages.step(3, 10)
            time.sleep(0.3)  # it is drawn ten times a second
            stages.note("kept [this]")
    text = stream.getvalue()
    assert "plan [x]" in text and "sensitivity" in text and "note: kept [this]" in text and "3/10" in text


def test_a_swallowed_signal_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Plain(Console(file=io.StringIO()))
    stages.start("load")
    monkeypatch.setattr(signals, "_stopped_by", signals.Stopped(signal.SIGTERM))
    with pytest.raises(signals.Stopped):
        stages.step(1, 2)


def test_plain_values() -> None:
    drift = Drift(samples=1, bit_equal=True, max_abs=float("nan"), max_steps=0.5, top1_changes=None)
    assert plain({"a": drift, "b": Path("x"), "c": (1, 2)}) == {
        "a": {"samples": 1, "bit_equal": True, "max_abs": None, "max_steps": 0.5, "top1_changes": None},
        "b": "x",
        "c": [1, 2],
    }

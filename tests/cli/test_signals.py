"""Signals, at whatever moment they come: the program ends soon, with the code of the signal, one line, and no hang."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are others there")

SLOW = """
import time
begun = True
print("importing", flush=True)
time.sleep(1)
done = True
"""

# The main thread and another one import the same module. It is whole when the signal is raised.
IMPORTS = """
import sys, threading
from edgeq.cli import signals
signals.install()
def also():
    import slow
    print("also", slow.done, flush=True)
threading.Timer(0.3, also).start()
try:
    import slow
    import time
    time.sleep(30)
except signals.Stopped as stopped:
    print("main", sys.modules["slow"].done, stopped.exit_code, flush=True)
    sys.exit(stopped.exit_code)
"""

# Whoever catches everything keeps the program from ending.
SWALLOWS = """
import time
from edgeq.cli import signals
signals._PATIENCE = 1
signals.at_the_last(lambda: print("the last word", flush=True))
signals.install()
while True:
    try:
        print("ready", flush=True)
        time.sleep(30)
    except BaseException:
        pass
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_signal_is_raised_within_an_import(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    process = started(IMPORTS, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert sorted(out.split("\n")) == ["", "also True", f"main True {128 + number}"]


def test_a_program_that_does_not_unwind_is_ended(tmp_path: Path) -> None:
    process = started(SWALLOWS, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (143, "ready\nthe last word\n")


# An import that takes longer than a process is waited for.
ENDLESS = """
from edgeq.cli import signals
signals._PATIENCE = 1
signals.install()
import slow
"""


def test_an_import_that_does_not_end_is_ended_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW.replace("sleep(1)", "sleep(30)"))
    process = started(ENDLESS, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (143, "error: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_any_moment_of_a_start(number: signal.Signals, tmp_path: Path) -> None:
    """Before the handler is there, the system's own answer counts too, which a shell sees as the same; behind the
    end, that of the command."""
    dice = random.Random(number)
    ends = []
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeq.cli", "inspect", "missing.pt2", "--quiet"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        time.sleep(dice.uniform(0.1, 2.5))
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
        ends.append((process.returncode, told))
    for code, told in ends:
        assert code in (128 + number, -number, 2)
        assert code != 128 + number or "error: interrupted\n" in told


def started(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
    )

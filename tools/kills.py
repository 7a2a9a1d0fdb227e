"""Kills `edgeq plan` and `edgeq deploy` at random moments; the next run has to end as if nothing had happened.

    python examples/digits.py DIGITS
    python tools/kills.py DIGITS --kills 200

Each round starts from an empty cache or from what the round before left there, starts a run, sends it SIGKILL after a
random share of the time that an undisturbed run takes, and runs the same command to its end. Its plan and artefact
must be those of the undisturbed run, byte for byte; what is measured (times, and what follows from them) is left out.
Loss is minimized, so that no measured time decides. Runs are forked from a process that has everything imported.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a folder with model.pt (or .pt2), calib.npz and eval.npz")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", default="onnx")
    parser.add_argument("--max-size", default="0.2MB")
    parser.add_argument("--max-drop", help="of the plan; one that it misses has rounds that leave samples out")
    parser.add_argument("--scratch", type=Path, default=Path("build/kills"))
    given = parser.parse_args()
    if not any(given.data.glob("model.pt*")):
        parser.error(f"{given.data} holds no model.pt or model.pt2: python examples/digits.py {given.data}")
    _import_everything(given.format)
    shutil.rmtree(given.scratch, ignore_errors=True)
    given.scratch.mkdir(parents=True)
    rng = random.Random(given.seed)
    commands = {name: _Command(name, given) for name in ("plan", "deploy")}
    for command in commands.values():
        command.learn()
        print(f"{command.name}: {command.cold:.1f} s undisturbed, {command.warm:.1f} s with a cache", flush=True)
    faults, where = 0, Counter[str]()
    while (number := sum(where.values())) < given.kills:
        command = commands["plan" if number % 2 else "deploy"]
        empty = rng.random() < 0.5
        if empty:
            shutil.rmtree(command.cache, ignore_errors=True)
        stage = command.kill(rng.random() * (command.cold if empty else command.warm))
        if stage is None:  # it was faster than that
            continue
        where[f"{command.name} after {stage}"] += 1
        fault = command.differs()
        faults += bool(fault)
        print(f"{number + 1}/{given.kills} {command.name} killed after {stage}: {fault or 'the same'}", flush=True)
    print(json.dumps({"kills": given.kills, "differ": faults, "where": dict(where)}, indent=2))
    return 1 if faults else 0


_STAGE = re.compile(r"^  (\S.*?) +[\d.]+ (?:ms|us|s|min)$", re.MULTILINE)


class _Command:
    """One of the two commands, with a cache and a place for its result."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name, folder = name, given.scratch / name
        folder.mkdir()
        self.cache, self.out, self.log = folder / "cache", folder / "out", folder / "log"
        model = next(path for path in sorted(given.data.glob("model.*")) if path.suffix in (".pt", ".pt2"))
        self.arguments = [
            name, str(model), "--target", "x86-avx512", "--format", given.format,
            "--calib", str(given.data / "calib.npz"), "--eval", str(given.data / "eval.npz"),
        ]  # fmt: skip
        if name == "plan":
            self.out = self.out.with_suffix(".json")
            self.arguments += ["--minimize", "loss", "--max-size", given.max_size, "-o", str(self.out)]
            self.arguments += ["--max-drop", given.max_drop] if given.max_drop else []
        else:
            self.arguments += ["--allow-slower", "--overwrite", "--out", str(self.out)]
        self.cold, self.warm, self.wanted = 0.0, 0.0, ""

    def learn(self) -> None:
        """What an undisturbed run makes, and how long it takes without a cache and with one."""
        begin = time.monotonic()
        self._finish(self._start())
        between = time.monotonic()
        self.wanted = self._result()
        self._finish(self._start())
        self.cold, self.warm = between - begin, time.monotonic() - between

    def kill(self, after: float) -> str | None:
        """Starts a run, kills it, and says what it had just done; None if it had come to its end."""
        process = self._start()
        time.sleep(after)
        os.kill(process, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != -signal.SIGKILL:
            return None
        done = _STAGE.findall(self.log.read_text(errors="replace"))
        return done[-1] if done else "nothing"

    def differs(self) -> str:
        """Runs to the end; empty if the result is that of the undisturbed run."""
        self._finish(self._start())
        left = [p.name for p in self.out.parent.iterdir() if ".partial-" in p.name or ".replaced-" in p.name]
        if left:
            return f"leftovers: {left}"
        return "" if self._result() == self.wanted else "ANOTHER RESULT"

    def _start(self) -> int:
        process = os.fork()
        if process:
            return process
        with open(self.log, "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ["EDGEQ_CACHE"] = str(self.cache.resolve())
        sys.argv = ["edgeq", *self.arguments]
        from edgeq.cli import main as edgeq

        try:
            edgeq()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        os._exit(0)

    def _finish(self, process: int) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status not in (0, 3):
            sys.exit(f"{self.name} ended with {status}:\n{self.log.read_text(errors='replace')}")

    def _result(self) -> str:
        """Digest of all that is not a measurement."""
        digest = hashlib.sha256()
        if self.name == "plan":
            digest.update(json.dumps(_unmeasured(json.loads(self.out.read_text())), sort_keys=True).encode())
        else:
            for path in sorted(self.out.glob("model.*")):
                digest.update(path.read_bytes())
            digest.update((self.out / "plan.json").read_bytes())
        return digest.hexdigest()


def _unmeasured(plan: dict[str, Any]) -> dict[str, Any]:
    layers = [{k: v for k, v in layer.items() if k not in ("alternatives", "reason")} for layer in plan["layers"]]
    return {k: v for k, v in plan.items() if k != "planned"} | {"layers": layers}


def _import_everything(form: str) -> None:
    """What takes seconds and is not what is tested here."""
    import torch

    import edgeq.api.deploy
    import edgeq.cli.app
    import edgeq.cli.deploy
    import edgeq.cli.plan
    import edgeq.planning.planner  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork
    modules: Sequence[str] = ("torch.export.pt2_archive", "torch.onnx", "onnxscript")
    for name in (*modules, "litert_torch") if form == "tflite" else modules:
        __import__(name)


if __name__ == "__main__":
    sys.exit(main())

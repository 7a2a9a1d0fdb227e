"""A tool's work in a process of its own, in an environment of its own: whatever becomes of it, there is an answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from peer_tools.job import Job
from peer_tools.table import Tool

BENCH = Path(__file__).parent.parent
ROOT = BENCH.parent.parent


@dataclass(frozen=True)
class Made:
    """What became of a job.

    Attributes:
        error: the last line of what was said; empty where the artefact is there.
        seconds: from the model file to the artefact, imports left out.
        peak_bytes: the most that was ever resident.
    """

    error: str = ""
    version: str = ""
    seconds: float | None = None
    peak_bytes: int | None = None


def make(tool: Tool, job: Job, environments: Path, minutes: float = 120.0) -> Made:
    """Does a job, unless its folder tells that the same one was done before.

    Args:
        environments: folder of those that are made for tools.
        minutes: after so many it is given up.
    """
    folder = job.out.parent
    told, result, log = folder / "job.json", folder / "result.json", folder / "log"
    if not result.exists() or told.read_text(encoding="utf-8") != job.text():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        told.write_text(job.text(), encoding="utf-8")
        python = interpreter(tool.requires, environments)
        if isinstance(python, str):
            return Made(f"it does not install: {python}")
        paths = [BENCH, ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "EDGEQ_CACHE": str(folder / "cache")}
        command = [python, "-W", "ignore", "-m", tool.module, "job.json"]
        try:
            with log.open("w", encoding="utf-8") as said:
                status = subprocess.run(
                    command, cwd=folder, env=os.environ | settings, stdout=said, stderr=said, timeout=60 * minutes
                ).returncode
        except subprocess.TimeoutExpired:
            return Made(f"it was not done after {minutes:g} minutes")
        if not result.exists():
            return Made(last_line(log.read_text(encoding="utf-8", errors="replace")) or f"it ended with {status}")
    found = json.loads(result.read_text(encoding="utf-8"))
    if not job.out.exists():
        return Made("it wrote no file", found["version"])
    return Made("", found["version"], sum(found["seconds"].values()), found["peak_bytes"])


def interpreter(requires: tuple[str, ...], environments: Path) -> Path | str:
    """A Python that has these packages beside all that this one has, made where it is not there yet; or why it cannot
    be made. PyTorch is this one's: a second build of it takes gigabytes."""
    if not requires:
        return Path(sys.executable)
    folder = environments.resolve() / "-".join(requires)
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (found,) = folder.glob("lib/python*/site-packages")
        (found / "project.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        limit = folder / "constraints.txt"
        limit.write_text(f"torch=={version('torch').partition('+')[0]}\n", encoding="utf-8")
        command = [python, "-m", "pip", "install", "--quiet", "--constraint", limit, *requires]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return last_line(done.stderr)
        ready.touch()
    return python


def last_line(text: str) -> str:
    """The last one that says something, without pip's remarks on itself."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line[:200] for line in lines if line and not line.startswith(("[notice]", "WARNING"))), "")

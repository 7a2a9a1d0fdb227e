"""A module of this package in a Python process of its own: what may crash, or keep memory, does so there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

_AS_MODULE = (
    "import sys; sys.path[:] = [one for one in sys.path if one]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
"""What `python -m` does, without the working folder in the path: a model's folder may hold a `torch.py`."""


def run_module(
    module: str, *arguments: str, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end; what it prints is kept.

    Args:
        env: variables beside those of this process.
        timeout: seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _AS_MODULE, module, *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
    )


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Why it failed, in one line."""
    if done.returncode < 0:
        return f"its process was ended by signal {-done.returncode}: there may be too little memory"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it says nothing"

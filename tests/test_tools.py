"""What measures edgeq from outside follows it: every tool and example starts."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for folder in ("tools", "examples") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_finds_all_that_it_imports(script: Path) -> None:
    command = "__main__" in script.read_text(encoding="utf-8")
    assert callable(runpy.run_path(str(script)).get("main")) == command

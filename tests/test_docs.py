"""What README and docs show is true: their blocks run, their options exist, and so do their links and paths.

All pages share one folder, and the model that the tutorial trains. A block that begins with a comment of a file's name
is that file. A comment before a block, which readers do not see, says what does not run with the others, and why:

    <!-- not run: it needs a phone -->
    <!-- slow: it starts eight processes -->    run by `make docs`
    <!-- arm64: the emulated machine -->        run where that machine is set up; also `slow, arm64`
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from edgeq.cli.app import app, run
from edgeq.devices import device_status

ROOT = Path(__file__).parent.parent
FIRST = [ROOT / "docs" / "tutorial.md", ROOT / "README.md", ROOT / "docs" / "planning.md"]
PAGES = FIRST + sorted({*(ROOT / "docs").rglob("*.md"), ROOT / "examples" / "README.md"} - set(FIRST))
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>not run|slow|arm64|slow, arm64): [^\n]+ -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
KINDS = {"bash", "python", "toml", "text", "kotlin", "mermaid"}
JUDGES = ("deploy", "plan", "validate")
"""Commands whose exit code 3 says that a limit was missed, as may be on the machine at hand."""


@dataclass(frozen=True)
class Shown:
    """A block of a page, and where it stands."""

    where: str
    kind: str
    text: str
    mark: str


def blocks(page: Path) -> Iterator[Shown]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("kind")) + 1
        yield Shown(f"{page.relative_to(ROOT)}:{line}", found["kind"], found["text"], found["mark"] or "")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each line of bash."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def runs(block: Shown, *, own: bool) -> bool:
    """Whether a block runs here; `own` is a page whose Python is run by a test of its own."""
    if block.kind not in ("bash", "python") or (own and block.kind == "python"):
        return False
    arm64 = any(device.name == "arm64" and device.ready for device in device_status())
    here = {"": True, "not run": False, "slow": "EDGEQ_SLOW_DOCS" in os.environ, "arm64": arm64}
    return all(here[mark] for mark in block.mark.split(", "))


def options(command: Any) -> set[str]:
    """Of a command, and of those below it."""
    below = getattr(command, "commands", {}).values()
    return {option for parameter in command.params for option in parameter.opts}.union(*map(options, below))


def unknown_options(words: list[str]) -> list[str]:
    """The options of an edgeq command that it does not have."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return [word for word in words if re.match(r"--?[a-z]", word) and word.split("=")[0] not in options(command)]


def anchors(page: Path) -> set[str]:
    """What links may name behind `#`, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_what_is_shown_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    others = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)
    )
    for page in PAGES:
        names: dict[str, Any] = {"__name__": "__main__"}
        for block in blocks(page):
            if named := re.match(r"# ([\w-]+\.\w+)\n", block.text):
                Path(named[1]).write_text(block.text, encoding="utf-8")
            if not runs(block, own=f'"{page.name}"' in others):
                continue
            if block.kind == "python":
                exec(compile(block.text, block.where, "exec"), names)
                continue
            for words in commands(block.text):
                assert words[0] == "edgeq", f"{block.where}: {words[0]} is not run: say so before the block"
                code = run(words[1:])
                told = capsys.readouterr().err
                assert code == 0 or (code == 3 and words[1] in JUDGES), f"{block.where}: {' '.join(words)}\n{told}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(list(blocks(page))) == len(re.findall(r"^```\w", text, re.M)), "a block that is not read"
    assert text.count("<!--") == sum(bool(block.mark) for block in blocks(page)), "a comment before no block"
    assert {block.kind for block in blocks(page)} <= KINDS, "a language whose blocks nobody runs"
    assert not re.search(r"\n\n    \S", BLOCK.sub("", text)), "an indented block: fence it, and name its language"
    inline = [shlex.split(code.replace("'", "")) for code in re.findall(r"`((?:edgeq |--)[^`\n]+)`", text)]
    shown = [words for block in blocks(page) if block.kind == "bash" for words in commands(block.text)]
    for words in inline + shown:
        if words[0] == "edgeq" or words[0].startswith("--"):
            assert not unknown_options(words), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        other = page.parent / path if path else page
        assert other.exists(), link
        assert not anchor or anchor in anchors(other), link
    for path in re.findall(r"(?<![\w./-])(?:[\w-]+/)+[\w-]+\.(?:py|md|toml|sh|txt)\b", BLOCK.sub("", text)):
        assert any((folder / path).exists() for folder in (ROOT, ROOT / "edgeq", page.parent)), path

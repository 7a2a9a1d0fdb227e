"""The order of the packages: what stands above another may import it, and never the other way round."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import edgeq

ROOT = Path(edgeq.__file__).parent

ORDER = [
    "on_device",
    "version",
    "errors",
    "visible",
    "reading",
    "toml",
    "unpacking",
    "files",
    "installed",
    "child",
    "frames",
    "progress",
    "numerics",
    "records",
    "limits",
    "cache",
    "hugging_face",
    "data",
    "formats",
    "runtimes",
    "registry",
    "lock",
    "model",
    "frontends",
    "engine",
    "calibration",
    "lowering",
    "quantization",
    "methods",
    "packed",
    "rewrites",
    "devices",
    "export",
    "evaluation",
    "preflight",
    "plans",
    "case",
    "request",
    "prepare",
    "quantized",
    "training",
    "probing",
    "planning.sensitivity",
    "planning.solver",
    "planning.costs",
    "planning.proof",
    "planning",
    "report",
    "build",
    "language",
    "planning.explain",
    "api",
    "edgeq",
    "planning.fleet",
    "cli",
]
"""From the ground up. Of `planning` each room has a place of its own, and `planning` is what stands in none of them."""


def place(module: str) -> str:
    """Of a module, the one of ORDER that it belongs to."""
    parts = module.split(".")
    room = ".".join(parts[1:3])
    return room if room in ORDER else parts[1] if len(parts) > 1 else parts[0]


def modules() -> dict[str, Path]:
    found = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of edgeq that a file imports, in functions and for types as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "edgeq")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edgeq":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def test_every_package_has_a_place() -> None:
    assert {place(name) for name in modules()} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_no_package_imports_one_above_it() -> None:
    known = modules()
    against = [
        f"{name} imports {other}"
        for name, path in known.items()
        for other in imports(path, known)
        if ORDER.index(place(other)) > ORDER.index(place(name))
    ]
    assert not against, "\n".join(sorted(set(against)))

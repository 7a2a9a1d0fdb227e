"""The plans of two versions of the code, for the same limits, in turns: what they hold, and what it takes to find them.

    python tools/bench/plans.py --code before=OLD/CHECKOUT --code after=. --out build/plans \\
        --case mobilenet=m.pt2,calib.npz,eval.npz --case dscnn=d.pt2,c.npz,e.npz

Each version has a cache of its own, empty at first; a case's four sets of limits follow one another, as a user tries
them: the first is cold. Sizes and latencies are limited to a part of what the first version's plan for the first set
has, so that all versions plan within the same numbers. What was measured is kept in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

FORMATS = ("onnx", "openvino", "tflite")
LIMITS = {
    "fast": "--max-drop 0.5%",
    "small": "--max-drop 0.5% --minimize size",
    "fitting": "--max-drop 1% --max-size {size}",
    "hurried": "--max-drop 1% --max-latency {latency}us --minimize size",
}
SMALLER, FASTER = 0.85, 0.95
"""Of the size of the first plan, and of the latency of the float model."""

Row = dict[str, Any]


def run(code: Path, cache: Path, case: tuple[str, str, str], target: str, kind: str, limits: str, out: Path) -> Row:
    """One plan of one version, as the command line gives it."""
    model, calibration, evaluation = case
    command = [sys.executable, "-W", "ignore", "-m", "edgeq.cli", "plan", model, "--target", target, "--format", kind]
    command += ["--calib", calibration, "--eval", evaluation, "--out", str(out), "--quiet", *limits.split()]
    before, began = proofs(cache), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(code), "EDGEQ_CACHE": str(cache)}
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
    row: Row = {"seconds": time.perf_counter() - began, "exit": done.returncode, "proofs": proofs(cache) - before}
    if not out.exists():
        return row | {"told": done.stderr[-500:]}
    planned = json.loads(out.read_text(encoding="utf-8"))["planned"]
    proof = planned["proof"]
    beside = proof["latency"] / proof["latency_of"]["float32"] if proof.get("latency_of") else None
    float_seconds = proof.get("latency_of", {}).get("float32")
    held = {"held": planned["held"], "size": planned["size"], "drop": proof["drop"]}
    return row | held | {"latency": beside, "float_seconds": float_seconds}


def proofs(cache: Path) -> int:
    """Plans of which answers or times are kept."""
    return sum(len(list((cache / stage).glob("*"))) for stage in ("proof", "missed") if (cache / stage).is_dir())


def show(rows: Mapping[str, Row], codes: list[str]) -> str:
    """A Markdown table, and how the last version's figures lie to the first's."""
    lines = ["| plan | code | exit | held | size | drop | latency / float | proofs | seconds |", "|---|" + "---|" * 8]
    for key, row in rows.items():
        name, _, code = key.rpartition(" ")
        latency = "" if row.get("latency") is None else f"{row['latency']:.3f}"
        cells = [name, code, row["exit"], row.get("held", ""), row.get("size", ""), row.get("drop", ""), latency]
        lines.append("| " + " | ".join(map(str, [*cells, row["proofs"], f"{row['seconds']:.1f}"])) + " |")
    first, last = codes[0], codes[-1]
    names = [key.rpartition(" ")[0] for key in rows if key.endswith(f" {last}")]
    for measure in ("size", "latency", "proofs", "seconds"):
        pairs = [(rows[f"{name} {last}"].get(measure), rows[f"{name} {first}"].get(measure)) for name in names]
        ratios = [new / old for new, old in pairs if new is not None and old]
        if ratios:
            lines.append(f"\n{measure}, {last} to {first}: median {median(ratios):.3f}, all {sorted(ratios)}")
    for code in codes:
        held = [bool(row.get("held")) for key, row in rows.items() if key.endswith(f" {code}")]
        lines.append(f"\nheld by {code}: {sum(held)} of {len(held)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--code", action="append", required=True, metavar="NAME=CHECKOUT")
    parser.add_argument("--case", action="append", required=True, metavar="NAME=MODEL,CALIB,EVAL")
    parser.add_argument("--target", default="x86-avx512")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    codes = {name: Path(path).resolve() for name, path in (one.split("=", 1) for one in asked.code)}
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "plans.json"
    rows: dict[str, Row] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for one in asked.case:
        case, files = one.split("=", 1)
        model, calibration, evaluation = (str(Path(file).resolve()) for file in files.split(","))
        for kind in FORMATS:
            numbers: dict[str, int] = {}
            for number, (limit, options) in enumerate(LIMITS.items()):
                turn = list(codes) if number % 2 == 0 else list(codes)[::-1]
                for code in turn:
                    key = f"{case} {kind} {limit} {code}"
                    cache = out / f"cache-{case}-{kind}-{code}"
                    if key not in rows:
                        plan = out / f"{case}-{kind}-{limit}-{code}.json"
                        files_of = (model, calibration, evaluation)
                        rows[key] = run(
                            codes[code], cache, files_of, asked.target, kind, options.format(**numbers), plan
                        )
                        kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
                        print(key, rows[key], flush=True)
                if number == 0:
                    first = rows[f"{case} {kind} {limit} {next(iter(codes))}"]
                    numbers = {
                        "size": int(SMALLER * first["size"]),
                        "latency": int(FASTER * 1e6 * first["float_seconds"]),
                    }
    table = show(rows, list(codes))
    (out / "plans.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()

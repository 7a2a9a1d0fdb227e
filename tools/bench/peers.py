"""edgeq beside every other quantization tool: same model, samples and runtime, artefacts timed in turns in one process.

    python tools/bench/peers.py --out build/peers --page docs/peers.md mobilenet_v2 resnet20_cifar10

Each FOLDER holds `model.pt2`, `calibration.npz` and `evaluation.npz`, the last with `labels` where there are some.
Every tool runs in a process and an environment of its own under `--out`. What is made there is kept: delete a tool's
folder to have it made anew. A tool that does not install or fails is a row that says so, and is tried again next time.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeq.devices import open_device
from edgeq.errors import EdgeqError
from edgeq.formats import FORMATS
from edgeq.on_device.worker import describe_cpu
from edgeq.registry.load import load_target
from peer_judge import Judged, judged, truth
from peer_page import Row, page, write_rows
from peer_tools.job import Job
from peer_tools.process import Made, make
from peer_tools.table import OURS, TOOLS, UNIT, Tool

PRECISIONS = ("w8a8", "w4a8")


@dataclass(frozen=True)
class Asked:
    """What is run on every model.

    Attributes:
        formats: by runtime.
        minutes: that a tool has.
    """

    out: Path
    target: str
    formats: Mapping[str, str]
    precisions: Sequence[str]
    tools: Mapping[str, Tool]
    minutes: float


def rows_of(folder: Path, asked: Asked) -> list[Row]:
    """Of one model, in all runtimes: first all is made, then all of a runtime is judged together."""
    rows: dict[Row, Path] = {}
    for runtime, form in asked.formats.items():
        for precision in asked.precisions:
            for name, tool in asked.tools.items():
                if precision in tool.makes.get(form, ()):
                    row, path = _made(folder, runtime, form, precision, name, tool, asked)
                    rows[row] = path
                    print(row.model, runtime, precision, name, row.error or f"{row.seconds:.1f} s", flush=True)
    finished = {row: path for row, path in rows.items() if not row.error}
    if not finished:
        return list(rows)
    known, device = truth(folder), open_device("local")
    found: dict[Row, Judged] = {}
    for runtime, form in asked.formats.items():
        some = {f"{row.tool} {row.precision}": row for row in finished if row.runtime == runtime}
        artefacts = {key: rows[row] for key, row in some.items()}
        with tempfile.TemporaryDirectory() as scratch:
            try:
                results = judged(known, artefacts, runtime, form, device, Path(scratch)) if some else {}
            except EdgeqError as error:
                results = {key: Judged(error.cause) for key in some}
        found |= {some[key]: result for key, result in results.items()}
    return [_row(row, found, list(rows)) if row in found else row for row in rows]


def _made(
    folder: Path, runtime: str, form: str, precision: str, name: str, tool: Tool, asked: Asked
) -> tuple[Row, Path]:
    """What a tool makes of a model, as a row that nobody has judged yet."""
    place = asked.out / folder.name / runtime / precision / re.sub(r"\W+", "-", name).strip("-")
    out = place.resolve() / FORMATS[form].files[0]
    files = (folder / "model.pt2").resolve(), (folder / "calibration.npz").resolve()
    job = Job(*files, out, form, precision, asked.target, dict(tool.options))
    made: Made = make(tool, job, asked.out / "environments", asked.minutes)
    row = Row(folder.name, runtime, precision, name, made.version, made.error)
    return replace(row, seconds=made.seconds, peak_bytes=made.peak_bytes), out


def _row(row: Row, found: Mapping[Row, Judged], rows: Sequence[Row]) -> Row:
    """A row with what was judged, beside the others of its model."""
    result = found[row]
    nearest = sorted(rows, key=lambda one: one.runtime != row.runtime)  # UNIT may not make this runtime's format
    units = [one.seconds for one in nearest if one.tool == UNIT and one.seconds is not None]
    spent = row.seconds / units[0] if units and row.seconds is not None else None
    if result.error or result.accuracy is None or result.beside is None or result.median is None:
        return replace(row, error=result.error, units=spent)
    like = (row.runtime, row.precision, OURS)
    ours = [other.median for one, other in found.items() if (one.runtime, one.precision, one.tool) == like]
    accuracy, between = result.accuracy, result.beside.ratio_interval
    drop, same = accuracy.drop, accuracy.agreement
    return replace(
        row,
        metric=accuracy.metric,
        score=accuracy.score,
        float_score=accuracy.float_score,
        drop=drop.value if drop else None,
        drop_low=drop.low if drop else None,
        drop_high=drop.high if drop else None,
        agreement=same.value if same else None,
        size=result.size,
        float_size=result.float_size,
        latency=result.beside.ratio,
        latency_low=between.low if between else None,
        latency_high=between.high if between else None,
        latency_to_ours=result.median / ours[0] if ours and ours[0] else None,
        units=spent,
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="folder for environments, artefacts and rows")
    parser.add_argument("--page", type=Path, help="also write a page")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="TOOL", help=", ".join(TOOLS))
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino", "litert"], metavar="RUNTIME")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--target", default="x86-avx512", help="of edgeq")
    parser.add_argument("--minutes", type=float, default=120.0, help="that a tool has for one artefact")
    given = parser.parse_args(words)
    able = {runtime.name: runtime.format for runtime in load_target(given.target).runtimes}
    if unknown := set(given.runtimes) - set(able):
        parser.error(f"{given.target} has no runtime {', '.join(sorted(unknown))}")
    tools = {name: TOOLS[name] for name in given.tools}
    formats = {name: able[name] for name in given.runtimes}
    asked = Asked(given.out, given.target, formats, given.precisions, tools, given.minutes)
    rows: list[Row] = []
    for folder in given.folders:
        rows += rows_of(folder, asked)
        write_rows(rows, given.out / "peers.json")
    command = shlex.join(["python", "tools/bench/peers.py", *(words if words is not None else sys.argv[1:])])
    text = page(rows, {name: tool.about for name, tool in tools.items()}, command, OURS, UNIT, describe_cpu())
    if given.page is not None:
        given.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

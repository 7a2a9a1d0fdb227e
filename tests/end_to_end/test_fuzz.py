"""Files of every kind, broken at random: what reads them ends soon, with an answer or an error of its own, and writes
nothing elsewhere.

`EDGEQ_FUZZ` is how many are tried (60 if not set), `EDGEQ_FUZZ_FROM` the number of the first. A failure names the kind
and the number, from which everything random follows.
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import json
import os
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import device_models
import numpy as np
import planned_model
import pytest
import test_files
import torch
from PIL import Image
from test_load import files  # noqa: F401 (files is a fixture)

from edgeq.cache import Cache, Entry
from edgeq.cli.app import run
from edgeq.data.dataset import InputSpec
from edgeq.data.load import load_data
from edgeq.devices import Candidate, open_device
from edgeq.errors import EdgeqError
from edgeq.frontends.kept import load_kept
from edgeq.plans.fleet import Artefact, Fleet, Member, Verdict, read_fleet, write_fleet
from edgeq.registry.load import data_folder, load_profile, load_target
from edgeq.runtimes import runtime

CASES, FIRST = int(os.environ.get("EDGEQ_FUZZ", "60")), int(os.environ.get("EDGEQ_FUZZ_FROM", "0"))
SECONDS = 60
"""For one file; an endless loop takes longer on any machine."""
IMAGE = [InputSpec("image", (None, 3, 8, 8), "float32")]
OPTIONS = ["--input", "1x3x8x8", "--arch", "test_load:make_tiny"]

Use = Callable[[Path], object]
"""Reads the files in a folder as edgeq does."""


# ---------------------------------------------------------------- how a file is broken


def flipped(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice([1, 2, 8])):
        changed[dice.randrange(len(changed))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
    return bytes(changed)


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


def spliced(data: bytes, dice: random.Random) -> bytes:
    begin, end, at = dice.randrange(len(data)), dice.randrange(len(data)), dice.randrange(len(data))
    piece = data[min(begin, end) : max(begin, end)][:4096]
    return data[:at] + piece + data[at + dice.choice([0, len(piece)]) :]


def renumbered(data: bytes, dice: random.Random) -> bytes:
    """Where a size or a place may stand, the worst ones."""
    at, width = dice.randrange(len(data)), dice.choice([2, 4, 8])
    worst = dice.choice([0, 1, 1 << (8 * width - 1), (1 << (8 * width)) - 1, 1 << (4 * width)])
    return data[:at] + worst.to_bytes(width, "little") + data[at + width :]


OTHERS: list[Any] = [
    None, True, 0, -1, 1 << 62, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../../x", "\x00", "\ud800", [], {},
    [[]], [1], {"": {}}, [None], "9" * 50, -0.0,
]  # fmt: skip


def other_json(data: bytes, dice: random.Random) -> bytes:
    """A value of another type somewhere, or a key that is missing or new."""
    tree = json.loads(data)
    places: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        places += [(node, key) for key in keys]
        pending += [node[key] for key in keys]
    for _ in range(dice.choice([1, 1, 3])):
        node, key = dice.choice(places)
        if isinstance(node, dict) and dice.random() < 0.2:
            node.pop(key, None)
        elif isinstance(node, list) and dice.random() < 0.2:
            node.append(dice.choice(OTHERS))
        elif not isinstance(node, list) or key < len(node):
            node[key] = dice.choice([*OTHERS, dice.choice(places)[0]])
    try:
        return json.dumps(tree).encode()
    except (ValueError, RecursionError):  # it contains itself by now
        return b"[" * 100_000


def other_text(data: bytes, dice: random.Random) -> bytes:
    lines = data.decode().splitlines()
    at = dice.randrange(len(lines))
    name, _, _ = lines[at].partition("=")
    line = dice.choice(
        ["", "[", "[[", "]", '"', "= 1", lines[at] * 2, *(f"{name}= {v}" for v in ('""', "-1", "1e999", "[[1]]", "{}"))]
    )
    return "\n".join([*lines[:at], line, *lines[at + 1 :]]).encode()


def other_member(data: bytes, dice: random.Random) -> bytes:
    """One member of an archive broken, and the archive whole."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        chosen = dice.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            if name == chosen and content:
                content = broken(content, dice, name)
            new.writestr(name, content, dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    return packed.getvalue()


def other_entry(data: bytes, dice: random.Random) -> bytes:
    """What the cache keeps, with a digest that holds."""
    head, rest = data.split(b"\n", 1)
    line, arrays = rest.split(b"\n", 1)
    if dice.random() < 0.7:
        line = other_json(line, dice)
    else:
        arrays = broken(arrays, dice, "")
    body = line + b"\n" + arrays
    return head.rpartition(b" ")[0] + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def broken(data: bytes, dice: random.Random, name: str) -> bytes:
    ways = [flipped, cut, spliced, renumbered]
    if data.startswith(b"PK\3\4"):
        ways += [other_member] * 8
    elif name.endswith(".edgeq"):
        ways += [other_entry] * 8
    elif data.lstrip()[:1] == b"{" and name.endswith((".json", ".lock")):
        ways += [other_json] * 8
    elif name.endswith((".toml", ".txt", ".xml")):
        ways += [other_text] * 4
    return dice.choice(ways)(data, dice)


# ---------------------------------------------------------------- what reads it


def command(*arguments: str) -> Use:
    """A command of the program, on files of the folder that it runs in."""

    def use(_folder: Path) -> int:
        code = run([*arguments, "--json"])
        if code == 1:
            raise AssertionError("an internal error")
        return code

    return use


def interface(name: str) -> Use:
    def use(folder: Path) -> None:
        (path,) = folder.glob("model.*[!n]")
        runtime(name).companions(path)
        open_device("local").interface(Candidate(path, name))  # type: ignore[arg-type]

    return use


def kept(folder: Path) -> None:
    load_kept(folder.parent / "original", (), Cache(folder))


def fleet_of(folder: Path) -> None:
    plan = planned_model.plan_of()
    artefact = Artefact(
        name="a", plan="", candidate="a", target=plan.target, format=plan.format, size=1, serves=[plan.target]
    )
    verdict = Verdict(target=plan.target, status="held", because="x", runtime="onnxruntime", device="local")
    member = Member(target=plan.target, given=plan.target, limits={}, artefact="a", verdict=verdict, alone=None)
    assert plan.given is not None
    made = Fleet(
        model_hash=plan.model_hash, data_hash="0" * 64, minimize="latency", why="x", artefacts=[artefact],
        targets=[member], candidates=[], given=plan.given,
    )  # fmt: skip
    write_fleet(folder / "fleet.json", made, {"a": plan})


def build_of(folder: Path) -> None:
    device_models.write_quantized_onnx(folder / "model.onnx")
    plan = planned_model.plan_of().model_copy(update={"format": "onnx", "runtime": "onnxruntime"})
    planned_model.written(plan, folder / "plan.onnx.json")
    x = device_models.images(2)
    golden = test_files.Golden(
        {"x": x}, {"onnx": [device_models.quantized_answer(x).astype(np.float32)]}, {"onnx": "local"}, {"onnx": [1]}
    )
    test_files.write_lock(
        folder, model="m", data={}, plans={"onnx": "p"}, files=["model.onnx", "plan.onnx.json"], versions={},
        golden=golden,
    )  # fmt: skip


def images_of(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 3), np.uint8)
    for number, suffix in enumerate(("png", "jpg", "bmp", "gif", "webp", "tif", "ppm")):
        Image.fromarray(pixels).save(folder / f"{number}.{suffix}")
    names = sorted(path.name for path in folder.iterdir())
    (folder / "labels.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))


def ir_of(folder: Path) -> None:
    openvino = pytest.importorskip("openvino")
    device_models.write_quantized_onnx(folder / "model.onnx")
    openvino.save_model(openvino.convert_model(folder / "model.onnx"), folder / "model.xml")
    (folder / "model.onnx").unlink()


def entry_of(folder: Path, export: Path, *, archive: bool) -> None:
    cache = Cache(folder)
    model = load_kept(export, (), cache)
    (path,) = folder.rglob("*.edgeq")
    if archive:
        buffer = io.BytesIO()
        torch.export.save(model.exported(), buffer)
        entry = cache.get("model", path.stem)
        assert entry is not None
        examples = {name: array for name, array in entry.arrays.items() if name.startswith("example")}
        program = np.frombuffer(buffer.getvalue(), np.uint8)
        cache.put("model", path.stem, Entry({**entry.values, "graph": None}, {"program": program, **examples}))


@pytest.fixture(scope="module")
def corpus(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Use]]:  # noqa: F811
    """By kind, a folder of whole files and what reads them."""
    root = tmp_path_factory.mktemp("corpus")
    found: dict[str, tuple[Path, Use]] = {}

    def kind(name: str, use: Use) -> Path:
        found[name] = (root / name, use)
        (root / name).mkdir()
        return root / name

    for name in ("export", "script", "weights", "legacy", "tensors"):
        options = [] if name == "export" else OPTIONS[:2] if name == "script" else OPTIONS
        shutil.copy(files[name], kind(name, command("inspect", "model", *options)) / "model")
    x = np.linspace(-1, 1, 4 * 3 * 8 * 8, dtype=np.float32).reshape(4, 3, 8, 8)
    data = {"image": x, "labels": np.arange(4)}
    np.savez(kind("npz", lambda f: load_data(f / "x.npz", IMAGE, role="evaluation")) / "x.npz", **data)
    np.savez_compressed(kind("npz small", lambda f: load_data(f / "x.npz", IMAGE, role="evaluation")) / "x.npz", **data)
    np.save(kind("npy", lambda f: load_data(f / "x.npy", IMAGE, role="calibration")) / "x.npy", x)
    images_of(kind("images", lambda f: load_data(f, IMAGE, preprocess=str(f.parent / "p.toml"), role="evaluation")))
    (root / "p.toml").write_text('size = [8, 8]\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\nlayout = "NCHW"\n')
    device_models.write_quantized_onnx(kind("onnx", interface("onnxruntime")) / "model.onnx")
    device_models.write_tflite(kind("tflite", interface("litert")) / "model.tflite", signature=True)
    ir_of(kind("openvino", interface("openvino")))
    planned_model.written(planned_model.plan_of(), kind("plan", command("explain", "plan.json")) / "plan.json")
    fleet_of(kind("fleet", lambda f: read_fleet(f / "fleet.json")))
    build_of(kind("build", command("verify", ".")))
    shutil.copy(
        data_folder("targets") / "x86-avx512.toml", kind("target", lambda f: load_target(str(f / "t.toml"))) / "t.toml"
    )
    shutil.copy(
        data_folder("profiles") / "raspberry-pi-5.toml",
        kind("profile", lambda f: load_profile(str(f / "p.toml"))) / "p.toml",
    )
    shutil.copy(files["export"], root / "original")
    for name in ("kept", "kept archive"):
        folder = kind(name, kept)
        folder.chmod(0o700)
        entry_of(folder, root / "original", archive=name != "kept")
    return found


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("edgeq.frontends.deadline.SECONDS", SECONDS)
    monkeypatch.setenv("EDGEQ_PATIENCE", "1")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    faulthandler.dump_traceback_later(60 + SECONDS * max(10, CASES // 10), exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def try_one(number: int, corpus: dict[str, tuple[Path, Use]], export: Path, place: Path) -> str:
    """What is wrong with what came of it, or nothing."""
    dice = random.Random(number)
    name = list(corpus)[number % len(corpus)]
    whole, use = corpus[name]
    folder = place / "case"
    shutil.copytree(whole, folder)
    os.link(export, place / "original")
    shutil.copy(whole.parent / "p.toml", place)
    victim = dice.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    victim.write_bytes(broken(victim.read_bytes(), dice, victim.name))
    begin, wrong = time.monotonic(), ""
    os.chdir(folder)
    try:
        use(folder)
    except EdgeqError as error:
        wrong = "an error without a kind" if error.exit_code == 1 else ""
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    finally:
        os.chdir(place)
    if time.monotonic() - begin > SECONDS:
        wrong = wrong or f"{time.monotonic() - begin:.0f} s"
    if {path.name for path in place.iterdir()} != {"case", "original", "p.toml"}:
        wrong = wrong or "it wrote beside its folder"
    return wrong and f"{number} ({name}, {victim.name}): {wrong}"


def test_broken_files_are_refused_or_read(
    corpus: dict[str, tuple[Path, Use]],
    files: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = []
    for number in range(FIRST, FIRST + CASES):
        place = tmp_path / str(number)
        place.mkdir()
        found = try_one(number, corpus, files["export"], place)
        if found:
            wrong.append(found)
            with capfd.disabled():
                print(found[:500], flush=True)
        shutil.rmtree(place)
    assert not wrong, "\n".join(wrong)


def test_whole_files_are_read(
    corpus: dict[str, tuple[Path, Use]],
    files: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise nothing but the first check was ever tried."""
    shutil.copy(files["export"], tmp_path / "original")
    for name, (whole, use) in corpus.items():
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        shutil.copy(whole.parent / "p.toml", tmp_path)
        monkeypatch.chdir(folder)
        code = use(folder)
        assert not isinstance(code, int) or code == 0, name

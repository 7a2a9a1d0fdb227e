"""What PyTorch reads is what was checked, also where one file is two archives; and a small file stays small."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_load import INPUT, Malicious, Members, answer, files, make_tiny  # noqa: F401 (files is a fixture)

from edgeq.cache import Cache, Entry
from edgeq.data.dataset import InputSpec
from edgeq.data.load import load_data
from edgeq.errors import EdgeqError, UnsupportedError, UsageError
from edgeq.frontends import exported
from edgeq.frontends.kept import load_kept
from edgeq.frontends.read import read

SAMPLE = "data/sample_inputs/model.pt"


def local_parts(members: dict[str, bytes], at: int) -> tuple[bytes, bytes]:
    """Members as they lie in an archive that begins at an offset, and their directory."""
    body, directory = b"", b""
    for name, data in members.items():
        told = struct.pack("<HHHLLLHH", 0, 0, 0x21, zlib.crc32(data), len(data), len(data), len(name), 0)
        directory += struct.pack("<4sHHH", b"PK\1\2", 20, 20, 0) + told
        directory += struct.pack("<HHHLL", 0, 0, 0, 0, at + len(body)) + name.encode()
        body += struct.pack("<4sHH", b"PK\3\4", 20, 0) + told + name.encode() + data
    return body, directory


def end(count: int, size: int, offset: int) -> bytes:
    return struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, size, offset, 0)


def by_two_directories(honest: dict[str, bytes], other: dict[str, bytes]) -> bytes:
    """Python takes the directory that lies before the end record, and miniz the one at the offset that is told there.
    Python adds the distance of the two to each offset."""
    body, directory = local_parts(other, 0)
    room = len(local_parts(honest, 0)[0])
    body += bytes(max(0, room - len(body)))
    start = len(body) + len(directory)
    second, second_directory = local_parts(honest, start - len(directory) - room)
    if len(second_directory) != len(directory):
        raise ValueError("both directories must be as long")
    return body + directory + second + second_directory + end(len(honest), len(directory), len(body))


def by_two_records(honest: dict[str, bytes], other: dict[str, bytes]) -> bytes:
    """Python takes the 64-bit end record that lies before its locator, and miniz the one that the locator points to."""

    def record(size: int, offset: int, count: int) -> bytes:
        return struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)

    body, directory = local_parts(other, 0)
    pointed = len(body) + len(directory)
    body += directory + record(len(directory), len(body), len(other))
    second, directory = local_parts(honest, len(body))
    body += second + directory + record(len(directory), len(body) + len(second), len(honest))
    body += struct.pack("<4sLQL", b"PK\6\7", 0, pointed, 1)
    return body + struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


WAYS = {"directories": by_two_directories, "records": by_two_records}


def runs(trap: Path) -> bytes:
    """A pickle that makes a folder."""
    buffer = io.BytesIO()
    torch.save(((Malicious(trap),), {}), buffer)
    return buffer.getvalue()


def two_archives(honest: Path, way: str, trap: Path) -> bytes:
    """An exported program to Python, and to PyTorch the same with sample inputs that run code."""
    members = Members(honest)
    good = {members.root + name: data for name, data in members.content.items()}
    return WAYS[way](good, {**good, members.root + SAMPLE: runs(trap)})


@pytest.mark.parametrize("way", WAYS)
def test_one_file_that_is_two_archives_runs_nothing(way: str, files: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    trap, path = tmp_path / "trap", tmp_path / "two"
    path.write_bytes(two_archives(files["export"], way, trap))
    # otherwise the file would prove nothing
    assert torch._C.PyTorchFileReader(str(path)).get_record(SAMPLE) == runs(trap)
    with zipfile.ZipFile(path) as archive:
        sample = next(name for name in archive.namelist() if name.endswith(SAMPLE))
        assert archive.testzip() is None and archive.read(sample) != runs(trap)
    torch.testing.assert_close(answer(read(path), INPUT), make_tiny()(INPUT))
    read(path, trust_pickle=True)
    assert not trap.exists()


@pytest.mark.parametrize("way", WAYS)
def test_one_torchscript_file_that_is_two(way: str, files: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    """The same network with other weights is what PyTorch alone would read."""
    with zipfile.ZipFile(files["script"]) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    other = {name: bytes(len(data)) if "/data/" in name else data for name, data in good.items()}
    (tmp_path / "two").write_bytes(WAYS[way](good, other))
    loaded = read(tmp_path / "two", inputs=["2x3x8x8"])
    torch.testing.assert_close(answer(loaded, INPUT), make_tiny()(INPUT), check_stride=False)


@pytest.mark.parametrize("way", WAYS)
def test_a_kept_model_that_is_two_archives_runs_nothing(way: str, files: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    trap, held = tmp_path / "trap", Cache(tmp_path / "cache")
    model = load_kept(files["export"], (), held)
    assert held.root is not None
    (path,) = held.root.rglob("*.edgeq")
    entry = held.get("model", path.stem)
    assert entry is not None
    archive = np.frombuffer(two_archives(files["export"], way, trap), np.uint8)
    examples = {name: array for name, array in entry.arrays.items() if name.startswith("example")}
    held.put("model", path.stem, Entry({**entry.values, "graph": None}, {"program": archive, **examples}))
    again = load_kept(files["export"], (), held)
    assert again.fingerprint == model.fingerprint and not trap.exists()


def test_pickles_stay_plain_where_nothing_was_checked(
    files: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trap, members = tmp_path / "trap", Members(files["export"])
    members.content[SAMPLE] = runs(trap)
    members.save(tmp_path / "evil")
    monkeypatch.setattr(exported, "vet_export", lambda path, root: None)
    with pytest.raises(UsageError):
        read(tmp_path / "evil")
    assert not trap.exists()
    monkeypatch.undo()
    read(tmp_path / "evil", trust_pickle=True)
    assert trap.exists()


def test_a_program_beside_the_older_layout_is_not_there(files: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    """PyTorch looks for the newer layout first, in the folder of the first member."""
    trap, members = tmp_path / "trap", Members(files["export"])
    members.content[SAMPLE] = runs(trap)
    members.root = "extra_files/"
    members.save(tmp_path / "evil")
    with zipfile.ZipFile(tmp_path / "evil", "a") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("version", "8.0")
    with pytest.raises(UsageError):
        read(tmp_path / "evil")
    assert not trap.exists()
    with pytest.raises(EdgeqError):
        read(tmp_path / "evil", trust_pickle=True)


@pytest.mark.parametrize("name", ["export", "script", "weights"])
def test_compressed_archives_are_read(name: str, files: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    with zipfile.ZipFile(files[name]) as old, zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    options = {"export": {}, "script": {"inputs": ["2x3x8x8"]}}
    loaded = read(tmp_path / name, **options.get(name, {"inputs": ["2x3x8x8"], "arch": "test_load:make_tiny"}))
    torch.testing.assert_close(answer(loaded, INPUT), make_tiny()(INPUT), check_stride=False)


# ---------------------------------------------------------------- what takes for ever, or all memory


def zeros(path: Path, name: str, head: bytes, others: dict[str, bytes]) -> None:
    """A member of 1 GB in a file of 1 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, data in others.items():
            archive.writestr(other, data)
        with archive.open(name, "w", force_zip64=True) as member:
            member.write(head)
            for _ in range(64):
                member.write(bytes(1 << 24))


def test_what_unpacks_to_gigabytes_is_refused(files: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    members = Members(files["export"])
    others = {members.root + name: data for name, data in members.content.items() if name != Members.PROGRAM}
    zeros(tmp_path / "model", members.root + Members.PROGRAM, b"", others)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 24, 16)})
    zeros(tmp_path / "data.npz", "x.npy", header.getvalue(), {})
    begin = time.monotonic()
    with pytest.raises(UsageError, match=r"unpack to 107\d MB, and 268 MB are the most"):
        read(tmp_path / "model")
    with pytest.raises(UsageError, match="MB are the most"):
        load_data(tmp_path / "data.npz", [InputSpec("x", (None, 16), "float32")], role="calibration")
    assert time.monotonic() - begin < 5


def program_with(files: dict[str, Path], path: Path, change: str, text: str) -> None:  # noqa: F811
    members = Members(files["export"])
    tree = members.json(Members.PROGRAM)
    if change == "size":
        tree["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][0]["as_expr"]["expr_str"] = text
    else:
        tree["guards_code"] = [text]
    members.content[Members.PROGRAM] = json.dumps(tree).encode()
    members.save(path)


SIZES = [
    "9**9**9**9",
    "Pow(Pow(Integer(9), Integer(9999)), Integer(9999))",
    "2**(10**10)",
    "1 << (1 << 40)",
    "LShift(1, Integer(99999999))",
    "Pow(2, s77)",
    "'a' * 10**10",
    "-" * 1000 + "1",
    "(" * 100 + "1" + ")" * 100,
    "1 + " * 10_000 + "1",
    "9" * 5000,
    "FloorDiv(1, 0)",
    "1/0",
]


@pytest.mark.parametrize("text", SIZES)
def test_sizes_that_never_end_are_refused(text: str, files: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    program_with(files, tmp_path / "model", "size", text)
    begin = time.monotonic()
    with pytest.raises(UsageError):
        read(tmp_path / "model")
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("text", ["math.factorial(10**7) > 0", "1/0 == 1", "FloorDiv(1, 0)", "L['y'].size()[3] == 2"])
def test_guards_are_not_run(text: str, files: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    program_with(files, tmp_path / "model", "guard", text)
    begin = time.monotonic()
    torch.testing.assert_close(answer(read(tmp_path / "model"), INPUT), make_tiny()(INPUT))
    assert time.monotonic() - begin < 5


class Endless(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        i = 0
        while i < 3:
            x = x + 1
        return x


class Long(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(100_000):
            for _ in range(100_000):
                x = x + 1
        return x


class Doubles(torch.nn.Module):
    """Calls what it holds twice."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.inner(x))


class Turns(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turns = 3
        self.head = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.turns):
            x = self.head(x)
        return x


def doubled(times: int) -> torch.nn.Module:
    module: torch.nn.Module = torch.nn.ReLU()
    for _ in range(times):
        module = Doubles(module)
    return module


@pytest.mark.parametrize(
    ("module", "says"), [(Endless(), "when its loops end"), (Long(), "operators"), (doubled(40), "operators")]
)
def test_torchscript_that_never_ends_is_refused(module: torch.nn.Module, says: str, tmp_path: Path) -> None:
    torch.jit.script(module).save(str(tmp_path / "script"))
    with pytest.raises(UnsupportedError, match=says) as error:
        read(tmp_path / "script", inputs=["1x4"])
    assert "--trust-pickle" in error.value.remedy


@pytest.mark.parametrize("module", [Turns(), doubled(3)])
def test_torchscript_that_ends_is_read(module: torch.nn.Module, tmp_path: Path) -> None:
    torch.jit.script(module.eval()).save(str(tmp_path / "script"))
    x = torch.linspace(-1, 1, 4)[None]
    torch.testing.assert_close(answer(read(tmp_path / "script", inputs=["1x4"]), x), module(x))


def test_torchscript_that_computes_while_it_is_read(tmp_path: Path) -> None:
    class Wakes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

        @torch.jit.export
        def __getstate__(self) -> tuple[float, bool]:
            return self.scale, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[float, bool]) -> None:
            self.scale = state[0]
            self.training = state[1]
            while True:
                self.scale += 1

    torch.jit.script(Wakes()).save(str(tmp_path / "script"))
    with pytest.raises(UsageError, match="__setstate__"):
        read(tmp_path / "script", inputs=["1x4"])


def test_reading_comes_to_an_end(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def forever(*_: object, **__: object) -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(10)

    monkeypatch.setattr("edgeq.frontends.exported._load", forever)
    monkeypatch.setattr("edgeq.frontends.deadline.SECONDS", 0.2)
    with pytest.raises(UnsupportedError, match="longer than"):
        read(files["export"])


def test_images_of_too_many_pixels_and_of_other_formats(tmp_path: Path) -> None:
    """Pillow would run another program for PostScript, whatever the file is called."""
    folder, preprocess = tmp_path / "images", tmp_path / "p.toml"
    folder.mkdir()
    preprocess.write_text("size = [8, 8]\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n")

    def load() -> None:
        load_data(folder, [InputSpec("x", (None, 3, 8, 8), "float32")], preprocess=str(preprocess), role="calibration")

    Image.new("1", (13_000, 8_000)).save(folder / "a.png")
    with pytest.raises(UsageError, match="13000 x 8000 pixels, and 100 million"):
        load()
    (folder / "a.png").unlink()
    Image.new("RGB", (8, 8)).save(folder / "a.eps")
    (folder / "a.eps").rename(folder / "a.png")
    with pytest.raises(UsageError, match="unreadable"):
        load()

"""Results that are kept: exact, never a part, never another's, within a limit, and no run fails for them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

from edgeq.cache import (
    Cache,
    Entry,
    Freed,
    cached,
    clear,
    content_key,
    contents,
    describe,
    open_cache,
    read_folder,
    recalled,
    write_folder,
)
from edgeq.cache.cache import LIMIT
from edgeq.cache.entry import pack, unpack
from edgeq.cli.app import app, run
from edgeq.errors import UsageError

settings.register_profile("edgeq", deadline=None)
settings.load_profile("edgeq")

STAGE = "calibration"
HOUR = 3600.0
as_root = os.name == "posix" and os.geteuid() == 0


def key(*parts: Any) -> str:
    return content_key(STAGE, 1, parts=parts)


def entry(number: int, floats: int = 100) -> Entry:
    """One whose values and arrays all follow from its number."""
    array = np.random.default_rng(number).normal(size=floats)
    return Entry({"number": number, "first": array[0]}, {"x": array, "sign": array > 0})


def is_entry(found: Entry, number: int) -> bool:
    wanted = entry(number, len(found.arrays["x"]))
    return found.values == wanted.values and all(same(found.arrays[n], a) for n, a in wanted.arrays.items())


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def partials(root: Path) -> list[Path]:
    return [path for path in files(root) if path.suffix == ".partial"]


def total(root: Path) -> int:
    return sum(path.stat().st_size for path in files(root))


def set_times(path: Path, used: float, written: float | None = None) -> None:
    """Ages in seconds."""
    now = time.time()
    os.utime(path, (now - used, now - (used if written is None else written)))


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, notes: list[str]) -> Cache:
    return Cache(tmp_path / "cache", note=notes.append)


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    """A real file system of 64 KiB."""
    if not as_root:
        pytest.skip("mounting a tiny file system needs root")
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", folder]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


# ---------------------------------------------------------------- names


def test_a_key_is_the_same_on_every_machine() -> None:
    assert (
        content_key("cost", 3, model="a", bits=[4, 8], drop=0.1)
        == content_key("cost", 3, drop=0.1, bits=(4, 8), model="a")
        == "70534145ee1a869c53696236e229bbbbc86f2fb163e717b26ae7b8511e8a97ff"
    )


def test_everything_that_a_result_depends_on_is_in_its_key() -> None:
    keys = [
        content_key("cost", 3, model="a", bits=8),
        content_key("costs", 3, model="a", bits=8),
        content_key("cost", 4, model="a", bits=8),
        content_key("cost", 3, model="b", bits=8),
        content_key("cost", 3, model="a", bits=8.0),
        content_key("cost", 3, model="a", bits="8"),
        content_key("cost", 3, model="a", bits=[8]),
        content_key("cost", 3, model="a", bits=True),
        content_key("cost", 3, model="a", bits=None),
        content_key("cost", 3, model="a"),
        content_key("cost", 3, model="a", bits=np.nextafter(8.0, 9.0)),
        content_key("cost", 3, model={"a": {"bits": 8}}),
        content_key("cost", 3, model="a", bits=8, stage="x", version=1),
    ]
    assert len(set(keys)) == len(keys)
    with pytest.raises(TypeError):
        content_key("cost", 3, model=np.zeros(3))


@pytest.mark.parametrize("stage", ["", "../x", "a/b", "Calibration", "a b", ".", "a\n"])
def test_a_stage_is_a_plain_name(stage: str, cache: Cache) -> None:
    with pytest.raises(ValueError, match="a stage is"):
        cache.put(stage, key(1), entry(1))
    with pytest.raises(ValueError, match="a stage is"):
        cache.get(STAGE, key(1)[:-1] + "/")


# ---------------------------------------------------------------- exact

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=20,
)
dtypes = hnp.scalar_dtypes() | hnp.array_dtypes(max_size=3) | hnp.byte_string_dtypes() | hnp.unicode_string_dtypes()
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))


def bits(value: Any) -> Any:
    """A JSON value with the bits of its floats in their place. All NaN are one: JSON knows no other."""
    if isinstance(value, float):
        return "float", b"nan" if value != value else struct.pack("<d", value)
    if isinstance(value, dict):
        return [(name, bits(inner)) for name, inner in value.items()]
    if isinstance(value, list):
        return "list", [bits(inner) for inner in value]
    return type(value).__name__, value


@given(values=json_values, arrays=st.dictionaries(st.text(), arrays, max_size=3))
def test_what_is_kept_comes_back_to_the_bit(values: Any, arrays: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Cache(Path(folder)).put(STAGE, key(1), Entry(values, arrays))
        found = Cache(Path(folder), note=pytest.fail).get(STAGE, key(1))
    assert found is not None
    assert bits(found.values) == bits(values)
    assert list(found.arrays) == list(arrays)
    for name, array in arrays.items():
        assert same(found.arrays[name], array), name
        assert found.arrays[name].flags.writeable


@given(st.binary(min_size=8, max_size=80))
def test_every_float64_comes_back(raw: bytes) -> None:
    array = np.frombuffer(raw[: len(raw) // 8 * 8], np.float64)
    found = unpack(STAGE, key(1), pack(STAGE, key(1), Entry(array.tolist(), {"x": array})))
    assert found is not None and same(found.arrays["x"], array)
    assert bits(found.values) == bits(array.tolist())


def test_any_layout_and_any_name_will_do(cache: Cache) -> None:
    base = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    odd = {
        "file": base.T,
        "a": base[:, ::2, ::-1],
        "a.npy": np.asfortranarray(base),
        "../x": base[0, 0, 0],
        "": base[:0],
    }
    cache.put(STAGE, key(1), Entry(None, odd))
    found = cache.get(STAGE, key(1))
    assert found is not None and found.values is None
    assert all(same(found.arrays[name], np.asarray(array)) for name, array in odd.items())


@pytest.mark.parametrize(
    "wrong",
    [
        Entry(None, {"x": np.zeros(2, ml_dtypes.bfloat16)}),
        Entry(None, {"x": np.array([None])}),
        Entry(None, {"x": np.array(["a"], np.dtypes.StringDType())}),
        Entry(None, {"x": np.zeros(2, [("a", "f4"), ("b", "O")])}),
        Entry(np.float32(1)),
        Entry({"x": np.zeros(2)}),
        Entry({1, 2}),
    ],
    ids=lambda wrong: str(wrong.values or wrong.arrays["x"].dtype),
)
def test_what_would_come_back_as_something_else_is_refused(wrong: Entry, cache: Cache) -> None:
    with pytest.raises(TypeError):
        cache.put(STAGE, key(1), wrong)
    assert cache.get(STAGE, key(1)) is None


def test_a_folder_can_be_kept(tmp_path: Path, cache: Cache) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    content = {"model.onnx": b"\x00\xff" * 999, "deep/er/weights.bin": b"", "deep/a b.txt": b"x"}
    for name, data in content.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    cache.put("build", key(1), Entry(None, read_folder(source)))
    found = cache.get("build", key(1))
    assert found is not None
    write_folder(found.arrays, target)
    assert {path.relative_to(target).as_posix(): path.read_bytes() for path in files(target)} == content


@pytest.mark.parametrize("name", ["../x", "/tmp/edgeq-x", "a/../../x"])
def test_a_folder_is_not_left(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leads out"):
        write_folder({name: np.zeros(1, np.uint8)}, tmp_path / "in")
    assert files(tmp_path) == []


# ---------------------------------------------------------------- damage


def test_no_flipped_bit_goes_unnoticed() -> None:
    data = pack(STAGE, key(1), entry(1, 3))
    assert unpack(STAGE, key(1), data) is not None
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            assert unpack(STAGE, key(1), bytes(changed)) is None, (place, bit)


def test_no_cut_goes_unnoticed() -> None:
    data = pack(STAGE, key(1), entry(1, 3))
    assert all(unpack(STAGE, key(1), data[:length]) is None for length in range(len(data)))
    assert unpack(STAGE, key(1), data + b"\0") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: data[:4096] + bytes(len(data) - 4096),  # what a crash leaves of pages that were not written
        lambda data: b"PK\x03\x04" + data,
        lambda data: pickle.dumps(entry(1)),
        lambda data: pack(STAGE, key(2), entry(1)),
        lambda data: pack("sensitivity", key(1), entry(1)),
    ],
    ids=["cut", "empty", "flipped", "zeros", "foreign", "pickle", "of another key", "of another stage"],
)
def test_a_damaged_file_is_removed_noted_and_made_anew(damage: Any, cache: Cache, notes: list[str]) -> None:
    cache.put(STAGE, key(1), entry(1, 1000))
    (path,) = files(cache.root)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(STAGE, key(1)) is None
    assert not path.exists()
    assert notes == ["a kept result of calibration was damaged; it is computed again"]
    cache.put(STAGE, key(1), entry(1))
    assert is_entry(cache.get(STAGE, key(1)), 1)


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was read",)


def test_a_file_that_is_whole_and_holds_a_pickle_runs_nothing() -> None:
    head = {"stage": STAGE, "key": key(1), "arrays": ["x"], "values": None}
    body = io.BytesIO(json.dumps(head).encode() + b"\n")
    body.seek(0, os.SEEK_END)
    np.lib.format.write_array(body, np.array([Bomb()]), allow_pickle=True)
    data = b"edgeq result 1 %s\n" % hashlib.sha256(body.getvalue()).hexdigest().encode() + body.getvalue()
    assert unpack(STAGE, key(1), data) is None
    harmless = pack(STAGE, key(1), Entry(None, {}))
    assert data[:15] == harmless[:15], "the format has changed, so this test shows nothing"


# ---------------------------------------------------------------- kills and crowds

# Starts copies of itself that keep results without end, and kills each at some moment. Two at a time write the same.
# What they keep is packed beforehand, so that most of the time is spent writing.
KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from edgeq.cache import Cache
from edgeq.cache.entry import pack
from test_cache import STAGE, entry, key

packed = [pack(STAGE, key(number), entry(number, 120_000)) for number in range(8)]

def keep(seed):
    cache, order = Cache(Path(sys.argv[1]), note=lambda text: os._exit(9)), random.Random(seed)
    while True:
        number = order.randrange(8)
        cache.keep(STAGE, key(number), packed[number])

chance = random.Random(1)
for turn in range(15):
    started = []
    for seed in (2 * turn, 2 * turn + 1):
        process = os.fork()
        if process == 0:
            keep(seed)
        started.append(process)
    time.sleep(chance.uniform(0.02, 0.12))
    for process in started:
        os.kill(process, signal.SIGKILL)
        assert os.waitpid(process, 0)[1] == signal.SIGKILL, "it ended by itself"
        time.sleep(chance.uniform(0, 0.01))
"""

# Keeps and gets the same few results as others do, in a cache that is too small for them.
CROWDED = """
import random, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from edgeq.cache import Cache
from test_cache import STAGE, entry, is_entry, key

notes, order, hits = [], random.Random(sys.argv[3]), 0
cache = Cache(Path(sys.argv[1]), limit=200_000, note=notes.append)
for _ in range(300):
    number = order.randrange(6)
    if order.random() < 0.5:
        cache.put(STAGE, key(number), entry(number, 5_000))
    elif (found := cache.get(STAGE, key(number))) is not None:
        assert is_entry(found, number)
        hits += 1
assert notes == [] and hits > 20, (notes, hits)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", code, arguments[0], here, *arguments[1:]], stderr=subprocess.PIPE, text=True
    )


def test_after_thirty_kills_whatever_is_there_is_right(tmp_path: Path) -> None:
    process = start(KILLED, str(tmp_path))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    notes: list[str] = []
    cache = Cache(tmp_path, note=notes.append)
    found = [(number, cache.get(STAGE, key(number))) for number in range(8)]
    whole = [number for number, found in found if found is not None and is_entry(found, number)]
    # A kill leaves nothing damaged under a result's name: it is there and right, or not there.
    assert notes == [] and len(whole) == sum(found is not None for _, found in found) > 0
    left = partials(tmp_path)
    assert left, "no kill fell into a write, so this test shows nothing"
    for path in left[1:]:
        set_times(path, used=2 * HOUR)
    Cache(tmp_path).put(STAGE, key(99), entry(99))
    assert [path for path in files(tmp_path) if path.suffix == ".partial"] == left[:1], (
        "the young one may be written yet"
    )


def test_processes_share_a_cache(tmp_path: Path) -> None:
    crowd = [start(CROWDED, str(tmp_path), str(seed)) for seed in range(3)]
    for process in crowd:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert total(tmp_path) <= 200_000
    assert all(path.suffix == ".edgeq" for path in files(tmp_path))


def test_threads_share_a_cache(cache: Cache, notes: list[str]) -> None:
    wrong: list[object] = []

    def work() -> None:
        try:
            for number in (1, 2) * 10:
                cache.put(STAGE, key(number), entry(number))
                found = cache.get(STAGE, key(number))
                if found is None or not is_entry(found, number):
                    wrong.append(found)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and notes == [] and len(files(cache.root)) == 2


def test_an_interrupted_write_leaves_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.put(STAGE, key(1), entry(1))
    assert files(cache.root) == []


def test_it_is_on_the_disk_before_it_has_its_name(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[list[Path]] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(files(cache.root)))
    cache.put(STAGE, key(1), entry(1))
    ((partial,),) = synced
    assert partial.suffix == ".partial" and [path.suffix for path in files(cache.root)] == [".edgeq"]


# ---------------------------------------------------------------- a cache that cannot be written or read


def computed(cache: Cache, number: int = 1, floats: int = 100) -> tuple[Entry, bool]:
    """A result by way of the cache, and whether it had to be computed."""
    calls: list[int] = []

    def compute() -> Entry:
        calls.append(number)
        return entry(number, floats)

    return cached(cache, STAGE, key(number), compute, lambda e: e, lambda e: e), bool(calls)


def test_a_full_disk_is_a_note(tiny_disk: Path, notes: list[str]) -> None:
    cache = Cache(tiny_disk, note=notes.append)
    computed(cache, 1)
    for number in (2, 3):
        found, fresh = computed(cache, number, 50_000)
        assert fresh and is_entry(found, number)
    assert notes == [f"results cannot be kept in {tiny_disk}: the disk is full"]
    found, fresh = computed(cache, 1)
    assert not fresh and is_entry(found, 1)
    assert len(files(tiny_disk)) == 1


def test_a_cache_that_may_only_be_read_still_serves(tiny_disk: Path, notes: list[str]) -> None:
    computed(Cache(tiny_disk), 1)
    computed(Cache(tiny_disk), 2)
    damaged = tiny_disk / STAGE / f"{key(2)}.edgeq"
    damaged.write_bytes(b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    cache = Cache(tiny_disk, note=notes.append)
    found, fresh = computed(cache, 1)
    assert not fresh and is_entry(found, 1) and notes == []
    for number in (2, 3):
        found, fresh = computed(cache, number)
        assert fresh and is_entry(found, number)
    assert notes == [
        "a kept result of calibration was damaged; it is computed again",
        f"results cannot be kept in {tiny_disk}: no permission here",
    ]
    with pytest.raises(UsageError, match="no permission"):
        clear(tiny_disk)


@pytest.mark.skipif(as_root, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_note(tmp_path: Path, notes: list[str]) -> None:
    computed(Cache(tmp_path), 1)
    (tmp_path / STAGE).chmod(0)
    try:
        found, fresh = computed(Cache(tmp_path, note=notes.append), 1)
        with pytest.raises(UsageError, match="no permission"):
            describe(tmp_path)
    finally:
        (tmp_path / STAGE).chmod(0o700)
    assert fresh and is_entry(found, 1)
    assert [note.rpartition(": ")[2] for note in notes] == ["no permission here"] * 2


def test_a_file_in_the_way_is_a_note(tmp_path: Path, notes: list[str]) -> None:
    root = tmp_path / "cache"
    root.touch()
    found, fresh = computed(Cache(root, note=notes.append))
    assert fresh and is_entry(found, 1)
    assert notes == [f"results cannot be kept in {root}: a file is in the way of a folder"]
    with pytest.raises(UsageError, match="a file is in the way"):
        describe(root)


def test_a_folder_in_the_way_is_a_note(cache: Cache, notes: list[str]) -> None:
    (cache.root / STAGE / f"{key(1)}.edgeq").mkdir(parents=True)
    found, fresh = computed(cache)
    assert fresh and is_entry(found, 1) and len(notes) == 2
    assert files(cache.root) == []


@pytest.mark.skipif(os.name == "nt", reason="permissions are lists there")
@pytest.mark.parametrize("where", ["root", "stage"])
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_where_others_may_write_nothing_is_kept_or_used(
    where: str, mode: int, tmp_path: Path, notes: list[str]
) -> None:
    root = tmp_path / "cache"
    computed(Cache(root), 1)
    assert {path.stat().st_mode & 0o777 for path in (root, root / STAGE)} == {0o700}
    (root if where == "root" else root / STAGE).chmod(mode)
    cache = Cache(root, note=notes.append)
    for number in (1, 2):
        found, fresh = computed(cache, number)
        assert fresh and is_entry(found, number)
    assert len(notes) == 1 and "others may write to" in notes[0] and "chmod" in notes[0]
    assert len(files(root)) == 1
    assert not computed(Cache(root, shared=True), 1)[1]


@pytest.mark.skipif(not as_root, reason="giving a folder away needs root")
def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, notes: list[str]) -> None:
    computed(Cache(tmp_path), 1)
    os.chown(tmp_path, 12345, 12345)
    assert computed(Cache(tmp_path, note=notes.append), 1)[1]
    assert len(notes) == 1


def test_a_shared_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    assert not open_cache().shared
    monkeypatch.setenv("EDGEQ_CACHE_SHARED", "yes")
    assert open_cache().shared


# ---------------------------------------------------------------- get or compute


@pytest.mark.parametrize("on", [True, False])
def test_a_fresh_result_is_what_a_kept_one_would_be(on: bool, tmp_path: Path) -> None:
    cache = Cache(tmp_path if on else None)
    results = [
        cached(
            cache, STAGE, key(1), lambda: (1, 2.5), lambda pair: Entry({"pair": pair, 3: None}), lambda e: e.values
        )
        for _ in range(2)
    ]  # fmt: skip
    assert results == [{"pair": [1, 2.5], "3": None}] * 2


def test_it_is_computed_once(cache: Cache, notes: list[str]) -> None:
    assert [computed(cache)[1] for _ in range(3)] == [True, False, False]
    assert computed(cache, 2)[1]
    assert [computed(Cache(None))[1] for _ in range(2)] == [True, True]
    assert notes == []


def test_a_failure_is_not_kept(cache: Cache) -> None:
    def fail() -> Entry:
        raise UsageError("no")

    with pytest.raises(UsageError):
        cached(cache, STAGE, key(1), fail, lambda e: e, lambda e: e)
    assert computed(cache)[1]


def test_what_older_code_kept_in_another_way_is_computed_again(cache: Cache, notes: list[str]) -> None:
    cache.put(STAGE, key(1), Entry({"old": 1}))
    for _ in range(2):
        found = cached(
            cache, STAGE, key(1), lambda: 7, lambda n: Entry({"new": n}), lambda e: e.values["new"]
        )  # fmt: skip
        assert found == 7
    assert notes == ["a kept result of calibration is of another kind; it is computed again"]


def test_what_is_of_another_kind_is_not_recalled(cache: Cache, notes: list[str]) -> None:
    assert recalled(cache, STAGE, key(1), lambda e: e.values["new"]) is None and notes == []
    cache.put(STAGE, key(1), Entry({"old": 1}))
    assert recalled(cache, STAGE, key(1), lambda e: e.values["new"]) is None
    assert len(notes) == 1
    assert recalled(cache, STAGE, key(1), lambda e: e.values["old"]) == 1
    with pytest.raises(KeyError):
        cached(cache, STAGE, key(2), lambda: 7, lambda n: Entry({"new": n}), lambda e: e.values["typo"])


def test_what_cannot_be_kept_is_an_error_with_and_without_a_cache(cache: Cache) -> None:
    for each in (cache, Cache(None)):
        with pytest.raises(TypeError):
            cached(each, STAGE, key(1), lambda: np.float32(1), Entry, lambda e: e.values)


# ---------------------------------------------------------------- limit

SIZE = len(pack(STAGE, key(1), Entry("x" * 1000)))


def fill(cache: Cache, *numbers: int) -> None:
    for number in numbers:
        cache.put(STAGE, key(number), Entry("x" * 1000))


def kept(cache: Cache, *numbers: int) -> list[int]:
    return [number for number in numbers if (cache.root / STAGE / f"{key(number)}.edgeq").exists()]


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=10 * SIZE)
    fill(cache, *range(10))
    assert kept(cache, *range(10)) == list(range(10))
    for number in (0, 2):
        assert cache.get(STAGE, key(number)) is not None
    fill(cache, 10)
    # Two go: down to nine tenths of the limit.
    assert kept(cache, *range(11)) == [0, 2, 4, 5, 6, 7, 8, 9, 10]


def test_use_is_remembered_by_the_next_process_and_age_is_kept(tmp_path: Path) -> None:
    fill(Cache(tmp_path), 1, 2, 3)
    for path in files(tmp_path):
        set_times(path, used=HOUR, written=2 * HOUR)
    Cache(tmp_path).get(STAGE, key(2))
    fill(Cache(tmp_path, limit=3 * SIZE), 4)
    assert kept(Cache(tmp_path), 2, 4) == [2, 4] and len(files(tmp_path)) == 2
    told = (tmp_path / STAGE / f"{key(2)}.edgeq").stat()
    assert time.time() - told.st_atime < HOUR / 2
    assert time.time() - told.st_mtime == pytest.approx(2 * HOUR, abs=60)


def test_use_is_remembered_where_the_system_notes_no_readings(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,noatime", str(tiny_disk)], check=True)
    cache = Cache(tiny_disk, limit=3 * SIZE)
    fill(cache, 1, 2, 3)
    cache.get(STAGE, key(1))
    fill(cache, 4)
    assert kept(cache, 1, 2, 3, 4) == [1, 4]


@given(sizes=st.lists(st.integers(0, 6000), max_size=30), limit=st.integers(500, 10_000))
@settings(max_examples=30)
def test_it_never_holds_more_than_its_limit(sizes: list[int], limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder), limit=limit)
        for number, size in enumerate(sizes):
            cache.put("abc"[number % 3], key(number), Entry("x" * size))
            assert total(cache.root) <= limit
            if size + 300 <= limit:
                assert cache.get("abc"[number % 3], key(number)) is not None, "the newest stays"


def test_what_is_larger_than_the_limit_drives_nothing_out(tmp_path: Path, notes: list[str]) -> None:
    cache = Cache(tmp_path, limit=3 * SIZE, note=notes.append)
    fill(cache, 1, 2)
    for number in (3, 4):
        cache.put(STAGE, key(number), Entry("x" * 4000))
    assert kept(cache, 1, 2, 3, 4) == [1, 2]
    assert notes == ["a result of calibration is larger than the cache's limit and is not kept"]


def test_nothing_foreign_is_touched(tmp_path: Path) -> None:
    name = f"{key(1)}.edgeq"
    foreign = [
        "thesis.tex", f"{STAGE}/thesis.tex", f"{STAGE}/.x.partial", f"Photos/{name}", f"{STAGE}/{name}~",
        f"{STAGE}/deeper/{name}", name, f"{STAGE}/thesis.edgeq",
    ]  # fmt: skip
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(5000))
        set_times(tmp_path / name, used=1000 * HOUR)
    link = tmp_path / STAGE / f"{key(2)}.edgeq"
    link.symlink_to(tmp_path / "thesis.tex")
    fill(Cache(tmp_path, limit=SIZE), 3, 4)
    assert clear(tmp_path) == Freed(1, SIZE)
    left = [path.relative_to(tmp_path).as_posix() for path in files(tmp_path) if path != link]
    assert sorted(left) == sorted(foreign) and link.is_symlink()


# ---------------------------------------------------------------- where it is


@pytest.mark.parametrize(
    ("environment", "root", "limit"),
    [
        ({}, Path("~/.cache/edgeq/results").expanduser(), LIMIT),
        ({"EDGEQ_HOME": "/x"}, Path("/x/results"), LIMIT),
        ({"EDGEQ_HOME": "/x", "EDGEQ_CACHE": "~/y"}, Path("~/y").expanduser(), LIMIT),
        ({"EDGEQ_CACHE": "y"}, Path("y").absolute(), LIMIT),
        ({"EDGEQ_CACHE": "off"}, None, LIMIT),
        ({"EDGEQ_CACHE": "OFF", "EDGEQ_CACHE_LIMIT": "lots"}, None, LIMIT),
        ({"EDGEQ_CACHE": "", "EDGEQ_CACHE_LIMIT": "2.5MB"}, Path("~/.cache/edgeq/results").expanduser(), 2_500_000),
    ],
    ids=str,
)
def test_where_it_is(
    environment: dict[str, str], root: Path | None, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EDGEQ_HOME", "EDGEQ_CACHE", "EDGEQ_CACHE_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cache = open_cache(pytest.fail)
    assert (cache.root, cache.limit) == (root, limit)


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("EDGEQ_HOME", "EDGEQ_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert open_cache(notes.append).root is None
    assert "EDGEQ_CACHE" in notes[0]


def test_a_warm_start_waits_for_nothing_heavy() -> None:
    heavy = "{'torch', 'scipy', 'pydantic', 'onnx'} & set(sys.modules)"
    code = f"import sys, edgeq.cache; edgeq.cache.open_cache(); sys.exit(str({heavy}) if {heavy} else 0)"
    environment = {name: value for name, value in os.environ.items() if name != "EDGEQ_CACHE_LIMIT"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- edgeq cache


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three results of a day, two days and ten days ago, and one that a kill cut short."""
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    monkeypatch.setenv("EDGEQ_CACHE_LIMIT", "2MB")
    monkeypatch.delenv("COLUMNS", raising=False)
    cache = Cache(tmp_path)
    fill(cache, 1, 2)
    cache.put("sensitivity", key(3), Entry("x" * 1000))
    for number, stage, days in ((1, STAGE, 1), (2, STAGE, 10), (3, "sensitivity", 2)):
        set_times(tmp_path / stage / f"{key(number)}.edgeq", used=days * 24 * HOUR, written=20 * 24 * HOUR)
    (tmp_path / STAGE / f".{key(9)}.{'0' * 32}.partial").write_bytes(bytes(10))
    return tmp_path


def test_describe_and_clear(filled: Path) -> None:
    first, second = describe(filled)
    assert (first.stage, first.entries, first.bytes) == (STAGE, 2, 2 * SIZE + 10)
    assert first.oldest == pytest.approx(time.time() - 20 * 24 * HOUR, abs=60)
    assert first.newest == pytest.approx(time.time(), abs=60)
    assert second.newest == second.oldest
    assert second.last_used == pytest.approx(time.time() - 48 * HOUR, abs=60)
    assert clear(filled, older_than=5 * 24 * HOUR) == Freed(1, SIZE)
    assert clear(filled, STAGE, older_than=0) == Freed(1, SIZE + 10)
    assert [usage.stage for usage in describe(filled)] == ["sensitivity"]
    assert clear(filled, STAGE) == Freed(0, 0)
    with pytest.raises(UsageError, match="there is no stage 'calibraton'"):
        clear(filled, "calibraton")
    assert clear(filled).entries == 1 and files(filled) == []
    assert describe(None) == describe(filled / "missing") == []
    assert clear(None) == clear(filled / "missing", "x") == Freed(0, 0)


def test_clear_beside_another_that_clears(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def racing(root: Path) -> list[contents.Stored]:
        found = stored(root)
        found[0].path.unlink()
        return found

    stored = contents.stored
    monkeypatch.setattr(contents, "stored", racing)
    clear(filled)
    assert files(filled) == []


def test_the_table(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache"]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[0] == ["stage", "results", "size", "oldest", "newest", "last", "used"]
    assert lines[2][:5] == [STAGE, "2", "2.41", "kB", "20"] and lines[3][-3:] == ["2", "d", "ago"]
    assert lines[3][:3] == ["sensitivity", "1", "1.2"]
    assert lines[4] == f"3.61 kB of at most 2 MB in {filled}".split()
    assert err == "" and max(map(len, out.splitlines()[:-1])) <= 100


def test_the_table_as_json(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["folder"], found["limit_bytes"], found["bytes"]) == (str(filled), 2_000_000, 3 * SIZE + 10)
    first, second = found["stages"]
    assert (first["stage"], first["entries"], second["bytes"]) == (STAGE, 2, SIZE)
    used = datetime.fromisoformat(second["last_used"])
    assert used.utcoffset() == timedelta(0)
    assert used.timestamp() == pytest.approx(time.time() - 48 * HOUR, abs=60)
    assert err == ""


def test_an_empty_and_a_disabled_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "none"))
    assert run(["cache"]) == 0
    assert capsys.readouterr().out == f"nothing in {tmp_path / 'none'}\n"
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv("EDGEQ_CACHE", "off")
    assert run(["cache"]) == run(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "nothing is kept: the cache is off\nremoved 0 results, 0 B\n"
    assert run(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] is None


@pytest.mark.parametrize(
    ("arguments", "freed"),
    [
        ([], 3),
        ([STAGE], 2),
        (["sensitivity"], 1),
        (["--older-than", "7d"], 1),
        (["--older-than", "1w", STAGE], 1),
        (["--older-than", "30h"], 2),
        (["--older-than", "1.5d", "sensitivity"], 1),
        (["--older-than", "30 min"], 3),
        (["--older-than", "900000s"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_clear_removes_what_it_is_told(
    arguments: list[str], freed: int, filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "clear", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == freed
    assert len([path for path in files(filled) if path.suffix == ".edgeq"]) == 3 - freed


def test_clear_says_what_it_did(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "clear", "sensitivity"]) == 0
    assert capsys.readouterr() == ("removed 1 result, 1.2 kB\n", "")
    assert run(["cache", "clear", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "") and files(filled) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["clear", "calibraton"], "there is no stage 'calibraton'"),
        (["clear", "../cache"], "there is no stage '../cache'"),
        (["clear", "--older-than", "7"], "--older-than: cannot read '7'"),
        (["clear", "--older-than", "-1d"], "--older-than: cannot read '-1d'"),
        (["clear", "--older-than", "5 m"], "--older-than: cannot read '5 m'"),
        (["claer"], "Did you mean 'clear'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_removes_nothing(
    arguments: list[str], said: str, filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(filled)
    assert run(["cache", *arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert said in f"{error['where']}: {error['cause']}" and error["remedy"] and error["kind"] == "usage"
    assert files(filled) == before


def test_a_limit_that_cannot_be_read(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEQ_CACHE_LIMIT", "lots")
    assert run(["cache"]) == 2
    assert "error: EDGEQ_CACHE_LIMIT: cannot read 'lots'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["cache"], ["cache", "clear"]], ids=" ".join)
def test_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output
    assert all(option in result.output for option in ("--json", "--quiet", "--debug"))

"""Samples that an earlier run has read are known without being read again, and only then."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from edgeq.cache import Cache
from edgeq.data import kept, stored
from edgeq.data.dataset import Dataset, InputSpec
from edgeq.data.kept import begin_reading, load_kept_data
from edgeq.data.load import Role, load_data
from edgeq.data.unread import Unread
from edgeq.errors import UsageError

X, Y = InputSpec("x", (None, 3, 4), "float32"), InputSpec("y", (None, 2), "int64")
PIXELS = np.random.default_rng(0).standard_normal((7, 3, 4)).astype(np.float32)
PAIRS = np.arange(14).reshape(7, 2)
LABELS = np.arange(7)[::-1].copy()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "results")


def written(path: Path, **arrays: np.ndarray) -> Path:
    """A file that was written an hour ago."""
    np.savez(path, **arrays)
    then = time.time() - 3600
    os.utime(path, (then, then))
    return path


def load(path: Path, cache: Cache, *specs: InputSpec, role: Role = "evaluation") -> Dataset:
    return load_kept_data(path, specs or (X, Y), preprocess=None, role=role, cache=cache)


def unread(data: Dataset) -> bool:
    return isinstance(data.inputs, Unread)


@pytest.mark.parametrize("labels", [{}, {"labels": LABELS}])
@pytest.mark.parametrize("extra", [{}, {"z": np.zeros(3)}])
def test_what_is_kept_is_what_was_read(
    tmp_path: Path, cache: Cache, labels: dict[str, np.ndarray], extra: dict[str, np.ndarray]
) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS, y=PAIRS, **labels, **extra)
    read = load_data(path, (X, Y), role="evaluation")
    first, again = load(path, cache), load(path, cache)
    assert not unread(first) and unread(again)
    for data in (first, again):
        assert (data.sha256, data.source, data.specs, data.notes, len(data)) == (
            read.sha256, read.source, read.specs, read.notes, 7,
        )  # fmt: skip
        assert data.places == read.places and list(data.inputs) == ["x", "y"]
        assert data.sample_hashes == read.sample_hashes
        np.testing.assert_array_equal(data.inputs["x"], PIXELS)
        np.testing.assert_array_equal(data.inputs["y"], PAIRS)
        assert (data.labels is None) == (not labels)
        if data.labels is not None:
            np.testing.assert_array_equal(data.labels, LABELS)
            assert data.labels.dtype == np.int64


def test_only_what_is_asked_for_is_read(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS, y=PAIRS)
    load(path, cache)
    asked: list[int] = []
    fromfile = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda *a, **k: asked.append(a[2]) or fromfile(*a, **k))
    data = load(path, cache)
    assert len(data) == 7 and not asked
    few = data.first(2)
    assert asked == [2 * 12, 2 * 2]
    np.testing.assert_array_equal(few["x"], PIXELS[:2])
    np.testing.assert_array_equal(few["y"], PAIRS[:2])
    assert len(data.first(100)["x"]) == 7
    asked.clear()
    np.testing.assert_array_equal(data.sample(3)[0], PIXELS[3:4])
    data.sample(4)
    assert asked == [7 * 12, 7 * 2]  # once, all of it


def test_another_process_is_sent_the_arrays(tmp_path: Path, cache: Cache) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS, y=PAIRS)
    load(path, cache)
    sent = pickle.dumps(load(path, cache))
    path.unlink()
    np.testing.assert_array_equal(pickle.loads(sent).inputs["x"], PIXELS)


def test_other_content_is_read_again_whatever_the_clock_says(tmp_path: Path, cache: Cache) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS, y=PAIRS)
    before = path.stat()
    old = load(path, cache)
    other = PIXELS.copy()
    other[3, 1, 2] += 1
    with path.open("r+b") as file:  # the same inode, size and time
        np.savez(file, x=other, y=PAIRS)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    new = load(path, cache)
    assert new.sha256 != old.sha256 and not unread(new)
    np.testing.assert_array_equal(new.inputs["x"], other)


def test_a_file_that_changes_before_it_is_used_is_an_error(tmp_path: Path, cache: Cache) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS, y=PAIRS)
    load(path, cache)
    changed, cut, gone = (load(path, cache) for _ in range(3))
    os.utime(path)
    with pytest.raises(UsageError, match=r"a.npz: .*changed while it was in use"):
        changed.first(1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsageError, match="changed"):
        cut.inputs["x"]
    path.unlink()
    with pytest.raises(UsageError, match="changed"):
        gone.inputs["y"]


def test_what_is_asked_of_the_samples_is_checked_in_any_case(tmp_path: Path, cache: Cache) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS, y=PAIRS)
    load(path, cache)
    with pytest.raises(UsageError, match="does not fit"):
        load(path, cache, InputSpec("x", (None, 4, 3), "float32"), Y)
    half = load(path, cache, InputSpec("x", (None, 3, 4), "float16"), Y)
    assert half.inputs["x"].dtype == np.float16 and not unread(half)
    assert unread(load(path, cache))


def test_labels_are_those_of_the_role(tmp_path: Path, cache: Cache) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS, y=PAIRS, labels=LABELS)
    for _ in range(2):
        assert load(path, cache, role="calibration").labels is None
        assert load(path, cache, role="evaluation").labels is not None


@pytest.mark.parametrize("kind", ["just written", "converted", "compressed", "npy", "no cache"])
def test_what_cannot_be_told_again_is_read_again(tmp_path: Path, cache: Cache, kind: str) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS.astype(np.float64) if kind == "converted" else PIXELS)
    if kind == "just written":
        os.utime(path)
    if kind == "compressed":
        np.savez_compressed(path, x=PIXELS)
        os.utime(path, (0, 0))
    if kind == "npy":
        path = tmp_path / "a.npy"
        np.save(path, PIXELS)
        os.utime(path, (0, 0))
    used = Cache(None) if kind == "no cache" else cache
    for _ in range(2):
        data = load(path, used, X)
        assert not unread(data) and len(data) == 7


def test_a_file_that_is_written_to_while_it_is_read_is_not_kept(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS)

    def slow(*args: object, **how: object) -> Dataset:
        os.utime(path, (0, 0))
        return load_data(path, (X,), role="evaluation")

    monkeypatch.setattr(kept, "load_data", slow)
    load(path, cache, X)
    monkeypatch.undo()
    assert not unread(load(path, cache, X))


def test_a_damaged_file_is_refused_and_not_kept(tmp_path: Path, cache: Cache) -> None:
    path = written(tmp_path / "a.npz", x=PIXELS)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(PIXELS[3].tobytes(), PIXELS[4].tobytes()))
    os.utime(path, (0, 0))
    for _ in range(2):
        with pytest.raises(UsageError, match="damaged"):
            load(path, cache, X)


def test_a_pipe_is_not_waited_for(tmp_path: Path, cache: Cache) -> None:
    os.mkfifo(tmp_path / "pipe")
    begin_reading({"calibration": tmp_path / "pipe"}, cache)
    with pytest.raises(UsageError, match="this is a pipe"):
        load(tmp_path / "pipe", cache)


def test_only_what_is_not_kept_is_read_ahead(tmp_path: Path, cache: Cache) -> None:
    known, new = (written(tmp_path / name, x=PIXELS) for name in ("known.npz", "new.npz"))
    load(known, cache, X, role="calibration")
    begin_reading({"calibration": known, "evaluation": new}, cache)
    assert stored._ahead.keys() == {new}
    begin_reading({"calibration": "package:function", "evaluation": tmp_path / "none.npz"}, cache)
    assert load(new, cache, X).inputs.keys() == {"x"} and not stored._ahead

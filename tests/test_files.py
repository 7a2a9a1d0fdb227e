"""Writing all or nothing, and the lock of a build."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeq.errors import UsageError
from edgeq.files import LOCK_NAME, atomic_write, is_build, sha256_file, staged_directory
from edgeq.lock import (
    GOLDEN_NAME,
    Golden,
    changed_files,
    changed_versions,
    drift,
    read_golden,
    read_lock,
    versions_now,
    write_lock,
)

as_root = os.name == "posix" and os.geteuid() == 0


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    """A real file system of 64 KiB."""
    if not as_root:
        pytest.skip("mounting a tiny file system needs root")
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if mounted.returncode != 0:
            pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "old")
    atomic_write(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_explains_a_missing_folder_and_keeps_quiet_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        atomic_write(tmp_path / "missing" / "a", b"x")


def test_atomic_write_on_a_full_disk_keeps_the_old_file(tiny_disk: Path) -> None:
    path = tiny_disk / "a.bin"
    atomic_write(path, b"old")
    with pytest.raises(UsageError, match="disk is full"):
        atomic_write(path, bytes(200_000))
    assert path.read_bytes() == b"old"
    assert list(tiny_disk.iterdir()) == [path]


def test_staged_folder_appears_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "build"
    with staged_directory(final) as partial:
        (partial / "file").write_text("x")
        assert not final.exists() and partial.parent == final.parent
    assert (final / "file").read_text() == "x"
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), SystemExit(3)])
def test_staged_folder_vanishes_on_any_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), staged_directory(tmp_path / "build") as partial:
        (partial / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_old_build_is_replaced_only_when_asked(tmp_path: Path) -> None:
    final = tmp_path / "build"
    final.mkdir()
    (final / LOCK_NAME).write_text("old")
    with pytest.raises(UsageError, match="another build"), staged_directory(final):
        pytest.fail("the block must not run")
    with pytest.raises(ValueError), staged_directory(final, overwrite=True):
        raise ValueError
    assert (final / LOCK_NAME).read_text() == "old"
    with staged_directory(final, overwrite=True) as partial:
        (partial / LOCK_NAME).write_text("new")
    assert (final / LOCK_NAME).read_text() == "new" and is_build(final)
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"), staged_directory(tmp_path, overwrite=overwrite):
        pytest.fail("the block must not run")
    with pytest.raises(UsageError, match="a file, not a folder"), staged_directory(tmp_path / "thesis.tex"):
        pytest.fail("the block must not run")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_filled_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    final = tmp_path / "build"
    with pytest.raises(UsageError, match="not empty"), staged_directory(final):
        final.mkdir()
        (final / "other").write_text("x")
    assert [p.name for p in final.iterdir()] == ["other"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    final = tmp_path / "build"
    final.mkdir()
    with staged_directory(final) as partial:
        (partial / "file").touch()
    assert [p.name for p in final.iterdir()] == ["file"]


def test_what_dead_processes_left_is_removed_and_the_living_kept(tmp_path: Path) -> None:
    stale, foreign = tmp_path / f".build.partial-{dead_process()}", tmp_path / ".other.partial-1"
    living = tmp_path / f".build.partial-{os.getppid()}"
    for folder in (stale, foreign, living):
        folder.mkdir()
    with staged_directory(tmp_path / "build"):
        assert not stale.exists() and foreign.exists() and living.exists()


def test_an_old_build_set_aside_by_a_dead_process_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / f".build.replaced-{dead_process()}"
    aside.mkdir()
    (aside / LOCK_NAME).write_text("old")
    with pytest.raises(UsageError, match="another build"), staged_directory(tmp_path / "build"):
        pytest.fail("the block must not run")
    assert (tmp_path / "build" / LOCK_NAME).read_text() == "old" and not aside.exists()


def test_staging_on_a_full_disk_says_so_and_cleans_up(tiny_disk: Path) -> None:
    with pytest.raises(UsageError, match="disk is full"), staged_directory(tiny_disk / "build") as partial:
        (partial / "weights").write_bytes(bytes(200_000))
    assert list(tiny_disk.iterdir()) == []


def test_a_full_disk_reported_by_a_native_library_is_recognised(tiny_disk: Path) -> None:
    with pytest.raises(UsageError, match="disk is full"), staged_directory(tiny_disk / "build") as partial:
        try:
            (partial / "weights").write_bytes(bytes(200_000))
        except OSError:
            raise RuntimeError("write failed") from None


@pytest.mark.skipif(as_root, reason="root may write everywhere")
def test_a_folder_without_permission_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="no permission"), staged_directory(tmp_path / "build"):
        pytest.fail("the block must not run")


def test_a_refusal_of_the_system_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match="no permission"), staged_directory(tmp_path / "x" / "build"):
        pytest.fail("the block must not run")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    with pytest.raises(UsageError, match="no such file"):
        sha256_file(tmp_path / "b")


# ---- the lock

OUTPUT = np.array([[0.0, 0.5, 1.0], [2.0, 0.0, 0.5]], dtype=np.float32)


def make_build(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(b"weights")
    golden = Golden(
        inputs={"x/y": np.ones((2, 3), dtype=np.float32)},
        outputs={"onnx": [OUTPUT]},
        devices={"onnx": "x86"},
        steps={"onnx": [0.5]},
    )
    write_lock(
        folder, model="m", data={"evaluation": "e", "calibration": "c"}, plans={"onnx": "p"}, files=["model.onnx"],
        versions={"torch": "2.13", "edgeq": "0.1"}, golden=golden,
    )  # fmt: skip
    return folder


def test_lock_reads_back_and_is_the_same_twice(tmp_path: Path) -> None:
    a, b = make_build(tmp_path / "a"), make_build(tmp_path / "b")
    for name in (LOCK_NAME, GOLDEN_NAME):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    lock = read_lock(a)
    assert lock.files["model.onnx"] == hashlib.sha256(b"weights").hexdigest()
    assert set(lock.files) == {"model.onnx", GOLDEN_NAME}
    golden = read_golden(a, lock)
    assert golden is not None
    np.testing.assert_array_equal(golden.outputs["onnx"][0], OUTPUT)
    assert list(golden.inputs) == ["x/y"] and golden.steps == {"onnx": [0.5]}
    assert changed_files(a, lock) == [] and is_build(a)


def test_changed_and_missing_files_and_versions_are_named(tmp_path: Path) -> None:
    build = make_build(tmp_path / "a")
    lock = read_lock(build)
    (build / "model.onnx").write_bytes(b"Weights")
    (build / GOLDEN_NAME).unlink()
    changes = {c.name: c.now for c in changed_files(build, lock)}
    assert changes == {"model.onnx": hashlib.sha256(b"Weights").hexdigest(), GOLDEN_NAME: ""}
    assert [(c.name, c.then, c.now) for c in changed_versions(lock, {"torch": "2.14", "numpy": "2"})] == [
        ("edgeq", "0.1", ""),
        ("torch", "2.13", "2.14"),
    ]
    with pytest.raises(UsageError, match="no such file"):
        read_golden(build, lock)
    (build / GOLDEN_NAME).write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(UsageError, match="damaged"):
        read_golden(build, lock)


def test_a_build_that_was_not_run_has_no_golden_vectors(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"x")
    lock = write_lock(tmp_path, model="m", data={}, plans={}, files=["m"], versions={})
    assert read_lock(tmp_path) == lock and read_golden(tmp_path, lock) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not written by edgeq"),
        (b'{"packages": {}}', "not written by edgeq"),
        (json.dumps({"kind": "edgeq.lock", "schema_version": 9}).encode(), "schema version 9"),
        (json.dumps({"kind": "edgeq.lock", "schema_version": 1, "model": 3}).encode(), "damaged at"),
    ],
)
def test_a_lock_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / LOCK_NAME).write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_lock(tmp_path)


def test_a_missing_lock_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no edgeq\.lock"):
        read_lock(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        read_lock(tmp_path / "missing")


def test_drift_by_hand() -> None:
    assert drift([OUTPUT], [OUTPUT.copy()], [0.5]).bit_equal
    moved = OUTPUT.copy()
    moved[0, 1] = 1.5
    found = drift([OUTPUT], [moved], [0.5])
    assert (found.bit_equal, found.max_abs, found.max_steps, found.top1_changes) == (False, 1.0, 2.0, 1)
    assert drift([OUTPUT], [moved]).max_steps is None
    assert drift([OUTPUT[:, :1]], [moved[:, :1]]).top1_changes is None


def test_drift_of_broken_and_foreign_answers() -> None:
    broken = OUTPUT.copy()
    broken[0, 0] = np.nan
    assert drift([OUTPUT], [broken]).max_abs == np.inf
    assert drift([broken], [broken.copy()]).max_abs == 0.0
    negative_zero = OUTPUT.copy()
    negative_zero[0, 0] = -0.0
    found = drift([OUTPUT], [negative_zero])
    assert not found.bit_equal and found.max_abs == 0.0
    with pytest.raises(UsageError, match="another artefact"):
        drift([OUTPUT], [OUTPUT[:1]])


def test_versions_name_what_is_installed() -> None:
    now = versions_now(["pydantic", "no-such-package"])
    assert {"python", "platform", "numpy", "pydantic"} <= set(now) and "no-such-package" not in now

"""Text as tokens of one length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_text import LONGEST, TEXT, WORDS

from edgeq.errors import UsageError
from edgeq.hugging_face.folder import HfFolder
from edgeq.hugging_face.tokenizer import load_tokenizer
from edgeq.language.folder import open_folder
from edgeq.language.text import LENGTH, packed


@pytest.fixture
def folder(folders: dict[str, Path]) -> HfFolder:
    return open_folder(folders["tied"])


def test_texts_are_cut_and_nothing_is_scored_twice(folder: HfFolder, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    every = load_tokenizer(folder.path)(TEXT)["input_ids"]
    length = min(LENGTH, LONGEST)
    plain = packed(tmp_path / "text.txt", folder, 1000, overlapping=False, option="--calib")
    assert plain.tokens.shape == (len(every) // length, length)
    assert plain.tokens.reshape(-1).tolist() == every[: plain.tokens.size]
    found = packed(tmp_path / "text.txt", folder, 1000, overlapping=True, option="--eval")
    scored = [text[found.first + 1 :].tolist() for text in found.tokens]
    joined = [token for part in scored for token in part]
    assert joined == every[found.first + 1 : found.first + 1 + len(joined)]
    # every scored token but those of the first text has at least half a text before it
    assert found.first + 1 == length // 2


def test_the_most_texts_are_spread(folder: HfFolder, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(100)[:, None] % WORDS + np.zeros((1, 20), int))
    found = packed(tmp_path / "tokens.npy", folder, 5, overlapping=True, option="--eval")
    assert found.tokens[:, 0].tolist() == [0, 25, 50, 74, 99]
    assert found.first == 0


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((2, 20)), "float64"),
        (np.zeros(20, int), r"\[20\]"),
        (np.zeros((0, 20), int), r"\[0, 20\]"),
        (np.full((2, 20), WORDS), "the model has 200 words"),
        (np.full((2, 20), -1), "the model has 200 words"),
        (np.zeros((2, 4), int), "a text of 4 tokens tells nothing"),
        (np.zeros((2, LONGEST + 1), int), "the model takes 256"),
    ],
)
def test_arrays_that_are_no_texts(folder: HfFolder, tmp_path: Path, array: np.ndarray, told: str) -> None:
    np.save(tmp_path / "tokens.npy", array)
    with pytest.raises(UsageError, match=told):
        packed(tmp_path / "tokens.npy", folder, 5, overlapping=False, option="--calib")


@pytest.mark.parametrize("content", [b"", b"  \n ", b"\xff\xfe\x00\x01", b"h", b"hello"])
def test_files_that_are_no_texts(folder: HfFolder, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UsageError, match="--calib"):
        packed(tmp_path / "text.txt", folder, 5, overlapping=False, option="--calib")
    with pytest.raises(UsageError, match="--eval"):
        packed(tmp_path / "text.txt", folder, 5, overlapping=True, option="--eval")
    with pytest.raises(UsageError, match="no such file"):
        packed(tmp_path / "other.txt", folder, 5, overlapping=False, option="--calib")


def test_an_archive_that_is_named_as_an_array(folder: HfFolder, tmp_path: Path) -> None:
    np.savez(tmp_path / "tokens.npz", np.zeros((2, 20), int))
    (tmp_path / "tokens.npz").rename(tmp_path / "tokens.npy")
    with pytest.raises(UsageError, match="an archive"):
        packed(tmp_path / "tokens.npy", folder, 5, overlapping=False, option="--calib")

"""Texts as samples: what a tokenizer makes of a file's lines, with labels, scores and pairs."""

from __future__ import annotations

import json
from pathlib import Path

import hf_folders as folders
import numpy as np
import pytest

from edgeq.cache import Cache
from edgeq.data import kept
from edgeq.data.dataset import Dataset, InputSpec
from edgeq.data.load import load_data
from edgeq.errors import UsageError

LENGTH = 8
SPECS = [InputSpec(name, (None, LENGTH), "int64") for name in ("input_ids", "attention_mask", "token_type_ids")]
NUMBERS = {word: i for i, word in enumerate([*folders.SPECIAL, *folders.WORDS])}
PAD, CLS, SEP = (NUMBERS[name] for name in ("[PAD]", "[CLS]", "[SEP]"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "net"
    folders.save_tokenizer(path)
    names = {str(i): name for i, name in enumerate(["poor", "fair", "good"])}
    (path / "config.json").write_text(json.dumps({"id2label": names}))
    return path


def ids(*texts: str) -> list[int]:
    """By hand: words by their numbers between the marks, filled up."""
    found = [CLS]
    for text in texts:
        found += [*(NUMBERS[word] for word in text.split()), SEP]
    return found + [PAD] * (LENGTH - len(found))


def read(path: Path, content: str, folder: Path, role: str = "evaluation", limit: int | None = None) -> Dataset:
    path.write_text(content)
    return load_data(path, SPECS, role=role, limit=limit, tokenizer=folder)  # type: ignore[arg-type]


def test_lines_are_texts_and_long_ones_are_cut(tmp_path: Path, folder: Path) -> None:
    data = read(tmp_path / "c.txt", "good film\n\nbad a a a a a a a a\n", folder, "calibration")
    assert data.labels is None and data.group == 1
    assert data.inputs["input_ids"].tolist() == [ids("good film"), ids("bad a a a a a")]
    assert data.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1] * 8]
    assert data.inputs["input_ids"].dtype == np.int64
    assert data.notes == (f"c.txt: 1 of 2 texts are longer than {LENGTH} tokens and were cut",)


@pytest.mark.parametrize(
    ("written", "wanted"), [(("0", "2", "1"), [0, 2, 1]), (("poor", "good", "fair"), [0, 2, 1])], ids=["number", "name"]
)
def test_labels_are_numbers_or_names_of_classes(
    tmp_path: Path, folder: Path, written: tuple[str, ...], wanted: list[int]
) -> None:
    rows = "".join(f"{text}\t{label}\n" for text, label in zip(("a film", "a book", "a meal"), written, strict=True))
    data = read(tmp_path / "e.tsv", "text\tlabel\n" + rows, folder)
    assert data.labels is not None and data.labels.dtype == np.int64 and data.labels.tolist() == wanted
    assert data.inputs["input_ids"].tolist() == [ids("a film"), ids("a book"), ids("a meal")]
    lines = [{"text": t, "label": one} for t, one in zip(("a film", "a book", "a meal"), written, strict=True)]
    same = read(tmp_path / "e.jsonl", "".join(json.dumps(line) + "\n" for line in lines), folder)
    assert same.sha256 == data.sha256
    assert read(tmp_path / "c.tsv", "text\tlabel\n" + rows, folder, "calibration").labels is None


def test_two_texts_with_a_label_are_one_input(tmp_path: Path, folder: Path) -> None:
    data = read(tmp_path / "e.tsv", "text_a\ttext_b\tlabel\ngood film\tbad book\tfair\n", folder)
    assert data.inputs["input_ids"].tolist() == [ids("good film", "bad book")]
    assert data.inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 0]]
    assert data.labels is not None and data.labels.tolist() == [1] and data.group == 1


def test_two_texts_with_a_score_are_two_samples_in_a_row(tmp_path: Path, folder: Path) -> None:
    rows = "good film\tbad book\t4.5\ncold meal\twarm meal\t0\nthe song\ta song\t3\n"
    data = read(tmp_path / "e.tsv", "text_a\ttext_b\tscore\n" + rows, folder)
    assert data.inputs["input_ids"][:2].tolist() == [ids("good film"), ids("bad book")]
    assert data.labels is not None and data.labels.tolist() == [4.5, 4.5, 0, 0, 3, 3]
    assert data.group == 2 and len(data) == 6
    few = read(tmp_path / "e.tsv", "text_a\ttext_b\tscore\n" + rows, folder, limit=3)
    assert few.inputs["input_ids"].tolist() == [ids("good film"), ids("bad book")], "both of a pair, or none"


def test_what_sentence_transformers_does_to_texts_is_done(tmp_path: Path, folder: Path) -> None:
    prompts = {"prompts": {"query": "a very "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    data = read(tmp_path / "c.txt", "good film\n", folder)
    assert data.inputs["input_ids"].tolist() == [ids("a very good film")]
    prompts["default_prompt_name"] = "absent"
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with pytest.raises(UsageError, match="'absent'"):
        read(tmp_path / "c.txt", "good film\n", folder)


BROKEN = [
    ("e.tsv", "good film\t1\n", "no rows"),
    ("e.tsv", "good film\t1\nbad film\t0\n", "its columns are 'good film', '1'"),
    ("e.tsv", "text\tlabel\tscore\na\t1\t2\n", "its columns are"),
    ("e.tsv", "text\tlabel\na film\t1\na film\n", "1 columns, and the header 2"),
    ("e.tsv", "text\tlabel\na film\tsuperb\n", "'superb' is no number, or one of poor, fair, good"),
    ("e.tsv", "text_a\ttext_b\tscore\na\tb\tnan\n", "'nan' is no number"),
    ("e.jsonl", '{"text": "a"}\n{\n', "no JSON"),
    ("e.jsonl", '{"text": 3}\n', "no object with texts"),
    ("e.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "lines before have more"),
    ("e.txt", "\n  \n", "no texts"),
]


@pytest.mark.parametrize(("name", "content", "told"), BROKEN, ids=[told for *_, told in BROKEN])
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, folder: Path, name: str, content: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        read(tmp_path / name, content, folder)
    assert error.value.where.startswith(name) and error.value.remedy


def test_texts_need_a_tokenizer_and_a_model_that_takes_its_numbers(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("good film\n")
    with pytest.raises(UsageError, match=r"neither .npz nor .npy") as error:
        load_data(path, SPECS, role="calibration")
    assert "--preprocess" in error.value.remedy
    assert len(load_data(path, SPECS, role="calibration", preprocess=str(folder))) == 1
    images = [InputSpec("x", (None, 3, 8, 8), "float32")]
    with pytest.raises(UsageError, match="these are texts"):
        load_data(path, images, role="calibration", tokenizer=folder)
    other = [InputSpec("pixels", (None, LENGTH), "int64")]
    with pytest.raises(UsageError, match="takes 'pixels', and the tokenizer of net gives input_ids"):
        load_data(path, other, role="calibration", tokenizer=folder)
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(UsageError, match="UTF-8"):
        load_data(tmp_path / "latin.txt", SPECS, role="calibration", tokenizer=folder)


def test_kept_texts_are_those_of_their_file_and_tokenizer(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache, made = tmp_path / "e.tsv", Cache(tmp_path / "cache"), []
    path.write_text("text_a\ttext_b\tscore\ngood film\tbad book\t4.5\n")
    whole = kept.load_data
    monkeypatch.setattr(kept, "load_data", lambda *args, **more: made.append(1) or whole(*args, **more))

    def load() -> Dataset:
        return kept.load_kept_data(path, SPECS, preprocess=None, role="evaluation", cache=cache, tokenizer=folder)

    first, again = load(), load()
    assert len(made) == 1
    assert again.sha256 == first.sha256 and again.group == 2 and again.notes == first.notes
    np.testing.assert_array_equal(again.inputs["input_ids"], first.inputs["input_ids"])
    path.write_text("text_a\ttext_b\tscore\ngood film\tbad book\t4.0\n")
    assert load().sha256 != first.sha256 and len(made) == 2
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"film"', '"movie"'))
    assert load().inputs["input_ids"][0].tolist()[2] == NUMBERS["[UNK]"] and len(made) == 3

"""`edgeq train` of a language model, and `edgeq deploy` of what comes of it, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_text import TEXT
from torch import nn

from edgeq.cli import app
from edgeq.language.folder import open_folder
from edgeq.language.text import packed


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, Any, str]:
    """Exit code, the JSON document, and what stands on standard error."""
    capsys.readouterr()
    code = app.run([*map(str, arguments), "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out) if told.out.strip() else None, told.err


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 2)
    return path


@pytest.mark.parametrize("way", ["bitfit", "qlora"])
def test_what_is_learned_is_deployed(
    way: str, folders: dict[str, Path], text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The float file that a report compares with answers as the tuned folder does in transformers, biases and all."""
    if way == "qlora":
        pytest.importorskip("peft", reason="the extra qlora is not installed")
        pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    tuned, build = tmp_path / "tuned", tmp_path / "build"
    rest = ["--epochs", "4", "--batch", "2", "--rate", "0.02", "--out", tuned]
    code, told, _ = run(capsys, "train", folders["tied"], "--train", text, "--adapt", way, *rest)
    assert code == 0 and told["adapt"] == way and len(told["epochs"]) == 5
    assert told["perplexity"] < 0.7 * told["base_perplexity"]
    rest = ["--weights", "w8g32", "--words", "w8g64", "--method", "nearest", "--format", "onnx", "--allow-slower"]
    rest += ["--target", "x86-avx512", "--device", "local", "--eval", str(text), "--out", str(build)]
    code, report, errors = run(capsys, "deploy", tuned, *rest)
    assert code == 0, errors
    accuracy = report["builds"][0]["accuracy"]
    texts = packed(text, open_folder(tuned), 32, overlapping=True, option="--eval")
    assert accuracy["float_score"] == pytest.approx(by_transformers(tuned, texts.tokens, texts.first), rel=1e-3)
    assert accuracy["score"] == pytest.approx(accuracy["float_score"], rel=0.05)
    assert accuracy["score"] < 0.7 * by_transformers(folders["tied"], texts.tokens, texts.first)


def by_transformers(folder: Path, tokens: np.ndarray[Any, Any], first: int) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, first:-1]
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, first + 1 :].flatten()).exp())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "nothing says what of a language model learns"),
        (["--adapt", "magic"], "there is no 'magic'"),
        (["--adapt", "bitfit", "--rank", "4"], "--rank: bitfit has no low-rank matrices"),
        (["--adapt", "bitfit", "--plan", "plan.json"], "--plan: this is not for language models"),
        (["--adapt", "bitfit", "--labels"], "--labels: this is not for language models"),
        (["--adapt", "bitfit", "--ranges", "pact"], "--ranges: this is not for language models"),
        (["--adapt", "bitfit", "--patience", "2"], "--patience: this is not for language models"),
        (["--adapt", "bitfit", "--arch", "a.b:c"], "--arch: this is not for language models"),
    ],
)
def test_wrong_use_of_a_language_model(
    more: list[str], told: str, folders: dict[str, Path], text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, document, errors = run(capsys, "train", folders["tied"], "--train", text, "--out", tmp_path / "out", *more)
    assert code == 2 and told in errors.replace("\n", " "), errors
    assert document["error"]["kind"] == "usage" and document["error"]["remedy"]
    assert [one.name for one in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--adapt", "bitfit"], "--adapt: this is for language models"),
        (["--rank", "4"], "--rank: this is for language models"),
        ([], "--plan is missing"),
    ],
)
def test_wrong_use_of_another_network(
    more: list[str], told: str, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, errors = run(capsys, "train", "model.pt2", "--train", text, "--out", tmp_path / "out.pt", *more)
    assert code == 2 and told in errors, errors


def test_several_processes(
    folders: dict[str, Path],
    text: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    rest = ["--adapt", "bitfit", "--out", tmp_path / "out"]
    code, _, errors = run(capsys, "train", folders["tied"], "--train", text, *rest)
    assert code == 2 and "tuned by one process" in errors

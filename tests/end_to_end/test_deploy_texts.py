"""From a folder and files of texts to an artefact: a classifier with labels, and an encoder of sentences with pairs."""

from __future__ import annotations

from pathlib import Path

import hf_folders as folders
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import edgeq
from edgeq.api.deploy import deploy
from edgeq.cli.app import run
from edgeq.records.schema import Report


def test_a_classifier_is_judged_by_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = folders.classifier(tmp_path / "net")
    tokenizer = folders.transformers.AutoTokenizer.from_pretrained("net")
    texts = folders.some_texts(64, seed=1)
    with torch.no_grad():
        found = net(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(1).tolist()
    assert len(set(found)) > 1
    names = net.config.id2label
    # every fourth label is wrong, so that the score can be told from agreement
    labels = [names[(one + (i % 4 == 0)) % 3] for i, one in enumerate(found)]
    Path("eval.tsv").write_text("text\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in zip(texts, labels, strict=True)))
    Path("calib.txt").write_text("\n".join(folders.some_texts(48, seed=2)))
    words = ["deploy", "./net", "--target", "x86-avx2", "--device", "local", "--format", "onnx", "--effort", "fast"]
    words += ["--calib", "calib.txt", "--eval", "eval.tsv", "--out", "build", "--allow-slower"]
    assert run(words) == 0
    (build,) = Report.model_validate_json(Path("build/report.json").read_text()).builds
    assert build.accuracy is not None and build.accuracy.score is not None
    assert build.accuracy.metric == "top-1" and build.accuracy.float_score == 75.0
    assert build.accuracy.score > 60


def test_an_encoder_of_sentences_is_judged_by_pairs(tmp_path: Path) -> None:
    net = folders.encoder(tmp_path / "net")
    folders.sentences(tmp_path / "net", "Transformer", "Pooling", "Normalize")
    tokenizer = folders.transformers.AutoTokenizer.from_pretrained(tmp_path / "net")
    a, b = folders.some_texts(40, seed=3), folders.some_texts(40, seed=4)
    rng = np.random.default_rng(0)

    def embedded(text: str) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(net(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0))

    cosines = [
        x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in ((embedded(s), embedded(t)) for s, t in zip(a, b, strict=True))
    ]
    scores = np.round(np.array(cosines) + rng.normal(size=40) * np.std(cosines) / 2, 3)
    rows = "".join(f"{s}\t{t}\t{score}\n" for s, t, score in zip(a, b, scores, strict=True))
    (tmp_path / "pairs.tsv").write_text("text_a\ttext_b\tscore\n" + rows)
    (tmp_path / "calib.txt").write_text("\n".join(folders.some_texts(48, seed=5)))
    report = deploy(
        tmp_path / "net", target="x86-avx2", device="local", format="onnx", effort="fast", metric="spearman",
        calibration=tmp_path / "calib.txt", evaluation=tmp_path / "pairs.tsv", out=tmp_path / "build",
        limits=edgeq.Limits.parse(max_drop="8%", allow_slower=True),
    )  # fmt: skip
    (build,) = report.builds
    assert build.accuracy is not None and build.accuracy.samples == 80
    assert build.accuracy.float_score == pytest.approx(100 * spearmanr(cosines, scores)[0], abs=1e-3)
    assert report.verdict == "passed", report.verdict_text

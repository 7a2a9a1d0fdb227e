"""An artefact in lm-evaluation-harness, against the harness' own model on PyTorch; and what tasks may not do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import asked
import numpy as np
import pytest

from edgeq.devices import Candidate, open_device
from edgeq.errors import UnsupportedError, UsageError
from edgeq.evaluation.interval import paired_drop
from edgeq.language.decoder import Decoder

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
os.environ.update({"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"})  # read when the harness is imported

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from edgeq.language.evaluate import scores
from edgeq.language.harness import LONGEST, PIECE, ArtifactLM, Place, longest
from edgeq.language.tasks import copied

METRICS = frozenset({"acc", "acc_norm"})
LONG = "the bird sang of rain and of the sea " * 40


@pytest.fixture(scope="module")
def torch_lm(folders: dict[str, Path]) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folders["tied"]).eval()
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folders["tied"]), batch_size=1)


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path], decoders: dict[str, Decoder]) -> ArtifactLM:
    candidate = Candidate(decoders["tied"].path, "onnxruntime")
    return ArtifactLM(Place(open_device("local"), candidate, folders["tied"]))


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_questions_get_the_answers_that_pytorch_gives(
    torch_lm: Any, lm: ArtifactLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "data")
    out = tmp_path / "copies"
    assert copied(asked.write_task(tmp_path / "tasks"), out, METRICS, trusted=False) == ["small_choices"]
    found, expected = (
        simple_evaluate(
            model=model,
            tasks=["small_choices"],
            task_manager=TaskManager(include_path=str(out), include_defaults=False),
            bootstrap_iters=0,
        )
        for model in (lm, torch_lm)
    )
    answers = [[one["resps"] for one in each["samples"]["small_choices"]] for each in (found, expected)]
    sums, greedy = (np.array([[[c[0][i] for c in doc] for doc in side] for side in answers], float) for i in (0, 1))
    assert sums.shape == (2, 20, 3)
    np.testing.assert_allclose(sums[0], sums[1], atol=1e-3)
    assert len(np.unique(sums[1].round(3))) > 50
    np.testing.assert_array_equal(greedy[0], greedy[1])
    mine, theirs = found["results"]["small_choices"], expected["results"]["small_choices"]
    for metric in ("acc", "acc_norm"):
        assert mine[f"{metric},none"] == theirs[f"{metric},none"]
        assert 0 < mine[f"{metric},none"] < 1
    told = scores(found, expected)
    assert [(one.metric, one.samples, one.difference) for one in told] == [("acc", 20, 0.0), ("acc_norm", 20, 0.0)]


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("the cat sat on the", " mat"),
        ("the cat sat on the ", "mat and the dog"),  # the space goes to the answer
        ("", "the dog ran"),
        ("", "<s>the dog ran"),
        ("<s>the cat", " sat"),
        (LONG, " house where a bird sang"),
        ("the", LONG[:200]),
    ],
)
def test_likelihoods_are_those_of_pytorch(torch_lm: Any, lm: ArtifactLM, context: str, continuation: str) -> None:
    asked_for = instances("loglikelihood", (context, continuation))
    ((mine, greedy),), ((theirs, expected),) = lm.loglikelihood(asked_for), torch_lm.loglikelihood(asked_for)
    assert mine == pytest.approx(theirs, abs=1e-3)
    assert greedy == expected


def test_what_is_too_long_is_cut_from_the_left(lm: ArtifactLM) -> None:
    assert len(lm.tok_encode(LONG)) > lm.max_length == 256
    near, far = lm.loglikelihood(instances("loglikelihood", (LONG, " house"), ("cat mat dog " * 30 + LONG, " house")))
    assert near == far


def test_whole_texts_are_read_in_windows(torch_lm: Any, lm: ArtifactLM) -> None:
    texts = instances("loglikelihood_rolling", (LONG,), ("the cat",), ("",), (LONG + "the house",))
    mine, theirs = lm.loglikelihood_rolling(texts), torch_lm.loglikelihood_rolling(texts)
    assert mine == pytest.approx(theirs, abs=1e-2)  # sums over 300 tokens
    assert mine[2] == 0 and mine[0] < -100


def test_texts_are_written_until_a_word(torch_lm: Any, lm: ArtifactLM) -> None:
    """Longer than the first piece, and with ends that are and are not reached."""
    free = {"max_gen_toks": 2 * PIECE + 3, "do_sample": False, "until": []}
    starts = [f"the {noun} ran to the {other}" for noun in asked.NOUNS for other in asked.NOUNS]
    texts = torch_lm.generate_until(instances("generate_until", *((start, dict(free)) for start in starts)))
    whole, start = max(zip(texts, starts, strict=True), key=lambda one: len(lm.tok_encode(one[0])))
    assert len(lm.tok_encode(whole)) > PIECE
    inside = whole[len(whole) // 2 :][:3]
    wanted = [
        (start, free),
        (start, {**free, "until": [inside]}),
        ("a bird sang", {**free, "max_gen_toks": 4, "until": ["zzzz"]}),
        (LONG, {**free, "max_gen_toks": 5, "temperature": 0.0}),
    ]
    copies = [instances("generate_until", *((text, dict(how)) for text, how in wanted)) for _ in range(2)]
    mine, theirs = lm.generate_until(copies[0]), torch_lm.generate_until(copies[1])
    assert mine == theirs
    assert mine[0] == whole and inside not in mine[1] and whole.startswith(mine[1])


@pytest.mark.parametrize(
    ("how", "kind", "cause"),
    [
        ({"do_sample": True, "temperature": 0.7}, UnsupportedError, "random"),
        ({"num_beams": 4}, UnsupportedError, "num_beams"),
        ({"max_gen_toks": 256}, UsageError, "256 new tokens"),
    ],
)
def test_what_is_not_done_is_refused(lm: ArtifactLM, how: dict[str, Any], kind: type[Exception], cause: str) -> None:
    with pytest.raises(kind, match=cause):
        lm.generate_until(instances("generate_until", ("the cat", how)))


def test_an_answer_without_a_token_is_refused(lm: ArtifactLM) -> None:
    with pytest.raises(UsageError, match="0 tokens"):
        lm.loglikelihood(instances("loglikelihood", ("the cat", "")))


@pytest.mark.parametrize(
    ("config", "told", "length"),
    [
        ('{"n_positions": 7, "n_ctx": 9}', 5, 7),
        ('{"n_ctx": 9}', 5, 9),
        ("{}", 5, 5),
        ("{}", 10**30, LONGEST),
    ],
)
def test_how_much_a_model_reads(tmp_path: Path, config: str, told: int, length: int) -> None:
    (tmp_path / "config.json").write_text(config)
    assert longest(tmp_path, told) == length


# ---------------------------------------------------------------- tasks as data

CODE = {
    "a function": "task: t\nprocess_docs: !function code.run\n",
    "an object": "task: t\nprocess_docs: !!python/object/apply:os.system [touch ran]\n",
    "a name": "task: t\nprocess_docs: !!python/name:os.system\n",
    "a class": "task: t\nclass: code.Task\n",
    "prompts": "task: t\nuse_prompt: 'other.yaml:*'\n",
    "pickles": "task: t\ndataset_path: pandas\n",
    "a script": "task: t\ndataset_path: ./script\n",
    "remote code": "task: t\ndataset_path: json\ndataset_kwargs: {trust_remote_code: true}\n",
    "a metric": "task: t\nmetric_list: [{metric: ./script.py}]\n",
    "a metric of evaluate": "task: t\nmetric_list: [{metric: acc, hf_evaluate: true}]\n",
    "in a group": "group: g\ntask: [{task: t, metric_list: [{metric: rouge}]}]\n",
}


@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
def test_tasks_that_would_run_code_are_refused(tmp_path: Path, text: str) -> None:
    folder = asked.write_task(tmp_path / "tasks", "bad.yaml", text)
    with pytest.raises(UsageError, match=r"code|data|script") as caught:
        copied(folder, tmp_path / "copies", METRICS, trusted=False)
    assert "--trust-tasks" in caught.value.remedy


def test_so_is_code_that_is_included(tmp_path: Path) -> None:
    folder = asked.write_task(tmp_path / "tasks", include="common")
    (folder / "common").write_text("process_docs: !function code.run\n")
    with pytest.raises(UsageError, match="no plain data") as caught:
        copied(folder, tmp_path / "copies", METRICS, trusted=False)
    assert caught.value.where.endswith("common")


@pytest.mark.parametrize("include", ["../outside.yaml", "/etc/hostname", "nowhere.yaml"])
def test_nothing_is_included_from_elsewhere(tmp_path: Path, include: str) -> None:
    (tmp_path / "outside.yaml").write_text("task: t\n")
    folder = asked.write_task(tmp_path / "tasks", include=include)
    with pytest.raises(UsageError, match="not in the folder"):
        copied(folder, tmp_path / "copies", METRICS, trusted=False)


def test_data_lie_beside_their_task(tmp_path: Path) -> None:
    import yaml

    folder = asked.write_task(tmp_path / "tasks", include="common")
    (folder / "common").write_text("num_fewshot: 2\n")
    copied(folder, tmp_path / "copies", METRICS, trusted=False)
    copy = yaml.safe_load((tmp_path / "copies" / "choices.yaml").read_text())
    assert copy["dataset_kwargs"]["data_files"]["test"] == str((folder / "questions.jsonl").resolve())
    assert copy["include"] == [str(tmp_path / "copies" / "common")]
    (folder / "questions.jsonl").unlink()
    with pytest.raises(UsageError, match=r"no data at 'questions\.jsonl'"):
        copied(folder, tmp_path / "again", METRICS, trusted=False)


def test_trusted_tasks_keep_their_functions(tmp_path: Path) -> None:
    folder = asked.write_task(tmp_path / "tasks", "t.yaml", "task: t\nprocess_docs: !function code.run\n")
    (folder / "code.py").write_text("run = len\n")
    assert copied(folder, tmp_path / "copies", METRICS, trusted=True) == ["t"]
    assert "!function 'code.run'" in (tmp_path / "copies" / "t.yaml").read_text()
    assert (tmp_path / "copies" / "code.py").read_text() == "run = len\n"


@pytest.mark.parametrize(("text", "cause"), [("a: [", "no YAML"), ("- a", "no table"), ("a: 1", "no task")])
def test_damaged_tasks(tmp_path: Path, text: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        copied(asked.write_task(tmp_path / "tasks", text=text), tmp_path / "copies", METRICS, trusted=False)


# ---------------------------------------------------------------- figures


def results(right: list[int], **more: Any) -> dict[str, Any]:
    """As the harness gives them, of one task."""
    samples = [{"doc_id": number, "filter": "none", "acc": value} for number, value in enumerate(right)]
    return {
        "results": {"t": {"alias": "t", "acc,none": float(np.mean(right)), "acc_stderr,none": 0.1, **more}},
        "higher_is_better": {"t": {"acc": True}},
        "n-samples": {"t": {"original": 9, "effective": len(right)}},
        "samples": {"t": samples},
    }


def test_right_and_wrong_answers_are_paired() -> None:
    before, after = [1] * 12 + [0] * 8, [0] * 3 + [1] * 10 + [0] * 7
    (row,) = scores(results(after), results(before))
    assert (row.score, row.float_score, row.samples, row.stderr) == (0.5, 0.6, 20, 0.1)
    assert row.difference == pytest.approx(-0.1)
    assert row.drop == paired_drop(np.array(before, bool), np.array(after, bool))
    assert row.drop is not None and row.drop.value == pytest.approx(10)


def test_a_metric_that_is_better_when_low_is_paired_the_other_way() -> None:
    one, other = results([1, 1, 0, 0]), results([0, 1, 0, 0])
    for side in (one, other):
        side["higher_is_better"]["t"]["acc"] = False
    (row,) = scores(one, other)
    assert row.drop is not None and row.drop.value == pytest.approx(25)


def test_other_figures_are_not_paired() -> None:
    no_mean = results([1, 0], **{"acc,none": 0.3, "acc_stderr,none": "N/A"})
    (row,) = scores(no_mean, no_mean)
    assert row.drop is None and row.difference == 0 and row.stderr is None
    shares = results([0.5, 0.25])  # type: ignore[list-item]
    assert scores(shares, shares)[0].drop is None
    (alone,) = scores(results([1, 0]), None)
    assert (alone.float_score, alone.difference, alone.drop) == (None, None, None)

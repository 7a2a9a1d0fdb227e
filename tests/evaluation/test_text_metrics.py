"""Metrics of texts, held against SciPy, PyTorch and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from edgeq.data.dataset import InputSpec, make_dataset
from edgeq.devices import Device
from edgeq.errors import UsageError
from edgeq.evaluation.accuracy import compare, quick_drop
from edgeq.evaluation.emulated import EMULATED_SAMPLES, for_device
from edgeq.evaluation.metric import load_metric


def pairs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [2 count, 6], the scores of the pairs [count]."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 2, 6))
    vectors[:, 1] += rng.uniform(0, 3, (count, 1)) * vectors[:, 0]
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in vectors]
    return vectors.reshape(-1, 6), np.round(5 * np.array(cosines) + rng.normal(size=count), 1)


def by_hand(vectors: np.ndarray, scores: np.ndarray) -> float:
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in vectors.reshape(len(scores), 2, -1)]
    return 100 * float(spearmanr(cosines, scores)[0])


def test_spearman_is_that_of_cosines() -> None:
    vectors, scores = pairs(40)
    metric = load_metric("spearman")
    assert metric.score(list(vectors), np.repeat(scores, 2)) == pytest.approx(by_hand(vectors, scores))
    assert metric.score(list(7 * vectors), np.repeat(scores, 2)) == pytest.approx(by_hand(vectors, scores))


def test_the_interval_comes_from_pairs_that_are_drawn() -> None:
    vectors, scores = pairs(60)
    worse = vectors + np.random.default_rng(9).normal(size=vectors.shape)
    found = compare([vectors], [worse], np.repeat(scores, 2), load_metric("spearman"), seed=3)
    assert found.drop is not None and found.float_score is not None
    assert found.float_score == pytest.approx(by_hand(vectors, scores))
    assert found.drop.value == pytest.approx(by_hand(vectors, scores) - by_hand(worse, scores))
    assert quick_drop([vectors], [worse], np.repeat(scores, 2), load_metric("spearman")) == pytest.approx(
        found.drop.value
    )
    rng, drops = np.random.default_rng(3), []
    for _ in range(1000):
        drawn = rng.integers(0, 60, 60)
        one, other = (v.reshape(60, 2, 6)[drawn].reshape(120, 6) for v in (vectors, worse))
        drops.append(by_hand(one, scores[drawn]) - by_hand(other, scores[drawn]))
    assert (found.drop.low, found.drop.high) == pytest.approx(tuple(np.percentile(drops, [2.5, 97.5])))


def test_what_is_no_pair_is_refused_before_any_work() -> None:
    metric = load_metric("spearman")
    assert metric.check is not None
    for labels in (None, np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0]), np.zeros((2, 2))):
        with pytest.raises(UsageError, match="pairs of texts"):
            metric.check(labels)
    with pytest.raises(UsageError, match="one vector"):
        metric.score(list(np.zeros((2, 3, 4))), np.array([1.0, 1.0]))


def test_an_emulated_device_is_given_whole_pairs() -> None:
    _, scores = pairs(130)
    x = np.arange(260, dtype=np.float32)[:, None]
    data = make_dataset(
        {"x": x}, [InputSpec("x", (None, 1), "float32")], labels=np.repeat(scores, 2), source="s", group=2
    )

    class Emulated(Device):
        name, emulated, quick = "emulated", True, False

        def __init__(self) -> None: ...

    few, told = for_device(data, Emulated())  # type: ignore[abstract]
    assert len(few) == EMULATED_SAMPLES and few.group == 2 and str(EMULATED_SAMPLES) in told
    taken = few.inputs["x"][:, 0].astype(int)
    assert (taken[::2] % 2 == 0).all() and (taken[1::2] == taken[::2] + 1).all()
    assert load_metric("spearman").check(few.labels) is None  # type: ignore[misc]


def test_perplexity_is_that_of_cross_entropy() -> None:
    made = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(4, 7, 11, generator=made)
    labels = torch.randint(0, 11, (4, 7), generator=made)
    labels[0, :3], labels[2] = -100, -1  # not counted; a sample of which nothing is
    wanted = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 11), torch.where(labels < 0, -100, labels).reshape(-1), ignore_index=-100
    ).exp()
    metric = load_metric("perplexity")
    assert not metric.higher_is_better
    assert metric.score(list(logits.numpy()), labels.numpy()) == pytest.approx(float(wanted), rel=1e-5)
    worse = compare([logits.numpy()], [logits.numpy() * 0.5], labels.numpy(), metric)
    assert worse.score is not None and worse.float_score is not None and worse.drop is not None
    assert worse.drop.value == pytest.approx(worse.score - worse.float_score)


def test_perplexity_refuses_what_does_not_fit() -> None:
    metric, logits = load_metric("perplexity"), list(np.zeros((2, 3, 5)))
    for labels in (None, np.zeros(2, int), np.zeros((2, 3)), np.full((2, 3), 5), np.zeros((2, 4), int)):
        with pytest.raises(UsageError):
            metric.score(logits, labels)

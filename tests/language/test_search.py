"""Plans of decoders: losses of pieces, the knapsack, and the file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rounding import real, whole

from edgeq.errors import UsageError
from edgeq.language.decoder import Decoder, Weight
from edgeq.language.plan import FLOAT, DecoderPlan, chosen, left_float, read_decoder_plan, uniform
from edgeq.language.rounding import round_weights
from edgeq.language.sensitivity import Unit, sensitivities
from edgeq.language.solve import solve
from edgeq.progress import Silent
from edgeq.records.wording import bytes_text
from edgeq.registry.load import load_target

RUNTIME = next(one for one in load_target("x86-avx512").runtimes if one.format == "onnx")


def test_losses_are_divergences_of_the_whole(decoder: Decoder, tokens: Any) -> None:
    """Of each piece, rounded alone in the whole file: the divergence by hand. Tied ends are rounded at both."""
    scheme = RUNTIME.decoder_choices("linear")["w4g32"].scheme
    offered = {weight: {"w4g32": scheme} for weight in decoder.weights}
    reference = log_softmax(whole(decoder, tokens))
    for unit in sensitivities(decoder, offered, tokens, Silent()):
        rounded = round_weights(decoder, {one.name: scheme for one in unit.weights}, "nearest")
        moved = log_softmax(whole(decoder, tokens, real(decoder, rounded)))
        divergence = (np.exp(reference) * (reference - moved)).sum(axis=-1).mean()
        assert unit.losses["w4g32"] == pytest.approx(divergence, rel=2e-2)


def test_every_matrix_is_in_one_unit_and_fewer_bits_lose_more(decoder: Decoder, tokens: Any) -> None:
    names = ["w8g32", "w4g32", "w2g32"]
    schemes = {name: RUNTIME.decoder_choices("linear")[name].scheme for name in names}
    units = sensitivities(decoder, dict.fromkeys(decoder.weights, schemes), tokens, Silent())
    assert sorted(w.name for unit in units for w in unit.weights) == sorted(w.name for w in decoder.weights)
    for unit in units:
        assert 0 <= unit.losses["w8g32"] < unit.losses["w4g32"] < unit.losses["w2g32"]


def log_softmax(logits: Any) -> Any:
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("seed", range(8))
def test_choices_are_the_best_of_all(seed: int) -> None:
    """Against every combination of six units with three choices."""
    rng = np.random.default_rng(seed)
    names = "abc"
    losses, sizes = rng.uniform(0.1, 1, (6, 3)), rng.integers(10, 100, (6, 3))
    units = [Unit((), dict(zip(names, row.tolist(), strict=True))) for row in losses]
    bytes_of = [dict(zip(names, row.tolist(), strict=True)) for row in sizes]
    every = [
        (sum(sizes[i, c] for i, c in enumerate(one)), sum(losses[i, c] for i, c in enumerate(one)))
        for one in itertools.product(range(3), repeat=6)
    ]
    most = int(np.median([size for size, _ in every]))
    found = solve(units, bytes_of, most_size=most, most_loss=None)
    cost = [names.index(one) for one in found]
    assert sum(sizes[i, c] for i, c in enumerate(cost)) <= most
    best = min(loss for size, loss in every if size <= most)
    assert sum(losses[i, c] for i, c in enumerate(cost)) <= best * 1.002
    limit = float(np.median([loss for _, loss in every]))
    found = solve(units, bytes_of, most_size=None, most_loss=limit)
    cost = [names.index(one) for one in found]
    assert sum(losses[i, c] for i, c in enumerate(cost)) <= limit * (1 + 1e-6)
    smallest = min(size for size, loss in every if loss <= limit)
    assert sum(sizes[i, c] for i, c in enumerate(cost)) <= smallest * 1.002


def test_no_choices_are_small_enough() -> None:
    with pytest.raises(UsageError, match="no choices are within"):
        solve([Unit((), {"a": 1.0})], [{"a": 10}], most_size=5, most_loss=None)


def test_a_plan_is_read_back_and_edited(decoder: Decoder, tmp_path: Path) -> None:
    plan = uniform(decoder.weights, RUNTIME, "x86-avx512", "gptq")
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    assert read_decoder_plan(tmp_path / "plan.json") == plan
    taken = chosen(plan, decoder.weights, RUNTIME)
    first = next(weight for weight in decoder.weights if not weight.embedding)
    assert (taken[first.name].scheme.width, taken[first.name].scheme.group) == (4, 32)
    last = decoder.weights[-1] if not decoder.weights[0].linear else decoder.weights[0]
    assert taken[last.name].scheme.width == 8  # what scores words

    def edited(choice: str) -> DecoderPlan:
        matrices = plan.matrices | {first.name: plan.matrices[first.name].model_copy(update={"choice": choice})}
        return plan.model_copy(update={"matrices": matrices})

    assert first.name not in chosen(edited("float32"), decoder.weights, RUNTIME)
    with pytest.raises(UsageError, match="no 'w5g32'"):
        chosen(edited("w5g32"), decoder.weights, RUNTIME)
    with pytest.raises(UsageError, match="not those of the model"):
        chosen(plan.model_copy(update={"matrices": {}}), decoder.weights, RUNTIME)


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "edgeq.decoder-plan"}', '{"kind": "other"}'])
def test_files_that_are_no_plans(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UsageError, match=r"plan\.json"):
        read_decoder_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(("products", "words"), [("w3g32", None), ("best", None), (None, "w8g48"), (None, "w8g128")])
def test_choices_that_the_runtime_has_not(decoder: Decoder, products: str | None, words: str | None) -> None:
    """Rows of words have whole groups: 64 numbers have none of 128."""
    with pytest.raises(UsageError, match=r"--weights|--words"):
        uniform(decoder.weights, RUNTIME, "x86-avx512", "nearest", products, words)


def test_a_table_that_the_usual_choice_does_not_fit_is_told() -> None:
    """Rows of 96 numbers are no whole groups of 64, and those of 40 none of 32 either."""
    product = Weight("product", 8, 40, True, False, True)
    for columns, others in ((96, "--words may be"), (40, "the runtime has nothing smaller for it")):
        weights = (Weight("words", 200, columns, False, True, False), product)
        plan = uniform(weights, RUNTIME, "x86-avx512", "nearest")
        assert {name: one.choice == FLOAT for name, one in plan.matrices.items()} == {"words": True, "product": False}
        (told,) = left_float(plan, weights, RUNTIME, None, None)
        assert f"words stays float32 ({bytes_text(800 * columns)})" in told and f"rows of {columns} numbers" in told
        assert others in told
        assert left_float(plan, weights, RUNTIME, None, FLOAT) == []  # it was asked for

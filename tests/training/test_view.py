"""A quantized model that learns: what it computes, what it finds, and the file that it is written to."""

from __future__ import annotations

from pathlib import Path

import few_bits
import numpy as np
import pytest
import torch

from edgeq.calibration.calibrate import calibrate
from edgeq.errors import UsageError
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.execute import execute
from edgeq.numerics.weights import rows
from edgeq.quantization.simulate import simulate
from edgeq.registry.load import load_target
from edgeq.training.projected import PROJECTED
from edgeq.training.ranges import RANGES
from edgeq.training.view import View
from edgeq.training.write import rounding_program, write_trained

INNER = ["w8a8", "w4a4", "w2a4", "w4g4"]


def batch() -> torch.Tensor:
    return torch.from_numpy(np.load(few_bits.folder() / "eval.npz")["image"][:16])


@pytest.mark.parametrize("ranges", [name for name, rule in RANGES.items() if not rule.follows])
@pytest.mark.parametrize("inner", INNER)
def test_before_it_learns_it_is_the_simulation(inner: str, ranges: str) -> None:
    model, start = few_bits.model(), few_bits.quantized(inner)
    with torch.no_grad():
        found = View(model, start, ranges).eval()(batch())[0]
    expected = simulate(model, start, [batch()])[0]
    # weights that rounding to nearest did not find are those of another scale: compared where all are
    same = all(np.array_equal(rounded(start, name), w.integers) for name, w in start.weights.items())
    assert not same or torch.allclose(found, expected, atol=1e-5)
    assert same or inner == "w2a4"


def rounded(start, layer: str) -> np.ndarray:  # type: ignore[no-untyped-def]
    from edgeq.numerics import quantize

    weight = next(few_bits.model().state[g.weight] for g in few_bits.model().groups if g.name == layer)
    q = start.weights[layer].q
    return quantize(rows(weight, q.scheme), q).reshape(weight.shape)


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("inner", INNER)
def test_what_was_found_computes_what_was_trained(inner: str, ranges: str) -> None:
    view = View(few_bits.model(), few_bits.quantized(inner), ranges)
    learn(view)
    with torch.no_grad():
        trained = view.eval()(batch())[0]
    model, quantized = view.found()
    assert torch.allclose(simulate(model, quantized, [batch()])[0], trained, atol=1e-5)
    for name, weight in quantized.weights.items():
        assert weight.integers.min() >= weight.q.scheme.quant_min and weight.integers.max() <= weight.q.scheme.quant_max
        assert not np.array_equal(weight.real, few_bits.quantized(inner).weights[name].real)


@pytest.mark.parametrize("inner", INNER)
def test_the_file_holds_these_integers_and_every_grid(inner: str, tmp_path: Path) -> None:
    view = View(few_bits.model(), few_bits.quantized(inner), "lsq")
    learn(view)
    model, quantized = view.found()
    write_trained(tmp_path / "trained.pt", model, quantized)
    back = load(tmp_path / "trained.pt")
    assert [g.name for g in back.groups] == [g.name for g in model.groups] and back.grids is not None
    for group in back.groups:
        if group.name in quantized.weights:
            weight = quantized.weights[group.name]
            assert np.array_equal(back.grids.weights[group.weight or ""].integers, weight.integers)
            assert np.array_equal(back.state[group.weight or ""], weight.real)
            assert np.array_equal(back.state[group.bias or ""], quantized.biases[group.name])
    tensors = [*quantized.rounded.values(), *quantized.rounded_by_readers(model).values()]
    expected = {(float(t.q.scale), int(t.q.zero_point)) for t in tensors}
    found = {(float(g.scale), int(g.zero_point)) for grids in back.grids.reads.values() for g in grids}
    assert found <= expected and found
    # PyTorch itself runs it to the same numbers
    program = back.reference()
    with torch.no_grad():
        assert torch.allclose(execute(program, [[batch()]])[0][0], view.eval()(batch())[0], atol=1e-4)


@pytest.mark.parametrize("method", PROJECTED)
def test_weights_of_two_and_three_values_are_what_their_method_makes_of_what_was_learned(method: str) -> None:
    start = few_bits.quantized("w2a4", method)
    view = View(few_bits.model(), start, "lsq")
    with torch.no_grad():
        found = view.eval()(batch())[0]
    assert torch.allclose(found, simulate(few_bits.model(), start, [batch()])[0], atol=1e-5)
    before = [value.detach().clone() for value in view.values]
    learn(view)
    with torch.no_grad():
        trained = view.eval()(batch())[0]
    model, quantized = view.found()
    assert torch.allclose(simulate(model, quantized, [batch()])[0], trained, atol=1e-5)
    assert all(not torch.equal(now, was) for now, was in zip(view.values, before, strict=True))
    levels = {"twn": {-1, 0, 1}}.get(method, {-1, 1})
    made = [quantized.weights[layer] for layer in view.projected]
    assert made and all(set(np.unique(weight.integers)) == levels for weight in made)


def test_it_is_written_as_operators_that_round() -> None:
    model, quantized = few_bits.model(), few_bits.quantized("w4a4")
    program = rounding_program(model, quantized)
    found = execute(program, [[batch()]])[0][0]
    assert torch.allclose(found, simulate(model, quantized, [batch()])[0], atol=1e-5)


def test_a_file_whose_outputs_are_integers(tmp_path: Path) -> None:
    model = few_bits.model()
    runtime = next(one for one in load_target("arm-neon").runtimes if one.name == "litert")
    start = quantize_model(model, runtime, calibrate(model, dict(np.load(few_bits.folder() / "calib.npz"))))
    assert model.output_nodes[0] in start.rounded
    write_trained(tmp_path / "trained.pt", model, start)
    back = load(tmp_path / "trained.pt")
    assert back.output_names == model.output_names
    with torch.no_grad():
        found = execute(back.reference(), [[batch()]])[0][0]
    assert torch.allclose(found, simulate(model, start, [batch()])[0], atol=1e-4)


def test_ranges_that_follow_end_where_the_values_are() -> None:
    view = View(few_bits.model(), few_bits.quantized("w8a8"), "moving")
    before = {v: float(view.scales[i].now()) for v, i in view.versions.items()}
    for _ in range(400):
        view(3 * batch())
    after = {v: float(view.scales[i].now()) for v, i in view.versions.items()}
    assert any(after[v] > 1.5 * before[v] for v in before)


def test_an_unknown_rule_names_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="lsq, pact"):
        View(few_bits.model(), few_bits.quantized("w8a8"), "magic")


def learn(view: View) -> None:
    optimizer = torch.optim.Adam(view.rates(0.05, 0.05))
    for _ in range(5):
        optimizer.zero_grad()
        view.train()(batch())[0].square().mean().backward()
        optimizer.step()

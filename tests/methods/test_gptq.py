"""GPTQ against its algorithm written out: one column at a time, the inverse Hessian updated for each."""

from __future__ import annotations

from typing import Any

import layer_models as layers
import numpy as np
import pytest
import torch

from edgeq.errors import UsageError
from edgeq.frontends.load import load
from edgeq.methods import METHODS, hessian
from edgeq.methods.gptq import compensated
from edgeq.methods.hessian import hessians
from edgeq.methods.method import Change
from edgeq.numerics import Scheme

INT4 = Scheme("int4", "symmetric", "channel", narrow=True)
INT8 = Scheme("int8", "symmetric", "channel", narrow=True)
Array = np.ndarray


def case(blocks: int, outputs: int, inputs: int, group: int | None = None) -> tuple[Array, Array, Array, Array]:
    """Weights, Hessian, scales and zero points."""
    random = np.random.default_rng(1)
    weight = random.normal(size=(blocks, outputs, inputs)).astype(np.float32)
    x = random.normal(size=(blocks, 4 * inputs, inputs)) @ random.normal(size=(blocks, inputs, inputs))
    spread = random.uniform(0.2, 0.4, size=(blocks, outputs, inputs // (group or inputs)))
    scale = spread.repeat(group or inputs, axis=2).astype(np.float32)
    return weight, x.swapaxes(1, 2) @ x, scale, random.integers(-2, 3, scale.shape).astype(np.int32)


def one_by_one(weight: Array, hessian: Array, scale: Array, zero: Array, low: int, high: int) -> Array:
    """Optimal brain quantization in a fixed order: equations 2 and 3 of the paper; of one block."""
    inverse = np.linalg.inv(hessian + 0.01 * hessian.diagonal().mean() * np.eye(len(hessian)))
    w, found = weight.astype(np.float64), np.zeros(weight.shape)
    for j in np.argsort(-np.rint(4096 * hessian.diagonal() / hessian.diagonal().max()), kind="stable"):
        found[:, j] = np.clip(np.rint(w[:, j] / scale[:, j]) + zero[:, j], low, high)
        error = w[:, j] - (found[:, j] - zero[:, j]) * scale[:, j]
        w -= np.outer(error / inverse[j, j], inverse[j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return found


@pytest.mark.parametrize(
    ("blocks", "outputs", "inputs", "group"), [(1, 8, 300, None), (1, 8, 160, 32), (7, 3, 9, None)]
)
def test_blocks_give_what_single_columns_give(blocks: int, outputs: int, inputs: int, group: int | None) -> None:
    weight, hessian, scale, zero = case(blocks, outputs, inputs, group)
    found = compensated(weight, torch.from_numpy(hessian), scale, zero, (-8, 7))
    for one in range(blocks):
        assert np.array_equal(found[one], one_by_one(weight[one], hessian[one], scale[one], zero[one], -8, 7))
        alone = compensated(
            *(a[[one]] for a in (weight,)), torch.from_numpy(hessian[[one]]), scale[[one]], zero[[one]], (-8, 7)
        )
        assert np.array_equal(found[[one]], alone)


def test_inputs_that_have_nothing_to_do_with_one_another_are_rounded_to_nearest() -> None:
    weight, _, scale, zero = case(2, 6, 140)
    diagonal = np.random.default_rng(2).uniform(0, 3, (2, 140))
    diagonal[0, 3], diagonal[1] = 0, 0
    found = compensated(weight, torch.from_numpy(diagonal[:, None] * np.eye(140)), scale, zero, (-8, 7))
    assert np.array_equal(found, np.clip(np.rint(weight / scale) + zero, -8, 7))


def errors(change: Change, name: str) -> float:
    """The variance of what rounding adds to the layer's outputs: PyTorch's operator on the samples."""
    model, seen = layers.layer(name)
    (group,) = model.groups
    (found,) = change.weights.values()
    node, x = model.nodes[group.root], torch.from_numpy(seen.inputs[model.inputs[0].name])
    error = torch.from_numpy(found.real - model.state[group.weight or ""])
    moved = model.run(
        [[x]], replace={node.args[1].name: error, node.args[2].name: torch.zeros(len(model.state[group.bias or ""]))}
    )[0][0]
    rows = moved.movedim(-1 if group.op == "linear" else 1, -1).flatten(0, -2)
    return float(rows.var(dim=0).sum())


@pytest.mark.parametrize(
    "scheme", [INT4, INT8, Scheme("int4", "symmetric", "tensor")], ids=lambda s: f"{s.dtype}-{s.granularity}"
)
@pytest.mark.parametrize("name", [name for name in layers.LAYERS if name != "transposed-grouped"])
def test_outputs_are_nearer_than_those_of_nearest(name: str, scheme: Scheme) -> None:
    model, seen = layers.layer(name)
    wanted = layers.wanted_of(model, scheme)
    by = {method: errors(METHODS[method](model, wanted, seen), name) for method in ("nearest", "gptq", "awq-clip")}
    assert by["gptq"] < 0.999 * by["nearest"]
    assert by["awq-clip"] <= by["nearest"] * 1.0001


def test_a_convolution_is_a_linear_layer_on_its_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeq.methods.hessian.SAMPLES", 1 << 20)
    model, seen = layers.layer("conv2d")
    conv = layers.LAYERS["conv2d"][0]()
    assert isinstance(conv, torch.nn.Conv2d)
    x = torch.from_numpy(seen.inputs[model.inputs[0].name])
    patches = torch.nn.functional.unfold(x, conv.kernel_size, conv.dilation, (1, 2), conv.stride).mT.flatten(0, 1)
    (one,) = layers.wanted_of(model, INT4)
    linear = torch.nn.Linear(patches.shape[1], len(one.weight)).eval()
    linear.weight.data = torch.from_numpy(one.weight).flatten(1)
    flat = load(linear, example=(patches[:2],))
    (q,) = METHODS["gptq"](model, [one], seen).weights.values()
    (of_flat,) = METHODS["gptq"](
        flat, layers.wanted_of(flat, INT4), layers.seen_of(flat, patches.numpy())
    ).weights.values()
    np.testing.assert_allclose(q.q.scale, of_flat.q.scale)
    assert (q.integers.reshape(of_flat.integers.shape) == of_flat.integers).mean() > 0.99  # of sums in another order


def test_layers_do_not_depend_on_one_another_nor_on_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    import small_models as small

    model, inputs = small.model("depthwise"), small.arrays("depthwise", 32)
    wanted = layers.wanted_of(small.model("depthwise"), INT4)
    seen = layers.seen_by(small.calibration("depthwise"), inputs)
    whole = METHODS["gptq"](model, wanted, seen).weights
    for one in wanted:
        assert np.array_equal(
            METHODS["gptq"](model, [one], seen).weights[one.layer].integers, whole[one.layer].integers
        )
    monkeypatch.setattr("edgeq.methods.hessian.BYTES", 1)
    apart = METHODS["gptq"](model, wanted, seen).weights
    assert all(np.array_equal(apart[name].integers, whole[name].integers) for name in whole)


def test_a_wide_layer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = layers.layer("grouped")
    wanted = layers.wanted_of(model, INT4)
    (whole,) = hessians(model, wanted, seen)
    monkeypatch.setattr("edgeq.methods.hessian.WIDEST", 12)
    (cut,) = hessians(model, wanted, seen)
    assert whole.hessian.shape == (2, 36, 36) and cut.hessian.shape == (6, 12, 12)
    for block in range(6):
        part = slice(block % 3 * 12, block % 3 * 12 + 12)
        torch.testing.assert_close(cut.hessian[block], whole.hessian[block // 3, part, part], rtol=1e-4, atol=1e-3)


def test_samples_are_asked_for() -> None:
    model, seen = layers.layer("linear")
    with pytest.raises(UsageError, match="calibration samples"):
        METHODS["gptq"](model, layers.wanted_of(model, INT4), seen._replace(inputs={}))


def test_kernels_of_one_layer_share_what_was_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = layers.layer("conv2d")
    runs: list[int] = []
    summed = hessian._sums

    def counted(*given: Any) -> Any:
        runs.append(1)
        return summed(*given)

    monkeypatch.setattr(hessian, "_sums", counted)
    hessian._known.cache_clear()
    first, _, again = (METHODS["gptq"](model, layers.wanted_of(model, one), seen).weights for one in (INT4, INT8, INT4))
    assert len(runs) == 1
    for name, weight in first.items():
        assert np.array_equal(weight.integers, again[name].integers)
    fewer = seen._replace(inputs={name: array[::2] for name, array in seen.inputs.items()})
    METHODS["gptq"](model, layers.wanted_of(model, INT8), fewer)
    assert len(runs) == 2


@pytest.mark.parametrize("name", ["gptq", "awq-clip", "reconstruct"])
def test_samples_that_are_too_large_are_refused_with_the_layer(name: str) -> None:
    model, _ = layers.layer("linear")
    samples = layers.correlated((12,))
    samples[5] = 1e20
    seen = layers.seen_of(model, samples)
    with pytest.raises(UsageError, match="too large") as told:
        METHODS[name](model, layers.wanted_of(model, INT4), seen)
    assert told.value.where == f"layer {layers.wanted_of(model, INT4)[0].layer}"

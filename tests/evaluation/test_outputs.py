"""What every output is taken for and how it is judged: from arrays, from graphs, from artefacts in their runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeq.cli.app import run
from edgeq.data.load import load_data
from edgeq.errors import DeviceError, UnsupportedError, UsageError
from edgeq.evaluation.accuracy import compare, quick_drop
from edgeq.evaluation.reference import reference_outputs
from edgeq.frontends.load import load
from edgeq.limits import Limits, judge
from edgeq.model.heads import Head
from edgeq.model.model import Model
from edgeq.progress import Silent
from edgeq.records.schema import Accuracy, Gate, Output
from edgeq.records.summary import worst_output

RNG = np.random.default_rng(0)


def noisy(values: np.ndarray, db: float) -> np.ndarray:
    """The values with white noise of so many dB below them."""
    noise = np.random.default_rng(1).standard_normal(values.shape)
    noise *= np.sqrt(np.square(values, dtype=np.float64).sum() / np.square(noise).sum()) * 10 ** (-db / 20)
    return (values + noise).astype(values.dtype)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def row(reference: np.ndarray, measured: np.ndarray, axis: int | None = None) -> Output:
    return compare([reference], [measured], heads=[Head("out", axis)]).outputs[0]


def recognizable(accuracy: Accuracy, limits: Limits | None = None) -> Gate:
    judged = judge(limits or Limits(), accuracy=accuracy, speed=None, size_bytes=1, emulated=False)
    return next(gate for gate in judged if gate.name == "recognizable")


# ---------------------------------------------------------------- arrays


def test_tokens_are_answered_one_by_one() -> None:
    logits = 4 * normal(6, 9, 30)
    wrong = logits.copy()
    wrong[:2, :2] = np.roll(logits[:2, :2], 1, axis=-1)  # 4 of 54 positions
    found = row(logits, wrong, -1)
    assert found.kind == "scores or numbers" and not found.unrecognizable
    assert found.agreement is not None and found.agreement.value == pytest.approx(100 * 50 / 54)


def test_a_language_model_that_answers_otherwise_is_not_passed_for_what_all_its_logits_share() -> None:
    logits = normal(6, 9, 30) - 100
    other = np.roll(logits, 7, axis=-1)
    found = row(logits, other, -1)
    assert found.sqnr_db is not None and found.sqnr_db > 30
    assert "answers" in found.unrecognizable and found.judged_by == "agreement"


def test_numbers_that_are_nearly_equal_may_change_their_order() -> None:
    boxes = 100 + 1e-3 * normal(20, 50, 4)
    found = row(boxes, noisy(boxes, 77), None)
    assert (found.kind, found.agreement, found.unrecognizable) == ("numbers", None, "")
    assert found.sqnr_db == pytest.approx(77, abs=0.1)
    tied = normal(40, 300)
    close = row(tied, noisy(tied, 12), -1)
    assert not close.unrecognizable


def test_segmentation_is_answered_along_its_classes() -> None:
    logits = 3 * normal(4, 5, 8, 8)
    wrong = logits.copy()
    wrong[..., :2] = np.roll(logits[..., :2], 1, axis=1)
    found = row(logits, wrong, -3)
    assert found.agreement is not None and found.agreement.value == pytest.approx(75)
    labels = logits.argmax(1)
    maps = row(labels, wrong.argmax(1))
    assert (maps.kind, maps.sqnr_db) == ("classes", None)
    assert maps.agreement is not None and maps.agreement.value == pytest.approx(75)


def test_probabilities_are_told_by_their_sum() -> None:
    logits = torch.from_numpy(3 * normal(30, 7))
    shares, logs = logits.softmax(1).numpy(), logits.log_softmax(1).numpy()
    for values in (shares, logs):
        assert row(values, values).kind == "scores"
        flat = np.full_like(values, values.mean())
        assert row(values, flat).unrecognizable
    # answers are what counts of scores, however far they are apart
    assert not row(shares, shares**4).unrecognizable
    assert row(logits.sigmoid().numpy(), shares).kind == "numbers"


def test_truth_values_and_integers_count_by_entries() -> None:
    mask = RNG.random((8, 4, 4)) < 0.5
    assert not row(mask, mask).unrecognizable
    most = row(mask, ~mask)
    assert most.agreement is not None and most.agreement.value == 0 and most.unrecognizable
    same = row(mask, mask.astype(np.uint8))
    assert same.agreement is not None and same.agreement.value == 100


def test_labels_say_what_the_first_output_is_and_no_other() -> None:
    logits, features = 3 * normal(50, 6), normal(50, 6)
    labels = logits.argmax(1)
    found = compare([logits, features], [logits**3, features], labels, heads=[Head("a", None), Head("b", None)])
    assert [o.kind for o in found.outputs] == ["scores", "numbers"]
    assert found.outputs[0].sqnr_db is not None and found.outputs[0].sqnr_db < 6, "but the answers are the same"
    assert recognizable(found).passed


def test_every_output_is_judged_and_the_worst_is_shown() -> None:
    good, bad = normal(10, 8), normal(10, 3, 2)
    heads = [Head("boxes", None), Head("angles", None)]
    found = compare([good, bad], [noisy(good, 40), noisy(bad, 3)], heads=heads)
    worst = worst_output(found)
    assert worst is not None and worst.name == "angles" and found.sqnr_db == worst.sqnr_db
    gate = recognizable(found)
    assert not gate.passed and "angles" in gate.reason and "--allow-unrecognizable" in gate.reason
    allowed = recognizable(found, Limits.parse(allow_unrecognizable=True))
    assert allowed.passed and "allowed" in allowed.reason
    fine = recognizable(compare([good, bad], [noisy(good, 40), noisy(bad, 7)], heads=heads))
    assert fine.passed and fine.reason == "" and fine.measured.endswith("dB")


def test_outputs_that_say_nothing_are_no_failure() -> None:
    zero = np.zeros((5, 4), np.float32)
    assert not row(zero, zero).unrecognizable
    assert not row(zero, zero + 1e-7).unrecognizable
    assert not row(1e-9 * normal(5, 4), zero).unrecognizable
    assert row(zero, zero + 1).unrecognizable
    assert not row(zero + 3, zero + 3.1).unrecognizable, "constant"
    assert row(zero + 3, zero).unrecognizable


@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min, -1e9, -65504.0])
def test_masked_values_do_not_hide_the_others(mask: float) -> None:
    values = normal(20, 50)
    hidden = RNG.random(values.shape) < 0.3
    expected, got = np.where(hidden, mask, values), np.where(hidden, mask, noisy(values, 20))
    found = row(expected.astype(np.float32), got.astype(np.float32))
    assert found.sqnr_db == pytest.approx(20, abs=0.5)
    lost = np.where(hidden, mask, 0).astype(np.float32)
    assert row(expected.astype(np.float32), lost).unrecognizable
    unmasked = row(expected.astype(np.float32), np.where(hidden, 0, values).astype(np.float32))
    assert unmasked.unrecognizable


def test_what_overflows_is_no_mask() -> None:
    values = normal(5, 4)
    for bad in (np.nan, np.inf, -np.inf):
        broken = values.copy()
        broken[2, 1] = bad
        with pytest.raises(DeviceError, match="sample 2"):
            compare([values], [broken])
    for bad in (np.nan, np.inf):
        broken[2, 1] = bad
        with pytest.raises(UsageError, match=r"float model itself.*sample 2"):
            compare([broken], [broken])
    broken[2] = -np.inf
    with pytest.raises(UsageError, match=r"float model itself.*sample 2"):
        compare([broken], [broken])


def test_a_limit_on_the_drop_is_judged_by_answers_alone() -> None:
    values = normal(9, 4)
    assert quick_drop([values], [values], None, None, [Head("logits", -1)]) == 0
    assert quick_drop([values], [values], None, None, [Head("boxes", None)]) is None


# ---------------------------------------------------------------- graphs


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.e(ids)))


class Heads(nn.Module):
    """A mask, its labels, boxes in rows, a unit vector, logits at the last place, and a share of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.seg, self.box, self.f = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 5, 1),
            nn.Conv2d(8, 8, 1),
            nn.Linear(8, 6),
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.c(x))
        seg = nn.functional.interpolate(self.seg(y), scale_factor=2.0)
        z = self.f(y.mean((2, 3)))
        return {
            "seg": seg,
            "labels": seg.argmax(1),
            "boxes": self.box(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4),
            "rows": self.seg(y).permute(0, 2, 3, 1).flatten(1, 2),
            "unit": nn.functional.normalize(z, dim=-1),
            "logits": z,
            "share": z.softmax(-1),
            "sure": z > 0.1,
            "many": z.sigmoid(),
        }


def test_graphs_tell_where_a_layers_channels_are() -> None:
    torch.manual_seed(0)
    tokens = load(torch.export.export(Tokens().eval(), (torch.randint(0, 20, (1, 7)),)))
    assert [h.axis for h in tokens.heads] == [-1]
    several = load(torch.export.export(Heads().eval(), (torch.randn(1, 3, 8, 8),)))
    axes = {h.name: h.axis for h in several.heads}
    assert axes == {
        "seg": -3, "labels": None, "boxes": None, "rows": -1, "unit": None, "logits": -1, "share": -1, "sure": None,
        "many": None,
    }  # fmt: skip


def test_an_embedding_that_is_scaled_to_a_unit_has_no_answers() -> None:
    values = normal(30, 16)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    assert row(values, noisy(values, 8)).kind == "numbers"


# ---------------------------------------------------------------- graphs that fix their batch


class Rows(nn.Module):
    """Heads that reshape with a -1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 12, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.b(torch.relu(self.a(x)))
        return y.permute(0, 2, 3, 1).reshape(1, -1, 4), y.reshape(-1, 3).mean(0, keepdim=True)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.g, self.o = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), nn.GRU(16, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.g(self.l(x)[0].transpose(0, 1))[0][-1])


def answered(model: Model, x: np.ndarray, folder: Path) -> list[np.ndarray]:
    np.savez(folder / "x.npz", **{model.inputs[0].name: x})
    return reference_outputs(model, load_data(folder / "x.npz", model.inputs, role="evaluation"), Silent())


@pytest.mark.parametrize("samples", [4, 7, 12])
@pytest.mark.parametrize(("net", "shape"), [(Rows(), (3, 8, 8)), (Recurrent(), (5, 6))], ids=["rows", "recurrent"])
def test_a_fixed_batch_is_run_with_what_it_was_made_for(
    net: nn.Module, shape: tuple[int, ...], samples: int, tmp_path: Path
) -> None:
    x = normal(samples, *shape)
    model = load(torch.export.export(net.eval(), (torch.from_numpy(x[:1]),)))
    found = answered(model, x, tmp_path)
    with torch.no_grad():
        alone = [net(torch.from_numpy(x[i : i + 1])) for i in range(samples)]
    wanted = [torch.cat(c) for c in zip(*alone, strict=True)] if isinstance(alone[0], tuple) else [torch.cat(alone)]
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)


def test_states_of_another_batch_are_refused_before_a_kernel_writes_past_them() -> None:
    model = load(torch.export.export(Recurrent().eval(), (torch.randn(1, 5, 6),)))
    assert not model.batchable
    with pytest.raises(ValueError, match="states of 1 samples for an input of 3"):
        model.run([[torch.randn(3, 5, 6)]])


def test_samples_that_are_mixed_on_real_data_alone_are_run_one_by_one(tmp_path: Path) -> None:
    class Mixes(nn.Module):
        """Samples meet where values are large, which noise never is."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.relu(x - 50).sum(0, keepdim=True)

    model = load(Mixes().eval(), example=(torch.randn(2, 4),))
    x = 60 + normal(9, 4)
    (found,) = answered(model, x, tmp_path)
    np.testing.assert_allclose(found, x + np.maximum(x - 50, 0), rtol=1e-5)


def test_an_output_whose_size_follows_the_sample_is_refused(tmp_path: Path) -> None:
    class Sizes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0]

    model = load(torch.export.export(Sizes().eval(), (torch.randn(1, 40),)))
    with pytest.raises(UnsupportedError, match="differs between samples"):
        answered(model, normal(5, 40), tmp_path)


# ---------------------------------------------------------------- artefacts


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"first": torch.sigmoid(self.a(x)), "second": torch.tanh(self.b(x))}


def written(net: Two, path: Path, *, scale: float = 1.0) -> None:
    """The network as ONNX, its outputs in the other order."""
    layers = {"first": (net.a, "Sigmoid"), "second": (net.b, "Tanh")}
    nodes, constants = [], []
    for name, (layer, kind) in layers.items():
        constants += [
            numpy_helper.from_array((scale * layer.weight.detach().numpy().T).copy(), f"w_{name}"),
            numpy_helper.from_array(layer.bias.detach().numpy(), f"b_{name}"),
        ]
        nodes += [
            helper.make_node("Gemm", ["x", f"w_{name}", f"b_{name}"], [f"y_{name}"]),
            helper.make_node(kind, [f"y_{name}"], [name]),
        ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("second", "first")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])], ends, constants
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_garbage_is_not_passed_and_outputs_are_found_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def validated(*options: str) -> tuple[int, dict[str, Any]]:
        given = [
            "validate",
            tmp_path / "model.onnx",
            "--model",
            tmp_path / "model.pt2",
            "--eval",
            tmp_path / "eval.npz",
        ]
        code = run([*map(str, given), "--target", "x86-avx512", "--allow-slower", "--json", *options])
        return code, json.loads(capsys.readouterr().out)

    torch.manual_seed(0)
    net = Two().eval()
    torch.export.save(torch.export.export(net, (torch.randn(1, 6),)), tmp_path / "model.pt2")
    np.savez(tmp_path / "eval.npz", x=normal(20, 6))
    written(net, tmp_path / "model.onnx")
    code, report = validated()
    assert (code, report["verdict"]) == (0, "passed")
    assert [o["name"] for o in report["builds"][0]["accuracy"]["outputs"]] == ["first", "second"]
    assert report["builds"][0]["accuracy"]["sqnr_db"] > 100
    written(net, tmp_path / "model.onnx", scale=-1.0)
    code, report = validated()
    assert (code, report["verdict"]) == (3, "failed")
    assert "recognizable" in report["verdict_text"] and "second" in report["verdict_text"]
    code, report = validated("--allow-unrecognizable")
    assert (code, report["verdict"]) == (0, "passed")

"""Accuracy, intervals, latency and gates, against independent computations."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest

from edgeq.errors import DeviceError, UnsupportedError, UsageError
from edgeq.evaluation.accuracy import check_labels, compare
from edgeq.evaluation.interval import paired_bootstrap, paired_drop, tango, wilson
from edgeq.evaluation.latency import speed, summarise
from edgeq.evaluation.measure import Ends, real_outputs
from edgeq.evaluation.metric import Metric, load_metric
from edgeq.limits import Drop, Limits, judge, parse_bytes, parse_drop, parse_seconds, parse_speedup
from edgeq.records.schema import Accuracy, Interval, Latency, Speed
from edgeq.records.summary import best_baseline

# ---- intervals


def score_statistic_by_optimisation(lost: int, won: int, n: int, difference: float) -> float:
    """Tango's statistic with its restricted estimate found by maximising the likelihood numerically."""
    low, high = max(0.0, -difference), (1 - difference) / 2

    def loss(q: float) -> float:
        p = [q + difference, q, 1 - 2 * q - difference]  # lost, won, same
        counts = [lost, won, n - lost - won]
        return -sum(c * math.log(max(v, 1e-300)) for c, v in zip(counts, p, strict=True) if c)

    q = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x)
    return (lost - won - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))


@pytest.mark.parametrize(("lost", "won", "n"), [(12, 2, 50), (3, 9, 40), (5, 5, 300), (30, 11, 100)])
def test_tango_interval_matches_a_numerical_likelihood(lost: int, won: int, n: int) -> None:
    low, high = tango(lost, won, n)
    z = 1.959964
    seen = (lost - won) / n
    expected_low = brentq(lambda d: score_statistic_by_optimisation(lost, won, n, d) - z, -0.9, seen - 1e-9)
    expected_high = brentq(lambda d: score_statistic_by_optimisation(lost, won, n, d) + z, seen + 1e-9, 0.9)
    assert low == pytest.approx(expected_low, abs=1e-4)
    assert high == pytest.approx(expected_high, abs=1e-4)


def test_tango_interval_without_disagreement_is_not_a_point() -> None:
    low, high = tango(0, 0, 100)
    # With no discordant pair the statistic is n d / sqrt(n d (1 - d)), which is solved by d = z^2 / (n + z^2).
    assert high == pytest.approx(1.959964**2 / (100 + 1.959964**2), rel=1e-6)
    assert low == pytest.approx(-high, rel=1e-6)


@given(st.integers(1, 400), st.data())
@settings(max_examples=150, deadline=None)
def test_tango_interval_holds_its_estimate_and_mirrors(n: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, n))
    won = data.draw(st.integers(0, n - lost))
    low, high = tango(lost, won, n)
    assert -1 <= low <= (lost - won) / n <= high <= 1
    mirrored = tango(won, lost, n)
    assert mirrored == pytest.approx((-high, -low), abs=1e-8)


def test_tango_interval_covers_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(5)
    counts = rng.multinomial(120, [0.06, 0.03, 0.91], size=1500)
    intervals = {tuple(c): tango(int(c[0]), int(c[1]), 120) for c in counts}
    covered = np.mean([intervals[tuple(c)][0] <= 0.03 <= intervals[tuple(c)][1] for c in counts])
    # Four standard errors of 1500 draws are 2.3 points.
    assert 0.927 < covered < 0.98


@given(st.integers(1, 2000), st.data())
@settings(max_examples=100, deadline=None)
def test_wilson_interval_matches_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_paired_drop_counts_by_hand() -> None:
    before = np.array([1, 1, 1, 1, 0, 0, 0, 1, 1, 1], dtype=bool)
    after = np.array([1, 0, 0, 0, 1, 0, 0, 1, 1, 1], dtype=bool)
    drop = paired_drop(before, after)
    assert drop.value == pytest.approx(20.0)
    assert "3 samples lost, 1 won" in drop.method
    assert "p = 0.625" in drop.method  # two-sided sign test of 1 in 4: 2 * (1 + 4) / 16


def test_bootstrap_of_a_mean_matches_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    interval = paired_bootstrap(lambda i: float(values[i].mean()), 400, seed=1)
    half = 1.96 * values.std() / 20
    assert interval.known and "1000 resamples" in interval.method
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert interval == paired_bootstrap(lambda i: float(values[i].mean()), 400, seed=1)


def test_bootstrap_of_a_slow_score_uses_few_resamples_and_says_so() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    interval = paired_bootstrap(lambda i: float(values[i].mean()), 400, seconds=0.0)
    assert "standard error from 10 resamples" in interval.method
    assert interval.high - interval.value == pytest.approx(2.06 * values.std() / 20, rel=0.5)


def test_bootstrap_of_a_score_that_fails_on_resamples_claims_no_interval() -> None:
    def only_whole(indices: np.ndarray) -> float:
        if len(set(indices.tolist())) < 50:
            raise ValueError("a class is missing")
        return 1.0

    interval = paired_bootstrap(only_whole, 50)
    assert not interval.known and interval.value == 1.0 and "1000 left out" in interval.method


# ---- accuracy


def scores(answers: list[int], classes: int = 4) -> np.ndarray:
    out = np.zeros((len(answers), classes), dtype=np.float32)
    out[np.arange(len(answers)), answers] = 1.0
    return out


def test_top1_drop_agreement_and_sqnr_by_hand() -> None:
    reference, measured = scores([0, 1, 2, 3]), scores([0, 1, 2, 0])
    result = compare([reference], [measured], np.array([0, 1, 2, 3]))
    assert (result.metric, result.unit) == ("top-1", "%")
    assert (result.float_score, result.score) == (100.0, 75.0)
    assert result.drop is not None and result.drop.value == 25.0
    assert result.agreement is not None and result.agreement.value == 75.0
    assert result.sqnr_db == pytest.approx(10 * math.log10(4 / 2))
    assert result.tied_percent == 0.0 and result.saturated_percent is None


def test_outputs_with_trailing_unit_axes_are_classifiers() -> None:
    flat = compare([scores([0, 1])], [scores([0, 2])], np.array([0, 1]))
    deep = compare([scores([0, 1])[:, :, None, None]], [scores([0, 2])[:, :, None, None]], np.array([0, 1]))
    assert flat.model_copy(update={"outputs": []}) == deep.model_copy(update={"outputs": []})
    thin = compare([scores([0, 1])[:, :, None]], [scores([0, 2])[:, :, None]], np.array([0, 1]))
    assert thin.model_copy(update={"outputs": []}) == flat.model_copy(update={"outputs": []})


def test_without_labels_there_is_agreement_and_no_score() -> None:
    result = compare([scores([0, 1, 2, 3])], [scores([0, 1, 2, 0])])
    assert result.score is None and result.drop is None
    assert result.agreement is not None
    assert (result.agreement.low, result.agreement.high) == pytest.approx(tuple(100 * v for v in wilson(3, 4)))


def test_dense_outputs_agree_by_position_with_an_interval_over_samples() -> None:
    reference = np.zeros((10, 3, 4, 5), dtype=np.float32)
    reference[:, 1] = 1.0
    measured = reference.copy()
    measured[0, 2, 0, 0] = 2.0  # one of 20 positions of one of 10 samples
    result = compare([reference], [measured])
    assert result.agreement is not None
    assert result.agreement.value == pytest.approx(99.5)
    assert result.agreement.low == pytest.approx(100 * wilson(9.95, 10)[0])
    assert "20 positions" in result.agreement.method


def test_sequence_outputs_take_the_last_axis() -> None:
    reference = np.zeros((2, 3, 7), dtype=np.float32)
    reference[..., 6] = 1
    measured = reference.copy()
    measured[0, 0, 5] = 2
    result = compare([reference], [measured])
    assert result.agreement is not None and result.agreement.value == pytest.approx(100 * 5 / 6)


def test_integer_outputs_are_their_own_answers() -> None:
    result = compare([np.array([3, 1, 2])], [np.array([3, 1, 0])], np.array([3, 1, 2]))
    assert result.score == pytest.approx(200 / 3)
    assert result.agreement is not None and result.agreement.value == pytest.approx(200 / 3)
    assert result.tied_percent is None


def test_a_single_real_output_has_no_answer() -> None:
    result = compare([np.ones((3, 1))], [np.full((3, 1), 1.1)])
    assert result.agreement is None and result.tied_percent is None
    assert result.sqnr_db == pytest.approx(20.0)


def test_ties_and_saturation() -> None:
    measured = np.array([[5, 5, 0], [5, 1, 0], [1, 2, 3], [-5, 1, 2]], dtype=np.float32)
    result = compare([measured * 1.5], [measured], limits=[(-5.0, 5.0)])
    assert result.tied_percent == 25.0
    assert result.saturated_percent == 75.0


def test_zero_after_relu_is_no_saturation_but_clipping_at_zero_is() -> None:
    measured = np.array([[0, 1], [2, 0]], dtype=np.float32)
    assert compare([measured], [measured], limits=[(0.0, 10.0)]).saturated_percent == 0.0
    signed = np.array([[-3, 1], [2, 0]], dtype=np.float32)
    assert compare([signed], [measured], limits=[(0.0, 10.0)]).saturated_percent == 100.0


def test_saturation_counts_a_sample_once_over_outputs_and_skips_float_ones() -> None:
    a, b = np.array([[9.0, 1.0], [1.0, 2.0]]), np.array([[7.0], [7.0]])
    result = compare([a, b], [a, b], limits=[(-9.0, 9.0), None])
    assert result.saturated_percent == 50.0


def test_sqnr_is_of_the_worst_output_and_finite() -> None:
    good, bad = np.ones((2, 3)), np.ones((2, 3))
    assert compare([good, bad], [good, bad * 1.1]).sqnr_db == pytest.approx(20.0)
    assert compare([good], [good]).sqnr_db == 200.0
    assert compare([good * 0], [good]).sqnr_db == -200.0


def test_outputs_larger_than_a_block_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(37, 11)).astype(np.float32)
    measured = np.round(reference * 4) / 4
    whole = compare([reference], [measured], limits=[(-2.0, 2.0)])
    monkeypatch.setattr("edgeq.evaluation.outputs._BLOCK", 50)
    parts = compare([reference], [measured], limits=[(-2.0, 2.0)])
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert parts.model_copy(update={"sqnr_db": whole.sqnr_db}) == whole


def test_bad_outputs_are_named() -> None:
    reference = scores([0, 1, 2])
    broken = reference.copy()
    broken[2, 0] = np.nan
    with pytest.raises(DeviceError, match=r"output 1.*sample 2"):
        compare([reference, reference], [reference, broken])
    with pytest.raises(UsageError, match="float model itself"):
        compare([broken], [reference])
    with pytest.raises(DeviceError, match=r"\(3, 3\)"):
        compare([reference], [reference[:, :3]])
    with pytest.raises(DeviceError, match="2 outputs"):
        compare([reference], [reference, reference])
    with pytest.raises(UsageError, match="no samples"):
        compare([reference[:0]], [reference[:0]])
    with pytest.raises(UsageError, match="output 1"):
        compare([reference, np.ones((1, 4))], [reference, np.ones((1, 4))])


def test_outputs_have_the_shapes_of_the_float_model() -> None:
    ends = Ends({}, [None], [None], names=["scores"])
    for wanted, raw in (((4, 3), (4, 3)), ((4, 2, 3), (8, 3)), ((4,), (4,))):
        (found,) = real_outputs([np.zeros(raw)], [np.zeros(wanted)], ends)
        assert found.shape == wanted
    for raw in ((4, 3, 1), (4, 1, 3), (3, 4), (4, 4)):
        with pytest.raises(UnsupportedError, match=r"\[4, 3\]") as caught:
            real_outputs([np.zeros(raw)], [np.zeros((4, 3))], ends)
        assert caught.value.where == "output scores" and str(list(raw)) in caught.value.cause


@pytest.mark.parametrize(
    ("labels", "shape", "says"),
    [
        (np.array([0, 4]), (2, 4), "between 0 and 3"),
        (np.array([-1, 0]), (2, 4), "between -1 and 0"),
        (np.array([0.5, 1]), (2, 4), "whole"),
        (np.array(["a", "b"]), (2, 4), "whole"),
        (np.array([0]), (2, 4), "for 2 samples"),
        (np.eye(4), (4, 4), "one class index"),
        (np.array([0, 1]), (2, 1), "--metric"),
        (np.array([0, 1]), (2, 4, 8, 8), "--metric"),
    ],
)
def test_labels_that_do_not_fit(labels: np.ndarray, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_labels(labels, shape)


# ---- the user's metric


def test_metric_of_lower_is_better_gives_a_positive_drop() -> None:
    def error(outputs: list[np.ndarray], labels: np.ndarray) -> float:
        return float(np.mean([abs(o[0] - y) for o, y in zip(outputs, labels, strict=True)]))

    metric = Metric("mae", error, higher_is_better=False, unit="mm")
    truth = np.linspace(0, 1, 30)
    result = compare([truth[:, None]], [truth[:, None] + 0.1], truth, metric)
    assert result.float_score == 0.0 and result.score == pytest.approx(0.1)
    assert result.drop is not None and result.drop.value == pytest.approx(0.1)
    assert result.drop.low == pytest.approx(0.1) and result.drop.high == pytest.approx(0.1)
    assert (result.metric, result.unit, result.higher_is_better) == ("mae", "mm", False)


def test_metric_of_several_outputs_gets_tuples() -> None:
    seen = []

    def probe(outputs: list[tuple[np.ndarray, ...]], labels: None) -> float:
        seen.append((len(outputs), type(outputs[0]), outputs[0][1].shape))
        return 1.0

    compare([np.ones((4, 2)), np.ones((4, 3, 3))], [np.ones((4, 2)), np.ones((4, 3, 3))], None, Metric("p", probe))
    assert set(seen) == {(4, tuple, (3, 3))}


def test_metric_is_loaded_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_metrics.py").write_text(
        "def loss(outputs, labels):\n    return 1\nloss.higher_is_better = False\nloss.unit = 'nats'\nvalue = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    metric = load_metric("my_own_metrics:loss")
    assert (metric.name, metric.unit, metric.higher_is_better) == ("loss", "nats", False)
    with pytest.raises(UsageError, match="no function 'value'"):
        load_metric("my_own_metrics:value")
    with pytest.raises(UsageError, match=r"package\.module:function"):
        load_metric("my_own_metrics.loss")
    with pytest.raises(UsageError, match="cannot be imported"):
        load_metric("no_such_module_here:loss")


@pytest.mark.parametrize("bad", [float("nan"), None, "high"])
def test_metric_must_return_a_finite_number(bad: object) -> None:
    with pytest.raises(UsageError, match="metric"):
        compare([scores([0])], [scores([0])], np.array([0]), Metric("m", lambda o, y: bad))


# ---- latency


def test_latency_percentiles() -> None:
    latency = summarise(np.arange(1, 102) / 1000)
    assert (latency.p50, latency.p90, latency.p99, latency.runs) == pytest.approx((0.051, 0.091, 0.1, 101))
    assert len(latency.quantiles) == 21 and latency.quantiles[0] == 0.001
    for bad in ([], [0.1, 0.0], [math.nan]):
        with pytest.raises(DeviceError):
            summarise(bad)


def test_speed_is_the_ratio_of_medians_to_the_fastest_baseline() -> None:
    rng = np.random.default_rng(0)
    runs = {name: base * rng.lognormal(0, 0.05, 200) for name, base in (("artifact", 2.0), ("f32", 4.0), ("bf16", 3.0))}
    result = speed(runs, threads=2, sizes={"f32": 10})
    assert result.best == "bf16"
    best = best_baseline(result)
    assert best is not None and best.ratio == np.median(runs["artifact"]) / np.median(runs["bf16"])
    assert best.ratio_interval is not None and best.ratio_interval.low < best.ratio < best.ratio_interval.high
    assert [b.size_bytes for b in result.baselines] == [10, 0]


def test_speed_without_baseline_and_with_unpaired_rounds() -> None:
    alone = speed({"artifact": [1.0, 2.0]}, threads=1)
    assert alone.best == "" and best_baseline(alone) is None
    with pytest.raises(DeviceError, match="take turns"):
        speed({"artifact": [1.0, 2.0], "f32": [1.0]}, threads=1)
    with pytest.raises(DeviceError, match="no runs"):
        speed({"f32": [1.0]}, threads=1)


# ---- gates


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (parse_drop, "1%", Drop(1.0, True)),
        (parse_drop, " 0.25 ", Drop(0.25, False)),
        (parse_seconds, "2ms", 0.002),
        (parse_seconds, "1.5 s", 1.5),
        (parse_seconds, "800us", 0.0008),
        (parse_bytes, "4MB", 4_000_000),
        (parse_bytes, "2.01MB", 2_010_000),
        (parse_bytes, "512KiB", 524_288),
        (parse_bytes, "1.5 kB", 1500),
        (parse_bytes, "4096", 4096),
        (parse_speedup, "1.5x", 1.5),
        (parse_speedup, "2", 2.0),
    ],
)
def test_limits_are_read(read: Callable[[str], object], text: str, value: object) -> None:
    result = read(text)
    assert result == (value if isinstance(value, Drop) else pytest.approx(value))


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (parse_drop, "-1%"),
        (parse_drop, "one"),
        (parse_drop, "1e999"),
        (parse_seconds, "2"),
        (parse_seconds, "0ms"),
        (parse_seconds, "2 min"),
        (parse_bytes, "4 M"),
        (parse_bytes, "0"),
        (parse_speedup, "1.5%"),
        (parse_speedup, ""),
    ],
)
def test_limits_that_cannot_be_read_show_an_example(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)--.*write it like"):
        read(text)


def accuracy(drop: float | None = 0.5, low: float = -0.5, high: float = 1.5, unit: str = "%") -> Accuracy:
    interval = None if drop is None else Interval(value=drop, low=low, high=high, method="m")
    return Accuracy(
        metric="top-1", unit=unit, higher_is_better=True, samples=500, float_score=80.0, score=79.5, drop=interval,
        agreement=Interval(value=97.0, low=95.0, high=98.5, method="w"), sqnr_db=20.0, tied_percent=0.0,
        saturated_percent=0.0,
    )  # fmt: skip


def measured_speed(ratio: float) -> Speed:
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.01, 100)
    return speed({"artifact": 0.002 * ratio * noise, "float32": 0.002 * noise}, threads=1)


def gates(limits: Limits, **changes: object) -> dict[str, tuple[bool, str, str]]:
    given_values = {"accuracy": accuracy(), "speed": measured_speed(0.5), "size_bytes": 1000, "emulated": False}
    judged = judge(limits, **(given_values | changes))
    return {g.name: (g.passed, g.measured, g.reason) for g in judged}


def test_drop_is_judged_on_the_estimate_and_uncertainty_is_told() -> None:
    limits = Limits.parse(max_drop="1%")
    passed, shown, reason = gates(limits)["accuracy drop"]
    assert passed and shown == "0.50 points"
    assert reason == "not certain with 500 samples: the interval reaches 1.50 points"
    assert gates(limits, accuracy=accuracy(0.2, 0.0, 0.9))["accuracy drop"] == (True, "0.20 points", "")
    assert gates(limits, accuracy=accuracy(1.2, 0.1, 2.2))["accuracy drop"][0] is False
    assert "begins at 0.10" in gates(limits, accuracy=accuracy(1.2, 0.1, 2.2))["accuracy drop"][2]
    assert gates(limits, accuracy=accuracy(1.0, 0.9, 1.0))["accuracy drop"][0] is True


def test_percent_is_relative_for_other_units() -> None:
    other = accuracy(0.9, 0.1, 1.5, unit="dB")
    assert gates(Limits.parse(max_drop="1%"), accuracy=other)["accuracy drop"][0] is False
    assert gates(Limits.parse(max_drop="2%"), accuracy=other)["accuracy drop"][0] is True
    assert gates(Limits.parse(max_drop="1"), accuracy=other)["accuracy drop"][0] is True
    nothing = other.model_copy(update={"float_score": 0.0})
    assert "cannot be judged" in gates(Limits.parse(max_drop="1%"), accuracy=nothing)["accuracy drop"][2]


def test_without_labels_disagreement_is_judged() -> None:
    passed, shown, reason = gates(Limits.parse(max_drop="4%"), accuracy=accuracy(None))["disagreement with float"]
    assert passed and shown == "3.00 %"
    assert "no labels" in reason and "reaches 5.00 %" in reason
    assert not gates(Limits.parse(max_drop="2%"), accuracy=accuracy(None))["disagreement with float"][0]
    neither = accuracy(None).model_copy(update={"agreement": None})
    assert "cannot be judged" in gates(Limits.parse(max_drop="2%"), accuracy=neither)["accuracy drop"][2]


def test_nothing_measured_is_not_passed() -> None:
    limits = Limits.parse(max_drop="1%", max_latency="2ms", min_speedup="1x", max_size="2kB")
    judged = gates(limits, accuracy=None, speed=None, not_validated_because="no such device here")
    assert {name for name, g in judged.items() if g[0]} == {"size"}
    for name in ("accuracy drop", "latency", "speedup"):
        assert "cannot be judged: no such device here; remedy:" in judged[name][2]


def test_emulated_latency_is_never_judged() -> None:
    judged = gates(Limits.parse(max_latency="1 s", min_speedup="1x"), emulated=True)
    assert set(judged) == {"latency", "speedup"}
    assert not any(g[0] for g in judged.values())
    assert all("emulated" in g[2] for g in judged.values())
    assert gates(Limits(), emulated=True) == {}


def test_slower_than_float_fails_unless_allowed() -> None:
    assert gates(Limits())["faster than float"][:2] == (True, "2.00x")
    assert gates(Limits(), speed=measured_speed(1.1))["faster than float"][0] is False
    passed, _, reason = gates(Limits(allow_slower=True), speed=measured_speed(1.1))["faster than float"]
    assert passed and "slower than float" in reason and "allowed" in reason


def test_the_float_model_itself_need_not_be_faster_than_float() -> None:
    for ratio in (0.97, 1.1):
        passed, _, reason = gates(Limits(), speed=measured_speed(ratio), quantized=False)["faster than float"]
        assert passed and "no layer is quantized" in reason and "slower" not in reason
    assert not gates(Limits.parse(min_speedup="1x"), speed=measured_speed(1.1), quantized=False)["speedup"][0]


def test_latency_speedup_and_size_limits() -> None:
    limits = Limits.parse(max_latency="900us", min_speedup="1.5x", max_size="999")
    judged = gates(limits)
    assert [judged[n][0] for n in ("latency", "speedup", "size")] == [False, True, False]
    assert judged["size"][1:] == ("1 kB", "1 B over")


def test_a_speed_that_is_not_certain_says_so() -> None:
    rng = np.random.default_rng(0)
    close = speed({"artifact": 0.00199 * rng.lognormal(0, 0.1, 50), "f": 0.002 * rng.lognormal(0, 0.1, 50)}, threads=1)
    ratio = close.baselines[0].ratio
    judged = gates(Limits(min_speedup=1 / ratio - 1e-6), speed=close)
    assert "not certain" in judged["speedup"][2]


def test_values_are_immutable() -> None:
    with pytest.raises(Exception, match="frozen"):
        summarise([1.0]).p50 = 2.0
    assert isinstance(summarise([1.0]), Latency)

"""The model of a device that cannot be timed: against numbers worked out by hand, and for what must always hold."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.errors import UsageError
from edgeq.frontends.load import load
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import Ladder, ladder, uniform
from edgeq.lowering.space import Space
from edgeq.model.model import Model
from edgeq.planning.costs.estimates import by_roofline, table, work_of
from edgeq.planning.costs.size import Sizes
from edgeq.planning.costs.source import Bench
from edgeq.planning.costs.state import known, state
from edgeq.planning.sensitivity.value import Sensitivity
from edgeq.planning.solver.solve import Problem, cost_of, solve
from edgeq.registry.load import load_profile, load_target, profile_names, profile_of
from edgeq.registry.roofline import Energies, Roofline, Work, energies, roofline, used_figures
from edgeq.registry.schema import Profile


class TwoLayers(nn.Module):
    """A convolution that computes much and one that mostly moves."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.flat = nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.flat(torch.relu(self.wide(image)))
        return found


@cache
def two_layers() -> tuple[Model, Ladder]:
    torch.manual_seed(0)
    model = load(TwoLayers().eval(), example=(torch.randn(2, 4, 10, 12),))
    images = np.random.default_rng(0).normal(size=(8, 4, 10, 12)).astype(np.float32)
    return model, ladder(model, small.runtime("litert", "arm-neon"), calibrate(model, {"image": images}).histograms)


def figure(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "how": "modelled", "source": "this test"}


def profile(figures: dict[str, Any], **changes: Any) -> Profile:
    given: dict[str, Any] = {
        "name": "board", "target": "arm-neon", "summary": "-", "link": "none", "figures": figures,
        "clock": figure(0.1, "GHz"), "bandwidth": figure(50, "MB/s"), "cores": figure(4, "cores"),
    }  # fmt: skip
    return Profile.model_validate(given | changes)


CORE = "multiply-accumulates a cycle and core"
FIGURES = {
    "macs_per_cycle_int8": figure(8, CORE),
    "macs_per_cycle_float32": figure(2, CORE),
    "energy_per_mac_int8": figure(0.5, "pJ"),
    "energy_per_mac_float32": figure(4, "pJ"),
    "energy_per_byte": figure(0.1, "nJ"),
}


def problem_of(by: Profile, threads: int = 1) -> Problem:
    """The two layers with modelled costs alone."""
    model, options = two_layers()
    runtime = small.runtime("litert", "arm-neon")
    space = Space(model, runtime, options)
    roof, energy = roofline(by, threads), energies(by)
    assert isinstance(roof, Roofline) and isinstance(energy, Energies)
    tables = {
        "latency": table(space, roof, "float32"),
        "energy": table(space, energy, "float32"),
    }
    sizes = Sizes({g: dict.fromkeys(o, 0.0) for g, o in options.items()}, 0.0, 0.0)
    return state(space, Sensitivity({}, {}), tables, sizes, {})


def test_two_layers_take_what_is_worked_out_by_hand() -> None:
    problem = problem_of(profile(FIGURES))
    # wide: 32 x 4 x 9 weights at 10 x 12 positions, 480 values in, 3840 out; flat: 2 x 32 weights, 240 values out
    assert [two_layers()[0].groups[i].macs for i in (0, 1)] == [138_240, 7_680]
    wide, flat = problem.options["wide"], problem.options["flat"]
    assert wide["float32"]["latency"] == pytest.approx(138_240 / 0.2e9)  # 691 us, where its traffic takes 443
    assert 4 * (480 + 3840 + 1152 + 32) / 50e6 < 138_240 / 0.2e9
    assert flat["float32"]["latency"] == pytest.approx(4 * (3840 + 240 + 64 + 2) / 50e6)  # its traffic, not its sums
    assert wide["w8a8"]["latency"] == pytest.approx(138_240 / 0.8e9)  # again its sums, in one byte a value
    assert flat["w8a8"]["latency"] == pytest.approx((3840 + 240 + 64 + 2 * 4) / 50e6)
    assert wide["float32"]["energy"] == pytest.approx(138_240 * 4e-12 + 4 * (480 + 3840 + 1152 + 32) * 1e-10)
    assert wide["w8a8"]["energy"] == pytest.approx(138_240 * 0.5e-12 + (480 + 3840 + 1152 + 32 * 4) * 1e-10)
    # both on integers: the input is converted, and the output back
    costs = cost_of(problem, {"wide": "w8a8", "flat": "w8a8"})
    conversion = 480 * 5 / 50e6
    assert costs["latency"] == pytest.approx(138_240 / 0.8e9 + (3840 + 240 + 64 + 8) / 50e6 + conversion)
    mixed = cost_of(problem, {"wide": "w8a8", "flat": "float32"})["latency"]
    between = 3840 * 5 / 50e6
    assert mixed == pytest.approx(138_240 / 0.8e9 + 4 * (3840 + 240 + 64 + 2) / 50e6 + conversion + between)


def test_a_rate_of_a_core_counts_for_as_many_as_there_are_threads_and_cores() -> None:
    def rate(threads: int, figures: dict[str, Any] = FIGURES, **changes: Any) -> float:
        found = roofline(profile(figures, **changes), threads)
        assert isinstance(found, Roofline)
        return found.rates["int8"]

    assert [rate(n) for n in (1, 3, 4, 16)] == pytest.approx([0.8e9, 2.4e9, 3.2e9, 3.2e9])
    assert rate(3, cores=None) == pytest.approx(0.8e9)
    whole = {**FIGURES, "macs_per_cycle_int8": figure(8, "multiply-accumulates a cycle")}
    assert rate(3, figures=whole) == pytest.approx(0.8e9)
    peak = {**FIGURES, "peak_int8": figure(2, "TOPS")}  # of which a multiply-accumulate is two
    assert rate(1, figures=peak) == pytest.approx(1e12)


def test_weights_on_a_bus_of_their_own_come_beside_the_rest() -> None:
    model, _ = two_layers()
    runtime = small.runtime("litert", "arm-neon")
    roof = roofline(profile({**FIGURES, "weight_bandwidth": figure(0.1, "MB/s")}), 1)
    assert isinstance(roof, Roofline)
    work = work_of(model, runtime, model.groups[1], "w8a8", "float32")
    assert (work.weights, work.values) == (64 + 8, 3840 + 240)
    assert roof.price(work) == pytest.approx((64 + 8) / 0.1e6)


def test_weights_that_are_read_by_blocks_stay_small() -> None:
    torch.manual_seed(0)
    model = load(nn.Sequential(nn.Linear(128, 10)).eval(), example=(torch.randn(2, 128),))
    (runtime,) = load_target("nvidia-gpu").runtimes
    (group,) = model.groups
    by_choice = {c: work_of(model, runtime, group, c, "float16") for c in ("w8a8", "w4g64", FLOAT)}
    assert by_choice["w4g64"].weights == 128 * 10 / 2 + 10 * 4
    assert by_choice[FLOAT].weights == 2 * (128 * 10 + 10)
    # multiplied in float all the same, and from and to float
    assert replace(by_choice["w4g64"], weights=0) == replace(by_choice[FLOAT], weights=0)
    assert by_choice["w8a8"].weights == 128 * 10 + 10 * 4


def test_what_a_profile_does_not_know_is_no_guess() -> None:
    _, options = two_layers()
    problem = problem_of(profile(FIGURES))
    # 4-bit weights: fast on one device, slow on the next, and never told
    assert "w4a8" in options["wide"] and not {"latency", "energy"} & problem.options["wide"]["w4a8"].keys()
    left, nothing = known(problem, options, "latency")
    assert not nothing and left["wide"] == ("w8a8", "w8", "w4", "w2", FLOAT)
    # weights alone are expanded when the file is loaded: a float layer runs
    assert problem.options["wide"]["w4"]["latency"] == problem.options["wide"][FLOAT]["latency"]
    told = problem_of(profile({**FIGURES, "macs_per_cycle_int8_int4": figure(16, CORE)}))
    # its sums would take 86 us, and half of the bytes of the weights are left to move
    assert told.options["wide"]["w4a8"]["latency"] == pytest.approx((480 + 3840 + 1152 / 2 + 32 * 4) / 50e6)
    integers = problem_of(profile({k: v for k, v in FIGURES.items() if k != "macs_per_cycle_float32"}))
    left, nothing = known(integers, {**options, "flat": (FLOAT,)}, "latency")
    assert left == {"wide": ("w8a8",), "flat": (FLOAT,)} and nothing == ["flat"]


@pytest.mark.parametrize("missing", ["bandwidth", "clock"])
def test_without_its_figures_a_device_is_not_modelled_and_it_says_which_are_missing(missing: str) -> None:
    model, options = two_layers()
    runtime = small.runtime("litert", "arm-neon")
    without = profile(FIGURES, **{missing: None})
    for by, said in ((without, missing), (None, "--profile")):
        job: Any = SimpleNamespace(profile=by, threads=1, device=None)
        told = by_roofline(Bench(job, Space(model, runtime, options), {}, {}))
        assert isinstance(told, str) and said in told
        assert by is None or by.name in told


@settings(max_examples=60, deadline=None)
@given(
    bandwidth=st.floats(1, 1e4),
    more=st.floats(1, 100),
    rate=st.floats(0.01, 1e4),
    macs=st.integers(0, 10**9),
    weights=st.floats(0, 1e8),
    values=st.floats(0, 1e8),
)
def test_a_better_device_is_never_slower(
    bandwidth: float, more: float, rate: float, macs: int, weights: float, values: float
) -> None:
    work = Work(macs, "int8", weights, values)

    def seconds(roof: Roofline) -> float:
        found = roof.price(work)
        assert found is not None
        return found

    base = seconds(Roofline({"int8": rate * 1e6}, bandwidth * 1e6))
    assert seconds(Roofline({"int8": rate * 1e6}, bandwidth * more * 1e6)) <= base
    assert seconds(Roofline({"int8": rate * more * 1e6}, bandwidth * 1e6)) <= base
    assert seconds(Roofline({"int8": rate * 1e6}, bandwidth * 1e6, bandwidth * 1e6)) <= base
    assert base >= max(macs / (rate * 1e6), (weights + values) / (bandwidth * 1e6)) * (1 - 1e-9)


@settings(max_examples=15, deadline=None)
@given(bandwidth=st.floats(1, 1000), more=st.floats(1, 50), clock=st.floats(0.01, 3))
def test_the_best_plan_of_a_better_device_is_never_slower(bandwidth: float, more: float, clock: float) -> None:
    def best(bandwidth: float) -> float:
        by = profile(FIGURES, bandwidth=figure(bandwidth, "MB/s"), clock=figure(clock, "GHz"))
        problem = problem_of(by)
        left, _ = known(problem, two_layers()[1], "latency")
        options = {g: {c: problem.options[g][c] for c in offered} for g, offered in left.items()}
        return solve(Problem(options, problem.boundaries), minimize="latency", gap=0.0).costs["latency"]

    assert best(bandwidth * more) <= best(bandwidth) * (1 + 1e-9)


def test_figures_that_cannot_be_computed_with_are_refused_with_what_could() -> None:
    for figures, said in (
        ({"macs_per_cycle_int8": figure(8, "MACs")}, "write it in"),
        ({"macs_per_cycle_int9": figure(8, CORE)}, "int8_int4"),
        ({"energy_per_byte": figure(8, "W")}, "pJ"),
        ({"energy_per_mac_int8": figure(0, "pJ")}, "above 0"),
        ({"peak_int8": figure(float("inf"), "TOPS")}, "above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            profile(figures)
    assert profile({"temperature": figure(-40, "degrees")})  # what nothing is computed from may be anything


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_is_modelled_or_says_what_it_lacks(name: str) -> None:
    found = load_profile(name)
    roof = roofline(found, 1)
    # what has no source stands nowhere: two emulate, and one is whatever machine this is
    silent = {"arm64-emulated", "haswell-emulated", "local-x86"}
    assert isinstance(roof, str) == (name in silent)
    if isinstance(roof, Roofline):
        assert "int8" in roof.rates and all(rate > 1e9 for rate in roof.rates.values())
        assert all("(" in text for text in used_figures(found, ("macs_per_cycle_", "peak_")))


def test_a_profile_is_one_of_its_target() -> None:
    arm = load_target("arm-neon")
    own, other = profile_of(arm, None), profile_of(arm, "raspberry-pi-4")
    assert own is not None and own.name == "raspberry-pi-5" and other is not None and other.name == "raspberry-pi-4"
    assert profile_of(load_target("mcu-cortex-m"), None) is None
    with pytest.raises(UsageError, match="is a device of arm-neon"):
        profile_of(load_target("npu-ethos-u"), "raspberry-pi-4")


def test_views_move_nothing_and_every_group_has_work() -> None:
    model, by = small.model("split-shuffle"), small.runtime("onnxruntime")
    options = ladder(model, by, small.calibration("split-shuffle").histograms)
    for group in model.groups:
        for choice in options[group.name]:
            work = work_of(model, by, group, choice, "float32")
            assert (work.values == 0) == (group.op == "reshape" or not group.inputs)
    floats = {g.name: work_of(model, by, g, FLOAT, "float32") for g in model.groups}
    halves = {g.name: work_of(model, by, g, FLOAT, "float16") for g in model.groups}
    assert all(2 * halves[g].values == floats[g].values and 2 * halves[g].weights == floats[g].weights for g in floats)
    assert uniform(options)

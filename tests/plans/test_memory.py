"""Bytes that are alive at once: against counting them step by step, and against small plans worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import small_models as small
from hypothesis import given
from hypothesis import strategies as st

from edgeq.lowering.assign import FLOAT
from edgeq.methods.quantize import quantize_model
from edgeq.plans.memory import Step, peak, peak_memory
from edgeq.quantization.quantized import Quantized
from edgeq.registry.schema import Runtime

Graph = tuple[list[Step], dict[str, int], list[str], list[str]]
"""Steps, sizes, inputs, outputs."""


def counted(steps: Sequence[Step], sizes: Mapping[str, int], inputs: Sequence[str], outputs: Sequence[str]) -> int:
    """The same by asking of every value at every step if anyone still needs it."""
    most = sum(sizes[name] for name in inputs) if not steps else 0
    for now in range(len(steps)):
        alive = 0
        for name, size in sizes.items():
            there = name in inputs or any(name in step.writes for step in steps[: now + 1])
            wanted = name in outputs or any(name in step.reads for step in steps[now:])
            just_made = name in steps[now].writes or (now == 0 and name in inputs)
            alive += size if there and (wanted or just_made) else 0
        most = max(most, alive)
    return most


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    inputs = [f"in{i}" for i in range(draw(st.integers(1, 3)))]
    values, steps = list(inputs), []
    for number in range(draw(st.integers(0, 12))):
        reads = draw(st.sets(st.sampled_from(values), min_size=1, max_size=3))
        writes = {f"v{number}.{part}" for part in range(draw(st.integers(1, 2)))}
        steps.append(Step(frozenset(reads), frozenset(writes)))
        values += sorted(writes)
    sizes = {name: draw(st.integers(0, 1000)) for name in values}
    return steps, sizes, inputs, draw(st.lists(st.sampled_from(values), unique=True, max_size=3))


@given(graphs())
def test_the_peak_is_the_most_that_counting_finds(
    graph: tuple[list[Step], dict[str, int], list[str], list[str]],
) -> None:
    steps, sizes, inputs, outputs = graph
    assert peak(steps, sizes, inputs, outputs) == counted(steps, sizes, inputs, outputs)


def quantized(name: str, by: Runtime, choices: Mapping[str, str] | None = None) -> Quantized:
    return quantize_model(small.model(name), by, small.calibration(name), choices=choices)


def bytes_of(name: str, by: Runtime, choices: Mapping[str, str] | None = None) -> int:
    return peak_memory(small.model(name), quantized(name, by, choices))


def test_a_chain_of_layers_needs_its_widest_pair() -> None:
    # 3 x 8 x 8 in, 8 x 4 x 4 between, 5 x 4 x 4 out
    floats = dict.fromkeys((g.name for g in small.model("conv-norm-relu6").groups), FLOAT)
    whole, ends = small.runtime("litert", io="integer"), small.runtime("litert")
    assert bytes_of("conv-norm-relu6", ends, floats) == 4 * (192 + 128)
    assert bytes_of("conv-norm-relu6", whole) == 192 + 128
    # the float input stays until it is converted
    assert bytes_of("conv-norm-relu6", ends) == 4 * 192 + 192


def test_a_conversion_is_there_beside_what_it_converts() -> None:
    # 768 bytes in; stem on integers leaves 128 bytes, which the float head reads as 512 and makes 320 of
    by = small.runtime("litert", io="integer")
    assert bytes_of("conv-norm-relu6", by, {"head": FLOAT, "conv": "w8a8"}) == max(192 + 128, 128 + 512, 512 + 320)


def test_a_skip_connection_is_held_for_its_reader() -> None:
    class_, by = small.model("input-to-end"), small.runtime("litert", io="integer")
    # the input, the convolution of it, and their sum: 192 bytes each
    assert peak_memory(class_, quantized("input-to-end", by)) == 3 * 192


def test_a_view_takes_no_bytes_and_parts_are_values_of_their_own() -> None:
    by = small.runtime("litert", io="integer")
    assert any(g.op == "reshape" for g in small.model("split-shuffle").groups)
    # both halves with the convolution of one, then what is concatenated and its transpose: 512 and 512 bytes
    assert bytes_of("split-shuffle", by) == 1024


@pytest.mark.parametrize("name", small.SMALL)
def test_integers_never_need_more_than_float_in_a_model_whose_ends_are_integers(name: str) -> None:
    model, by = small.model(name), small.runtime("litert", io="integer")
    found = quantized(name, by)
    floats = dict.fromkeys((g.name for g in model.groups), FLOAT)
    every = all(g.name in found.assignment.kernels for g in model.groups)
    least = max(sum(v.numel() for v in one) for one in [small.SMALL[name].example(1)])
    assert peak_memory(model, found) >= least
    if every:
        assert peak_memory(model, found) * 4 <= bytes_of(name, small.runtime("litert"), floats) * 1.0

"""Where a plan changes between float and integers, and what each layer may choose from."""

from __future__ import annotations

import random

import pytest
import small_models as small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.frontends.load import load
from edgeq.lowering.assign import FLOAT, assign
from edgeq.lowering.boundaries import Edge, alternating, crossings, edges
from edgeq.lowering.choices import ladder, uniform
from edgeq.model.graph import Node
from edgeq.model.groups import Group
from edgeq.model.ops import is_float
from edgeq.registry.schema import Kernel, Runtime

RUNTIMES = ["onnxruntime", "openvino", "litert"]
NETS = ["residual", "split-shuffle", "activations", "gate", "two-inputs", "two-outputs"]

ON_INTEGERS = {
    "onnxruntime": ("w8a8", "w4a8", "w2a8"),
    "openvino": ("w8a8", "w4a8", "w2a8"),
    "litert": ("w8a8", "w4a8", "w8a16"),
}
WEIGHTS_ALONE = {
    "onnxruntime": ("w8", "w4", "w4asym", "w2", "w4codebook", "w2codebook"),
    "openvino": ("w8", "w4", "w2", "w4asym", "w4codebook", "w2codebook"),
    "litert": ("w8", "w4", "w2"),
}
"""What a convolution is offered, by runtime."""


def group(name: str, of: str) -> Group:
    return next(g for g in small.model(of).groups if g.name == name)


def by_op(op: str, of: str) -> Group:
    (found,) = [g for g in small.model(of).groups if g.op == op]
    return found


def test_a_residual_network_has_an_edge_for_each_tensor_between_groups() -> None:
    found = edges(small.model("residual"), small.runtime("onnxruntime"))
    add, mean = by_op("add", "residual"), by_op("mean", "residual")
    stem, inner = group("stem", "residual"), group("inner", "residual")
    assert found == (
        Edge("image", None, True, ("stem",), 3 * 8 * 8),
        Edge(stem.output, "stem", False, ("inner", add.name), 8 * 8 * 8),
        Edge(inner.output, "inner", False, (add.name,), 8 * 8 * 8),
        Edge(add.output, add.name, False, (mean.name,), 8 * 8 * 8),
        Edge(mean.output, mean.name, False, ("head",), 8),
    )


def test_inputs_are_float_whatever_reads_them() -> None:
    for name in NETS:
        model = small.model(name)
        for edge in edges(model, small.runtime("litert")):
            assert (edge.producer is None) == (edge.tensor in model.input_nodes)
            assert edge.float_anyway or edge.producer is not None


def test_an_activation_without_an_integer_kernel_leaves_a_float_tensor() -> None:
    a, leaky = group("a", "activations"), by_op("leaky_relu", "activations")
    tensors = {runtime: _edges_by_tensor("activations", runtime) for runtime in RUNTIMES}
    assert a.activation_op == "hardswish"
    assert tensors["onnxruntime"][a.output].float_anyway
    assert not tensors["openvino"][a.output].float_anyway  # inside the convolution's kernel
    assert not tensors["litert"][a.output].float_anyway  # a kernel of its own
    b = group("b", "activations")
    assert b.activation_op == "silu" and tensors["litert"][b.output].float_anyway
    assert not tensors["onnxruntime"][leaky.output].float_anyway


def test_a_layer_that_writes_the_models_float_output_leaves_no_integers() -> None:
    head = group("head", "gate")
    assert _edges_by_tensor("gate", "onnxruntime")[head.output].float_anyway
    assert not _edges_by_tensor("gate", "litert")[head.output].float_anyway  # its kernel writes integers alone


def test_a_tensor_that_is_an_output_and_is_read_inside_can_be_integers() -> None:
    boxes = group("boxes", "two-outputs")
    for runtime in RUNTIMES:
        edge = _edges_by_tensor("two-outputs", runtime)[boxes.output]
        assert edge.producer == "boxes" and not edge.float_anyway
        assert edge.readers == (by_op("relu", "two-outputs").name,)


def test_like_neighbours_need_no_conversion_and_unlike_ones_need_one() -> None:
    edge = Edge("x", "a", False, ("b",), 1)
    assert crossings([edge], {"a": "w8a8", "b": "w8a8"}) == []
    assert crossings([edge], {"a": "w8a8", "b": FLOAT}) == [(edge, "dequantize", None)]
    assert crossings([edge], {"a": FLOAT, "b": "w8a8"}) == [(edge, "quantize", "a8")]
    assert crossings([edge], {"a": "w4a8", "b": "w8a16"}) == [(edge, "requantize", "a16")]
    assert crossings([edge], {"a": "a16", "b": "a8"}) == [(edge, "requantize", "a8")]


def test_readers_of_both_kinds_need_one_conversion() -> None:
    edge = Edge("x", "a", False, ("b", "c", "d"), 1)
    assert crossings([edge], {"a": FLOAT, "b": "w8a8", "c": "w4a8", "d": FLOAT}) == [(edge, "quantize", "a8")]
    assert crossings([edge], {"a": "w8a8", "b": FLOAT, "c": "w4a8", "d": FLOAT}) == [(edge, "dequantize", None)]
    assert crossings([edge], {"a": "w8a8", "b": "a16", "c": FLOAT, "d": "w8a16"}) == [
        (edge, "requantize", "a16"),
        (edge, "dequantize", None),
    ]
    both = crossings([edge], {"a": FLOAT, "b": "w8a16", "c": "a8", "d": FLOAT})
    assert both == [(edge, "quantize", "a16"), (edge, "quantize", "a8")]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_crossings_are_those_that_the_graph_itself_shows(name: str, runtime: str) -> None:
    """Read off the operators and their users, without the groups' own lists of inputs."""
    model, by = small.model(name), small.runtime(runtime)
    found_edges = edges(model, by)
    owner = {model.nodes[m]: g for g in model.groups for m in g.members}
    final = {n for n in owner if owner[n].output == n.name}
    rng = random.Random(name)
    offered = ladder(model, by, small.calibration(name).histograms)
    seen = 0
    for _ in range(50):
        choices = {g: rng.choice(options) for g, options in offered.items()}
        expected = set()
        for node in [*final, *(model.nodes[n] for n in model.input_nodes)]:
            if not is_float(node):
                continue
            readers = [owner[u] for u in node.users if u in owner and owner[u] is not owner.get(node)]
            leaves = node in owner and _leaves_integers(node, owner, by)
            own = _width(choices[owner[node].name]) if leaves else 32
            for width in {_width(choices[r.name]) for r in readers} - {own}:
                kind = "quantize" if own == 32 else "dequantize" if width == 32 else "requantize"
                expected.add((node.name, kind, None if width == 32 else f"a{width}"))
        got = [(edge.tensor, kind, form) for edge, kind, form in crossings(found_edges, choices)]
        assert len(got) == len(set(got))
        assert set(got) == expected
        seen += len(got)
    assert seen > 30


def _integers(choice: str) -> bool:
    return _width(choice) < 32


def _width(choice: str) -> int:
    """Bits of what a layer reads and writes."""
    return 8 if choice in ("w8a8", "w4a8", "w2a8", "a8") else 16 if choice in ("w8a16", "a16") else 32


def _leaves_integers(node: Node, owner: dict[Node, Group], by: Runtime) -> bool:
    """Whether an integer kernel of the node's group ends in integers."""
    made_by = owner[node]
    fused = made_by.activation_op in (None, *by.fused_activations)
    only_shapes_outputs = _only_shapes_outputs(node)
    if made_by.op in by.float_outputs and only_shapes_outputs:
        return False
    return fused or (any(made_by.activation_op in k.ops for k in by.kernels) and not only_shapes_outputs)


def _only_shapes_outputs(node: Node) -> bool:
    """Whether all that follows, up to the outputs, is without multiply-accumulates."""
    weighty = ("conv", "linear", "matmul", "mm")
    heavy = any(word in str(u.target) for u in node.users for word in weighty)
    return not heavy and all(u.op == "output" or _only_shapes_outputs(u) for u in node.users)


def _edges_by_tensor(name: str, runtime: str) -> dict[str, Edge]:
    return {e.tensor: e for e in edges(small.model(name), small.runtime(runtime))}


def layers(count: int) -> list[Group]:
    return [Group(f"g{i}", "conv2d", f"g{i}", None, None, (), None, None, 0, 0) for i in range(count)]


@given(st.integers(2, 40))
def test_neighbours_in_a_chain_have_two_colours(length: int) -> None:
    chain = [Edge(f"t{i}", f"g{i}", False, (f"g{i + 1}",), 1) for i in range(length - 1)]
    colours = alternating(layers(length), [Edge("x", None, True, ("g0",), 1), *chain])
    assert list(colours) == [f"g{i}" for i in range(length)]
    assert all(colours[f"g{i}"] != colours[f"g{i + 1}"] for i in range(length - 1))


@given(st.integers(3, 20), st.data())
def test_in_any_graph_each_layer_differs_from_one_that_it_reads(count: int, data: st.DataObject) -> None:
    sources = [data.draw(st.sets(st.integers(0, i - 1), min_size=1, max_size=3)) for i in range(1, count)]
    found = [
        Edge(f"t{p}", f"g{p}", False, tuple(f"g{i + 1}" for i, s in enumerate(sources) if p in s), 1)
        for p in range(count)
        if any(p in s for s in sources)
    ]
    colours = alternating(layers(count), found)
    for reader, read in enumerate(sources, start=1):
        assert any(colours[f"g{reader}"] != colours[f"g{p}"] for p in read)


@pytest.mark.parametrize("name", ["residual", "grouped", "depthwise"])
def test_alternating_plans_convert_on_nearly_every_edge(name: str) -> None:
    model, by = small.model(name), small.runtime("onnxruntime")
    colours = alternating(model.groups, edges(model, by))
    joined = [(e.producer, r) for e in edges(model, by) if e.producer for r in e.readers]
    differ = sum(colours[p] != colours[r] for p, r in joined)
    assert differ >= 0.75 * len(joined)
    assert {colours[r] for _, r in joined} == {True, False}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_the_first_choice_is_what_every_layer_gets_without_a_plan(name: str, runtime: str) -> None:
    model, by, histograms = small.model(name), small.runtime(runtime), small.calibration(name).histograms
    preferred = assign(model, by, histograms).kernels
    found = ladder(model, by, histograms)
    assert list(found) == [g.name for g in model.groups]
    for layer, options in found.items():
        assert options[0] == (preferred[layer].name if layer in preferred else FLOAT)
        assert FLOAT in (options[0], options[-1]) and options.count(FLOAT) == 1
        assert len(set(options)) == len(options)
    assert uniform(found) == {layer: options[0] for layer, options in found.items()}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_choice_that_is_offered_is_one_that_is_followed(runtime: str) -> None:
    model, by, histograms = small.model("residual"), small.runtime(runtime), small.calibration("residual").histograms
    found = ladder(model, by, histograms)
    assert found["stem"] == (*ON_INTEGERS[runtime], *WEIGHTS_ALONE[runtime], FLOAT)
    for choice in found["stem"]:
        given = assign(model, by, histograms, uniform(found, choice))
        assert [given.choice(name) for name in ("stem", "inner", "head")] == [choice] * 3
        assert (set(given.kernels) == set()) == (not _integers(choice)), "an addition is float among floats"
        assert {k.activations.removeprefix("u") for k in given.kernels.values()} <= {f"int{_width(choice)}"}


def test_groups_of_weights_are_offered_where_they_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1), nn.Flatten(), nn.Linear(288, 4))
    model = load(net.eval(), example=(torch.randn(2, 3, 8, 8, generator=generator),))
    x = torch.randn(8, 3, 8, 8, generator=generator).numpy()
    histograms = calibrate(model, {model.inputs[0].name: x}).histograms
    found = ladder(model, small.runtime("onnxruntime"), histograms)
    assert [layer for layer, options in found.items() if "w4g32" in options] == ["2", "4"]  # 27 weights are no group
    refused = assign(model, small.runtime("onnxruntime"), histograms, dict.fromkeys(found, "w4g32"))
    assert refused.choice("0") == FLOAT and "27 weights" in refused.reasons["0"]


def test_what_is_not_to_be_offered_is_not() -> None:
    model, by, histograms = small.model("residual"), small.runtime("litert"), small.calibration("residual").histograms
    op = {g.name: g.op for g in model.groups}["stem"]
    found = ladder(model, by, histograms, {(op, "w8a8"), (op, "w4")})
    assert found["stem"] == ("w4a8", "w8a16", "w8", "w2", FLOAT)
    assert uniform(found)["stem"] == "w4a8"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_kernels_of_another_type_of_activations_are_offered_as_well(runtime: str) -> None:
    model, by, histograms = small.model("residual"), small.runtime(runtime), small.calibration("residual").histograms
    others = {k.name for k in by.kernels if k.activations == "int16"}
    assert bool(others) == (runtime == "litert")
    wide = Kernel(ops=["conv2d"], activations="int16", weights="int8", bias="int64", source="invented")
    first = by.model_copy(update={"kernels": [wide, *by.kernels]})
    found = ladder(model, first, histograms)
    assert found["stem"] == tuple(dict.fromkeys(("w8a16", *ON_INTEGERS[runtime], *WEIGHTS_ALONE[runtime], FLOAT)))
    assert uniform(found)["stem"] == "w8a16" and uniform(found)["head"] == "w8a8"


def test_one_type_of_activations_has_one_scheme() -> None:
    """Whatever reads a tensor in 8 bits, reads it on one grid."""
    model, by, histograms = small.model("residual"), small.runtime("litert"), small.calibration("residual").histograms
    other = Kernel(
        ops=["conv2d"],
        activations="int8",
        activation_symmetry="symmetric",
        weights="int2",
        bias="int32",
        source="invented",
    )
    found = ladder(model, by.model_copy(update={"kernels": [*by.kernels, other]}), histograms)
    assert "w2a8" not in found["stem"]


def test_a_layer_is_not_offered_a_type_in_which_its_activation_does_not_run() -> None:
    """LiteRT computes hard swish in 8 bits, and not in 16."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 3))
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = load(net.eval(), example=(x[:2],))
    histograms = calibrate(model, {model.inputs[0].name: x.numpy()}).histograms
    found = ladder(model, small.runtime("litert"), histograms)
    assert all("w8a8" in found[layer] for layer in "024")
    assert [name for name, options in found.items() if "w8a16" in options] == ["2", "4"]


def test_uniform_takes_the_wanted_choice_where_there_is_one() -> None:
    offered = {"a": ("w8a8", "w4a8", FLOAT), "b": ("a8", FLOAT), "c": (FLOAT,)}
    assert uniform(offered, "w4a8") == {"a": "w4a8", "b": "a8", "c": FLOAT}
    assert uniform(offered, FLOAT) == dict.fromkeys("abc", FLOAT)
    wide = {"a": ("w8a8", "w8a16", FLOAT), "b": ("a8", "a16", FLOAT), "c": ("w8a8", "w4a8", FLOAT)}
    assert uniform(wide, "w8a16") == {"a": "w8a16", "b": "a16", "c": "w8a8"}
    assert uniform(wide, "w4a8") == {"a": "w8a8", "b": "a8", "c": "w4a8"}
    assert uniform(offered, "w3a8") == uniform(offered)
    assert uniform(offered | {"a": ("w8a8", "w8", FLOAT)}, "w8") == {"a": "w8", "b": FLOAT, "c": FLOAT}

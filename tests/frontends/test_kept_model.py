"""A model that the cache kept is the model that it was made from, and what somebody else wrote there never runs."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models as small
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim, ExportedProgram

from edgeq.cache import Cache, Entry
from edgeq.errors import UnsupportedError
from edgeq.export.onnx_convert import export_float
from edgeq.export.onnx_float import save
from edgeq.export.tflite_convert import convert
from edgeq.frontends.kept import load_kept
from edgeq.frontends.load import load
from edgeq.model import plain
from edgeq.model.execute import execute
from edgeq.model.graph import Free, Named
from edgeq.model.model import Model
from edgeq.model.operators import operator_of
from edgeq.model.ops import shape_of
from edgeq.model.values import tensor_of

# --- networks, beside the small ones, with what else graphs have -------------------------------------


class Constants(nn.Module):
    """A buffer in the state_dict, one that is not, a constant of the code, and integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([[0.5], [2.0], [-1.0]]))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, 0.0, 0.0]), persistent=False)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.register_buffer("chosen", torch.tensor([True, False, True, True]))
        self.head = nn.Linear(4, 4)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = torch.softmax(self.head(features * self.scale) + self.mask, -1)
        x = torch.where(self.chosen, x[..., self.order], torch.tensor(0.25))
        return x + torch.tensor([1.0, 2.0, 3.0, 4.0]) * torch.finfo(torch.float32).eps


class Fills(nn.Module):
    """Infinity, types and shapes among the arguments; several values from one operator."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.pad(image, (1, 1, 1, 1), value=-math.inf), 3, stride=1)
        best, where = torch.topk(x, 2, dim=1)
        x = torch.cat([best, where.to(torch.float32), torch.zeros_like(best)], 1)
        x = F.gelu(F.layer_norm(x, (8,)), approximate="tanh").to(torch.bfloat16).float()
        return x.reshape(x.shape[0], -1).clamp(max=math.inf) + torch.full((1,), -0.0, dtype=torch.float32)


class Keywords(nn.Module):
    """Names that Python has for something else."""

    def forward(self, input: torch.Tensor, max: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": input.sum(1) + max.sum(1), "next to it": torch.maximum(input, max)}


class BatchLast(nn.Module):
    """The free size moves, and is multiplied."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = tokens.transpose(0, 1).reshape(7, -1)
        return torch.relu(rows).reshape(7, -1, 12).transpose(0, 1) + tokens


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(12, 5, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, (last, _) = self.cells(tokens)
        return found, last


class Halved(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, ::2] * 2


def two_free_sizes() -> ExportedProgram:
    class Table(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left @ right.transpose(0, 1)

    sizes = {"left": {0: Dim("rows")}, "right": {0: Dim("columns", min=2, max=9)}}
    return torch.export.export(Table(), (torch.randn(3, 4), torch.randn(5, 4)), dynamic_shapes=sizes)


def odd_size() -> ExportedProgram:
    """Half of a free size: the plain form has no words for it."""
    return torch.export.export(Halved(), (torch.randn(1, 8, 3),), dynamic_shapes={"tokens": {1: Dim("length", min=4)}})


MADE: dict[str, Callable[[], Model]] = {
    "constants": lambda: load(Constants().eval(), example=(torch.randn(2, 3, 4),)),
    "fills": lambda: load(Fills().eval(), example=(torch.randn(2, 3, 8, 8),)),
    "named": lambda: load(Keywords().eval(), example=(torch.randn(2, 4), torch.randn(2, 4))),
    "batch-last": lambda: load(BatchLast().eval(), example=(torch.randn(2, 7, 12),)),
    "recurrent": lambda: load(Recurrent().eval(), example=(torch.randn(2, 7, 12),)),
    "two-free-sizes": lambda: load(two_free_sizes()),
}
NAMES = [*small.SMALL, *MADE]


@cache
def original(name: str) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MADE[name]() if name in MADE else small.model(name)


@cache
def restored(name: str) -> Model:
    again = pickle.loads(pickle.dumps(original(name)))
    assert isinstance(again, Model) and not again.program.wordless
    return again


# --- what comes back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_back_is_the_same_model(name: str) -> None:
    model, again = original(name), restored(name)
    assert again.fingerprint == model.fingerprint
    assert again.groups == model.groups and list(again.nodes) == list(model.nodes)
    for of in ("inputs", "input_nodes", "output_names", "output_nodes", "macs", "parameters", "batchable"):
        assert getattr(again, of) == getattr(model, of)
    for field in ("inputs", "outputs", "lifted", "calling"):
        assert getattr(again.program, field) == getattr(model.program, field)
    for field in ("state", "constants"):
        kept, was = getattr(again.program, field), getattr(model.program, field)
        assert {n: (a.dtype, a.shape) for n, a in kept.items()} == {n: (a.dtype, a.shape) for n, a in was.items()}


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_back_computes_the_same_bits(name: str) -> None:
    model, again = original(name), restored(name)
    example = [torch.from_numpy(array) for array in model.example]
    for want, got in zip(model.run([example])[0], again.run([example])[0], strict=True):
        assert want.dtype == got.dtype and want.numpy().tobytes() == got.numpy().tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_described_as_it_was(name: str) -> None:
    model, again = original(name), restored(name)
    for was, now in zip(model.nodes.values(), again.nodes.values(), strict=True):
        assert now.modules == was.modules and now.value == was.value


@pytest.mark.parametrize("name", NAMES)
def test_values_are_described_as_torch_export_does(name: str) -> None:
    model = original(name)
    for was, now in zip(model.exported().graph.nodes, model.nodes.values(), strict=True):
        found = was.meta.get("val")
        if isinstance(found, torch.Tensor):
            described = tensor_of(now)
            assert described is not None and f"torch.{described.dtype}" == str(found.dtype)
            assert shape_of(now) == tuple(d if isinstance(d, int) else d.node.hint for d in found.shape)
            assert [isinstance(d, int) for d in described.shape] == [isinstance(d, int) for d in found.shape]
        elif isinstance(found, torch.SymInt):
            assert isinstance(now.value, Free) and now.value.traced == found.node.hint
        elif isinstance(found, list | tuple):
            assert isinstance(now.value, tuple) and len(now.value) == len(found)


@pytest.mark.parametrize("name", ["recurrent", "batch-last", "two-free-sizes", "constants"])
def test_exporters_get_the_program_that_torch_export_made(name: str) -> None:
    program, again = original(name).exported(), restored(name).exported()
    assert again.graph_module.code == program.graph_module.code
    assert again.graph_signature == program.graph_signature
    for kept, was in ((again.state_dict, program.state_dict), (again.constants, program.constants)):
        assert {n: (type(t), t.dtype, t.requires_grad) for n, t in kept.items()} == {
            n: (type(t), t.dtype, t.requires_grad) for n, t in was.items()
        }
    assert again.call_spec == program.call_spec
    ranges = [{str(symbol): (r.lower, r.upper) for symbol, r in p.range_constraints.items()} for p in (program, again)]
    assert ranges[0] == ranges[1]
    for was, now in zip(program.graph.nodes, again.graph.nodes, strict=True):
        if isinstance(was.meta.get("val"), torch.Tensor):
            assert str(now.meta["val"].shape) == str(was.meta["val"].shape)
            assert now.meta["val"].device == was.meta["val"].device and now.meta["val"].dtype == was.meta["val"].dtype
    for want, got in zip(
        torch.utils._pytree.tree_leaves(program.module()(*map(torch.from_numpy, original(name).example))),
        torch.utils._pytree.tree_leaves(again.module()(*map(torch.from_numpy, original(name).example))),
        strict=True,
    ):
        assert torch.equal(want, got)


@pytest.mark.parametrize("name", ["two-inputs", "residual-batch-1"])
def test_exported_files_are_the_same_to_the_byte(name: str, tmp_path: Path) -> None:
    def onnx(model: Model) -> bytes:
        save(export_float(model).model, tmp_path / "float.onnx")
        return (tmp_path / "float.onnx").read_bytes()

    assert onnx(restored(name)) == onnx(original(name))
    pytest.importorskip("litert_torch")
    assert convert(restored(name)) == convert(original(name))


def test_a_program_that_the_form_has_no_words_for_is_kept_as_torch_export_writes_it() -> None:
    model = load(odd_size())
    with pytest.raises(plain.InexpressibleError, match="no multiple of a free size"):
        plain.write(model.program)
    again: Model = pickle.loads(pickle.dumps(model))
    assert isinstance(again.exported(), ExportedProgram)
    assert again.fingerprint == model.fingerprint and again.groups == model.groups


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(["torch.float32", "torch.bfloat16", "torch.bool", "torch.strided", "cpu"]).map(Named),
)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.lists(inner).map(tuple), max_leaves=8))
def test_arguments_come_back_from_json_as_they_were(argument: object) -> None:
    def exact(value: object) -> object:
        inner = [exact(v) for v in value] if isinstance(value, list | tuple) else repr(value)
        return type(value), inner

    assert exact(plain.read_argument(json.loads(json.dumps(plain.write_argument(argument))), {})) == exact(argument)


@pytest.mark.parametrize("argument", [1j, Named("meta"), np.zeros(1), {"a": 1}, slice(1), np.float32(1)])
def test_other_arguments_are_not_written(argument: object) -> None:
    with pytest.raises(plain.InexpressibleError, match=type(argument).__name__):
        plain.write_argument(argument)


# --- the cache ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.pt2"
    net, x = small.module("residual"), small.SMALL["residual"].example(2)
    torch.export.save(torch.export.export(net, x, dynamic_shapes={"image": {0: Dim("batch", min=1)}}), path)
    return path


@pytest.fixture(scope="module")
def filled(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    held = Cache(tmp_path_factory.mktemp("cache"))
    load_kept(saved, (), held)
    return held


def test_reading_a_kept_model_imports_no_torch_and_running_it_no_compiler(saved: Path, filled: Cache) -> None:
    assert filled.root is not None
    work = """
import sys
from pathlib import Path
from edgeq.cache import Cache
from edgeq.frontends.kept import load_kept
model = load_kept(Path(sys.argv[1]), (), Cache(Path(sys.argv[2])))
assert model.groups and model.fingerprint
print("looked at", *(n for n in ("torch",) if n in sys.modules))
import torch
assert model.run([[torch.from_numpy(array) for array in model.example]])
print("run", *(n for n in ("torch._dynamo", "torch._export.serde", "sympy") if n in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", work, str(saved), str(filled.root)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["looked at", "run"]


Form = dict[str, Any]


def first(form: Form, op: str) -> Form:
    node: Form = next(node for node in form["nodes"] if node["op"] == op)
    return node


def target(name: str) -> Callable[[Form], object]:
    return lambda form: first(form, "call_function").update(target=name)


def argument(value: object) -> Callable[[Form], object]:
    return lambda form: first(form, "call_function").update(args=[value])


def renamed(op: str, key: str, name: object) -> Callable[[Form], object]:
    return lambda form: first(form, op).update({key: name})


CODE = "x=__import__('os').mkdir('ran')"
HOSTILE: dict[str, Callable[[Form], object]] = {
    "operator that touches files": target("aten.from_file.default"),
    "attribute of the namespace": target("aten.__class__.mro"),
    "attribute of the operator": target("aten.relu.__init__"),
    "whole operator": target("aten.relu"),
    "another namespace": target("prim.device.default"),
    "another library": target("os.system"),
    "builtin": target("builtins.eval"),
    "operator that calls": target("operator.methodcaller"),
    "operator's inside": target("operator.__builtins__"),
    "path behind an operator": target("operator.getitem.__self__"),
    "no name": target(3),  # type: ignore[arg-type]
    "call of a module": renamed("call_function", "op", "call_module"),
    "call of a method": renamed("call_function", "op", "call_method"),
    "attribute": renamed("call_function", "op", "get_attr"),
    "unknown operation": renamed("call_function", "op", "run"),
    "code as a node's name": renamed("call_function", "name", CODE),
    "code as an input's name": renamed("placeholder", "target", f"a, b=({CODE})"),
    "keyword": renamed("placeholder", "name", "lambda"),
    "number as a name": renamed("placeholder", "name", 3),
    "name twice": lambda form: form["nodes"].insert(1, form["nodes"][0]),
    "code as a keyword argument": lambda form: first(form, "call_function").update(kwargs={CODE: 1}),
    "code as an argument of the call": lambda form: form.update(arguments=[CODE]),
    "code as a free size": lambda form: form.update(free={CODE: [1, 2, 2]}),
    "container of a class": lambda form: form.update(
        containers=[text.replace("builtins.tuple", "os.system") for text in form["containers"]]
    ),
    "cycle": lambda form: first(form, "call_function").update(args=[{"node": first(form, "output")["args"]}]),
    "itself": lambda form: first(form, "call_function").update(args=[{"node": first(form, "call_function")["name"]}]),
    "later node": lambda form: form["nodes"].reverse(),
    "argument of an unknown kind": argument({"pickle": "gASVCwAAAAAAAACMAm9zlIwGc3lzdGVtlJOULg=="}),
    "argument of two kinds": argument({"node": "image", "tuple": []}),
    "unknown name": argument({"named": "torch.load"}),
    "list as a name": argument({"node": []}),
    "nodes that are none": lambda form: form.update(nodes=3),
    "node that is none": lambda form: form["nodes"].append(None),
    "nothing": lambda form: form.clear(),
    "no nodes": lambda form: form.update(nodes=[]),
    "unknown kind of input": lambda form: form["inputs"][0].__setitem__(0, "CUSTOM_OBJ"),
    "tensor that is not there": lambda form: form["inputs"][0].__setitem__(2, "nowhere"),
    "unknown type": lambda form: first(form, "placeholder").update(value={"dtype": "torch.load", "shape": [1]}),
    "size of an unknown symbol": lambda form: first(form, "placeholder").update(
        value={"dtype": "torch.float32", "shape": [[1, "nobody"]]}
    ),
    "text as a size": lambda form: first(form, "placeholder").update(value={"dtype": "torch.float32", "shape": "12"}),
    "modules that are none": lambda form: first(form, "placeholder").update(modules=[[1, 2, 3]]),
}


def tampered(held: Cache, change: Callable[[Entry], Entry], root: Path, notes: list[str]) -> Cache:
    """A cache that somebody else filled: whole, with the right hashes, and changed."""

    class Shared(Cache):
        def get(self, stage: str, key: str) -> Entry | None:
            entry = held.get(stage, key)
            assert entry is not None
            return change(Entry(copy.deepcopy(entry.values), dict(entry.arrays)))

    return Shared(root, note=notes.append)


@pytest.fixture
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("it ran"))
    yield
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("nothing_ran")
@pytest.mark.parametrize("what", HOSTILE)
def test_what_nobody_here_wrote_is_refused_and_never_runs(what: str) -> None:
    form, arrays = plain.write(original("residual").program)
    HOSTILE[what](form := copy.deepcopy(form))
    with pytest.raises((AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)):
        plain.read(form, arrays)


@pytest.mark.usefixtures("nothing_ran")
@pytest.mark.parametrize("name", ["aten.no_such_thing.default", "aten.relu.no_such_thing", "aten.relu_.default"])
def test_what_only_torch_can_tell_of_an_operator_is_told_before_it_runs(name: str) -> None:
    form, arrays = plain.write(original("residual").program)
    target(name)(form := copy.deepcopy(form))
    program = plain.read(form, arrays)
    with pytest.raises(UnsupportedError, match="only computes"):
        operator_of(program, name)
    with pytest.raises(UnsupportedError, match="only computes"):
        execute(program, [[torch.from_numpy(array) for array in original("residual").example]])


@pytest.mark.usefixtures("nothing_ran")
@pytest.mark.parametrize("what", ["another library", "code as a node's name", "nothing"])
def test_a_model_whose_kept_form_is_refused_is_made_anew(what: str, saved: Path, filled: Cache, tmp_path: Path) -> None:
    def change(entry: Entry) -> Entry:
        HOSTILE[what](entry.values["graph"])
        return entry

    notes: list[str] = []
    made = load_kept(saved, (), tampered(filled, change, tmp_path / "cache", notes))
    assert made.fingerprint == load_kept(saved, (), filled).fingerprint
    assert notes == ["a kept result of model is of another kind; it is computed again"]


@pytest.mark.parametrize("what", ["missing", "other type", "other shape", "other numbers"])
def test_tensors_that_are_not_the_models_are_no_result(what: str, saved: Path, filled: Cache, tmp_path: Path) -> None:
    def change(entry: Entry) -> Entry:
        arrays = dict(entry.arrays)
        name = next(name for name in arrays if name.endswith("head.weight"))
        held = arrays.pop(name)
        other = {"other type": held.astype(np.float64), "other shape": held.T, "other numbers": held + 1}
        return Entry(entry.values, {**arrays, name: other[what]} if what in other else arrays)

    notes: list[str] = []
    made = load_kept(saved, (), tampered(filled, change, tmp_path, notes))
    assert made.fingerprint == load_kept(saved, (), filled).fingerprint and notes

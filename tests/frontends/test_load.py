"""Models get in from files of every kind, and what cannot get in is refused with a cause and a remedy."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from edgeq.errors import EdgeqError, UnsupportedError, UsageError
from edgeq.frontends.examples import parse_input_spec
from edgeq.frontends.load import from_loaded, load
from edgeq.frontends.loaded import Loaded
from edgeq.frontends.read import read

ZOO = Path(__file__).parents[3] / "shared" / "zoo"
needs_zoo = pytest.mark.skipif(not ZOO.is_dir(), reason=f"the model zoo is not at {ZOO}")
INPUT = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Tiny(torch.nn.Module):
    """Convolution, batch norm and a classifier: enough for names, buffers and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))


class Pair(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": left + right, "product": left * right}


class Attend(torch.nn.Module):
    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query @ key.transpose(1, 2)


class FixedBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 3)


class Branches(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return x * 2
        return x - 1


class Remembers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state = torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state = self.state + x
        return self.state


class Counts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x + self.calls


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (self.path,)


def make_tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


def answer(loaded: Loaded, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return loaded.program.module()(*inputs)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network, saved in each way. No suffix helps."""
    folder = tmp_path_factory.mktemp("models")
    model = make_tiny()
    paths = {name: folder / name for name in ("export", "script", "weights", "legacy", "module", "tensors")}
    dynamic = {"image": {0: torch.export.Dim("batch", min=1)}}
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (INPUT,), dynamic_shapes=dynamic), buffer)
    paths["export"].write_bytes(buffer.getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, INPUT).save(str(paths["script"]))
    torch.save(model.state_dict(), paths["weights"])
    torch.save(model.state_dict(), paths["legacy"], _use_new_zipfile_serialization=False)
    torch.save(model, paths["module"])
    paths["tensors"].write_bytes(safetensors(model.state_dict()))
    return paths


def safetensors(weights: dict[str, torch.Tensor]) -> bytes:
    header, body = {}, b""
    for name, tensor in weights.items():
        raw = tensor.numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory, as a reference to its factory."""
    name = f"user_network_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(
        "from test_load import make_tiny, Pair\ndef wrong(): return 3\ndef broken(): raise OSError('no disk')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return f"{name}:make_tiny"


OPTIONS: dict[str, dict[str, object]] = {
    "export": {},
    "script": {"inputs": ["2x3x8x8"]},
    "weights": {"inputs": ["1x3x8x8"], "arch": "test_load:make_tiny"},
    "legacy": {"inputs": ["1x3x8x8"], "arch": "test_load:make_tiny"},
    "tensors": {"inputs": ["1x3x8x8"], "arch": "test_load:make_tiny"},
    "module": {"inputs": ["1x3x8x8"], "trust_pickle": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_kind_of_file_gives_the_network(
    name: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    loaded = read(files[name], **OPTIONS[name])  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(answer(loaded, INPUT), make_tiny()(INPUT))
    assert loaded.input_names == ("image",)
    assert loaded.source == name
    assert loaded.dynamic_batch
    assert len(loaded.example) == 1
    assert loaded.kind == {"export": "torch.export", "script": "torchscript", "module": "pickled module"}.get(
        name, "state_dict"
    )
    assert loaded.sha256 == read(files[name], **OPTIONS[name]).sha256  # type: ignore[arg-type]


def test_torchscript_keeps_the_names_of_weights(files: dict[str, Path]) -> None:
    loaded = read(files["script"], inputs=["image:1x3x8x8"])
    assert set(make_tiny().state_dict()) <= set(loaded.program.state_dict)


def test_a_module_in_memory_keeps_its_training_mode_and_has_a_stable_hash() -> None:
    model = make_tiny().train()
    first = read(model, inputs=["1x3x8x8"])
    assert model.training and model.norm.training
    assert first.kind == "module" and first.dynamic_batch
    assert first.sha256 == read(make_tiny(), inputs=["1x3x8x8"]).sha256
    changed = make_tiny()
    changed.head.bias.data[0] += 1
    assert first.sha256 != read(changed, inputs=["1x3x8x8"]).sha256


def test_names_of_inputs_and_of_dict_outputs() -> None:
    loaded = read(Pair(), inputs=["right:1x4", "left:1x4"])
    assert loaded.input_names == ("left", "right")
    assert loaded.output_names == ("sum", "product")
    program = read(loaded.program)
    assert program.kind == "torch.export" and program.output_names == ("sum", "product")


class Returning(torch.nn.Module):
    """Returns whatever a function makes of its input."""

    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: (None, x * 2, None), None),
        (lambda x: {"no": None, "one": x * 2, "more": [None, {"two": x + 1}], "other": None, "three": x}, None),
        (lambda x: {"no": None, "one": x * 2, "more": {"none": None, "two": x + 1}}, ("one", "more.two")),
    ],
)
def test_none_is_left_out_of_the_outputs(function: Callable, names: tuple[str, ...] | None) -> None:
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(Returning(function), (INPUT,), dynamic_shapes=(batch,))
    wanted = [leaf for leaf in pytree.tree_leaves(function(INPUT)) if leaf is not None]
    for source in (program, Returning(function)):
        loaded = read(source, inputs=["2x3x8x8"])
        assert loaded.dynamic_batch and len(loaded.output_names) == len(wanted)
        assert names in (None, loaded.output_names)
        got = from_loaded(loaded).run([[INPUT]])[0]
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert len(pytree.tree_leaves(loaded.program.module()(INPUT))) == len(wanted)
    assert len(program.graph_signature.user_outputs) > len(wanted)  # the caller's own


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: (x * 2, x.shape[0]), "output 1 is a size"),
        (lambda x: (None, 1.5, x * 2), "output 0 is 1.5"),
        (lambda x: {"a": x * 2, "b": "text"}, "output 1 is 'text'"),
        (lambda x: None, "no tensors"),
    ],
)
def test_what_returns_more_than_tensors_is_refused(function: Callable, says: str) -> None:
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(Returning(function), (torch.zeros(2, 4),), dynamic_shapes=(batch,))
    for source in (program, Returning(function)):
        with pytest.raises(UnsupportedError, match=says) as error:
            read(source, inputs=["2x4"])
        assert "tensors only" in (error.value.remedy or "")


@pytest.mark.parametrize("model", [Attend(), torch.jit.script(Attend())])
def test_named_inputs_of_different_shapes_come_in_any_order(model: torch.nn.Module) -> None:
    loaded = read(model, inputs=["key:1x4x7", "query:1x3x7"])
    assert loaded.input_names == ("query", "key")
    assert [list(tensor.shape) for tensor in loaded.example] == [[1, 3, 7], [1, 4, 7]]


def test_a_fixed_batch_is_kept_and_said() -> None:
    loaded = read(FixedBatch(), inputs=["1x2x3"])
    assert not loaded.dynamic_batch
    assert "batch" in loaded.notes[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_checkpoints_that_wrap_weights(prefix: str, tmp_path: Path, network: str) -> None:
    path = tmp_path / "checkpoint"
    weights = {f"{prefix}{name}": tensor for name, tensor in make_tiny().state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    loaded = read(path, inputs=["1x3x8x8"], arch=network)
    assert loaded.kind == "state_dict"
    assert len(loaded.notes) == 1 and prefix in loaded.notes[0]
    torch.testing.assert_close(answer(loaded, INPUT), make_tiny()(INPUT), check_stride=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda own: {"model": own, "ema": {k: torch.full_like(v, 2) for k, v in own.items()}}, "moving average"),
        (lambda own: {"epoch": 1, "checkpoint": {"student": own, "loss": {"w": torch.ones(3)}}}, ""),
        (lambda own: {"backbone." + k: v for k, v in own.items()} | {"loss.w": torch.ones(2)}, "loss.w"),
        (lambda own: {k.replace("conv.", "conv.module."): v for k, v in own.items()}, ""),
        (lambda own: {"state_dict": {k: v.half() for k, v in own.items()}}, "float16"),
    ],
)
def test_weights_are_found_by_what_they_fit(change: Callable, says: str, tmp_path: Path, network: str) -> None:
    own = make_tiny().state_dict()
    torch.save(change(own), tmp_path / "checkpoint")
    loaded = read(tmp_path / "checkpoint", inputs=["1x3x8x8"], arch=network)
    assert says in " ".join(loaded.notes) and bool(says) == bool(loaded.notes)
    weight = loaded.program.state_dict["conv.weight"]
    expected = torch.full_like(own["conv.weight"], 2) if says == "moving average" else own["conv.weight"]
    torch.testing.assert_close(weight, expected, atol=1e-3, rtol=1e-3, check_stride=False)
    assert weight.dtype == torch.float32


def test_of_several_sets_of_weights_none_is_guessed(tmp_path: Path, network: str) -> None:
    own = make_tiny().state_dict()
    torch.save({"teacher": own, "student": own}, tmp_path / "weights")
    with pytest.raises(UsageError, match="teacher, student"):
        read(tmp_path / "weights", inputs=["1x3x8x8"], arch=network)
    torch.save({"teacher": make_tiny(), "student": make_tiny()}, tmp_path / "modules")
    with pytest.raises(UsageError, match="teacher, student"):
        read(tmp_path / "modules", inputs=["1x3x8x8"], trust_pickle=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("holds", ["module", "program", "file", "torchscript"])
def test_other_precisions_become_float32(dtype: torch.dtype, holds: str, tmp_path: Path) -> None:
    network, x = make_tiny().to(dtype), INPUT.to(dtype)
    source: object = network
    if holds == "torchscript":
        source = torch.jit.trace(network, x)
    elif holds != "module":
        source = torch.export.export(network, (x,))
        if holds == "file":
            torch.export.save(source, tmp_path / "half.pt2")
            source = tmp_path / "half.pt2"
    loaded = read(source, inputs=["2x3x8x8"] if holds in ("module", "torchscript") else [])
    assert any(str(dtype).removeprefix("torch.") in note for note in loaded.notes)
    assert {t.dtype for t in (*network.parameters(), *loaded.example)} == {dtype, torch.float32}
    got = answer(loaded, INPUT)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, network.float()(INPUT), check_stride=False)


def test_other_precisions_of_an_input_that_is_called_as_python_calls_its_own() -> None:
    network, x = torch.nn.Sequential(torch.nn.Linear(4, 3)).double(), torch.ones(2, 4).double()
    assert torch.export.export(network, (x,)).graph_signature.user_inputs == ("input",)
    loaded = read(torch.export.export(network, (x,)))
    torch.testing.assert_close(answer(loaded, x.float()), network.float()(x.float()))


def test_the_older_layout_of_exported_programs(tmp_path: Path) -> None:
    from torch._export.serde.serialize import SCHEMA_VERSION, serialize

    artifact = serialize(torch.export.export(make_tiny(), (INPUT,)))
    path = tmp_path / "older"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", artifact.exported_program)
        archive.writestr("serialized_state_dict.pt", artifact.state_dict)
        archive.writestr("serialized_constants.pt", artifact.constants)
        archive.writestr("serialized_example_inputs.pt", artifact.example_inputs)
    loaded = read(path)
    torch.testing.assert_close(answer(loaded, INPUT), make_tiny()(INPUT), check_stride=False)


def test_loading_says_nothing_and_leaves_warnings_alone(
    files: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        read(files["export"])
        read(files["script"], inputs=["1x3x8x8"])
        assert list(warnings.filters) == before
    out = capfd.readouterr()
    assert not caught and not out.out and not out.err


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("text", "name", "shape", "dtype"),
    [
        ("1x3x32x32", "", (1, 3, 32, 32), "float32"),
        ("tokens:1x256:int64", "tokens", (1, 256), "int64"),
        ("1x256:int64", "", (1, 256), "int64"),
        ("x1:4", "x1", (4,), "float32"),
    ],
)
def test_input_specs(text: str, name: str, shape: tuple[int, ...], dtype: str) -> None:
    spec = parse_input_spec(text)
    assert (spec.name, spec.shape, spec.dtype) == (name, shape, dtype)


@pytest.mark.parametrize("text", ["", "1x", "axb", "1x3:half", "x:", "1,3,32", "0x3", "-1x3", "a:b:1x3", "1x3:int64:x"])
def test_wrong_input_specs(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_input_spec(text)
    assert error.value.remedy


def test_a_missing_shape_is_asked_for(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="shape"):
        read(files["script"])
    with pytest.raises(UsageError, match="shape"):
        read(make_tiny())


def test_wrong_inputs_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="model takes 1"):
        read(files["script"], inputs=["1x3x8x8", "1x3"])
    with pytest.raises(UsageError, match="model takes image"):
        read(files["script"], inputs=["picture:1x3x8x8"])
    with pytest.raises(UsageError, match="image"):
        read(files["export"], inputs=["1x3x9x9"])


@pytest.mark.parametrize("kind", ["module", "scripted", "traced"])
@pytest.mark.parametrize("given", ["1x7x8x8", "1x3x8x8:int64"])
def test_inputs_that_the_network_fails_on_are_blamed_and_not_the_network(kind: str, given: str) -> None:
    kinds = {"module": lambda x: x, "scripted": torch.jit.script, "traced": lambda x: torch.jit.trace(x, INPUT)}
    with pytest.raises(UsageError, match="the network fails on inputs of") as error:
        read(kinds[kind](make_tiny()), inputs=[given])
    assert "Error" in error.value.cause and "interpreter" not in error.value.cause
    assert "--input" in (error.value.remedy or "")


def test_weights_ask_for_their_network(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="without the network") as error:
        read(files["weights"], inputs=["1x3x8x8"])
    assert "--arch" in error.value.remedy


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("Pair", "unexpected: conv.weight"),
        ("wrong", "returned a int"),
        ("broken", "no disk"),
        ("make_tine", "no function"),
    ],
)
def test_wrong_factories(factory: str, says: str, files: dict[str, Path], network: str) -> None:
    reference = network.replace("make_tiny", factory)
    with pytest.raises(UsageError, match=says):
        read(files["weights"], inputs=["1x3x8x8"], arch=reference)


@pytest.mark.parametrize("reference", ["", "nowhere", "nowhere:f", ":f", "json:"])
def test_references_that_lead_nowhere(reference: str, files: dict[str, Path]) -> None:
    with pytest.raises(UsageError):
        read(files["weights"], inputs=["1x3x8x8"], arch=reference)


def test_weights_of_another_shape(tmp_path: Path, network: str) -> None:
    weights = make_tiny().state_dict()
    weights["head.weight"] = torch.zeros(7, 4)
    torch.save(weights, tmp_path / "w")
    with pytest.raises(UsageError, match=r"\[7, 4\].*\[5, 4\]"):
        read(tmp_path / "w", inputs=["1x3x8x8"], arch=network)


# ---------------------------------------------------------------- what is no model


FOREIGN = {
    "web page": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "empty": b"",
    "text file": b"name: edge\n",
    "unknown kind": bytes(range(200, 256)) * 4,
    "NumPy array": b"\x93NUMPY\x01\x00" + bytes(80),
    "gzip": b"\x1f\x8b\x08" + bytes(80),
}


@pytest.mark.parametrize("seems", FOREIGN)
def test_foreign_files_are_named(seems: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(FOREIGN[seems])
    with pytest.raises(UsageError, match=seems) as error:
        read(path)
    assert error.value.remedy and error.value.where == "model.pt2"


def test_archives_of_something_else(tmp_path: Path) -> None:
    for member, seems in (("x.npy", "NumPy"), ("model.weights.h5", "zip archive"), ("readme", "zip archive")):
        path = tmp_path / "model.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, b"x")
        with pytest.raises(UsageError, match=seems):
            read(path)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder"):
        read(tmp_path)
    (tmp_path / "resnet.pt2").write_bytes(b"x")
    with pytest.raises(UsageError) as error:
        read(tmp_path / "resnte.pt2")
    assert "resnet.pt2" in error.value.remedy
    with pytest.raises(UsageError):
        read(tmp_path / "no" / "such")


def test_tensors_and_other_things_are_no_model(tmp_path: Path) -> None:
    for value in (torch.zeros(3), [1, 2], {"epoch": 3}, {}):
        torch.save(value, tmp_path / "thing")
        with pytest.raises(UsageError, match="neither a module nor a dict"):
            read(tmp_path / "thing", inputs=["1x3"])


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(name: str, share: float, files: dict[str, Path], tmp_path: Path) -> None:
    data = files[name].read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UsageError) as error:
        read(path, **OPTIONS[name])  # type: ignore[arg-type]
    assert error.value.remedy and "\n" not in error.value.cause


@pytest.mark.parametrize("name", ["export", "script", "weights"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_noticed_or_changes_nothing(
    name: str, data: st.DataObject, files: dict[str, Path], tmp_path: Path
) -> None:
    """A flip in padding or in a time stamp of the archive changes no content; any other is refused."""
    content = bytearray(files[name].read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped"
    path.write_bytes(content)
    try:
        loaded = read(path, **OPTIONS[name])  # type: ignore[arg-type]
    except UsageError as error:
        assert error.remedy and "\n" not in error.cause
        return
    with torch.no_grad():
        torch.testing.assert_close(answer(loaded, INPUT), make_tiny()(INPUT), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["legacy", "tensors"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_without_checksums_fail_cleanly_if_at_all(
    name: str, data: st.DataObject, files: dict[str, Path], tmp_path: Path
) -> None:
    content = bytearray(files[name].read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped"
    path.write_bytes(content)
    try:
        assert "no checksum" in read(path, **OPTIONS[name]).notes[0]  # type: ignore[arg-type]
    except EdgeqError as error:
        assert error.remedy and "\n" not in error.cause


def test_a_flipped_weight_is_noticed(files: dict[str, Path], tmp_path: Path) -> None:
    """PyTorch's own reader takes this file as it is."""
    for name in ("export", "script", "weights"):
        with zipfile.ZipFile(files[name]) as archive:
            largest = max(archive.infolist(), key=lambda member: member.file_size if "/data" in member.filename else 0)
            content = bytearray(files[name].read_bytes())
            at = content.index(archive.read(largest)) + largest.file_size // 2
        content[at] ^= 1
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"damaged.*(checksum|CRC)"):
            read(path, **OPTIONS[name])  # type: ignore[arg-type]


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    model = make_tiny()
    model.conv.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"conv\.weight.*NaN"):
        read(model, inputs=["1x3x8x8"])


# ---------------------------------------------------------------- code in files


def test_pickles_run_nothing_without_trust(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    evil = {"state_dict": make_tiny().state_dict(), "extra": Malicious(trap)}
    torch.save(evil, tmp_path / "zip")
    torch.save(evil, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    (tmp_path / "bare").write_bytes(pickle.dumps(Malicious(trap)))
    for name in ("zip", "legacy", "bare"):
        with pytest.raises(UsageError, match=r"mkdir") as error:
            read(tmp_path / name, inputs=["1x3x8x8"], arch="test_load:make_tiny")
        assert "--trust-pickle" in error.value.remedy
        assert not trap.exists()


def test_a_pickled_module_names_what_it_would_import(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"test_load\.Tiny"):
        read(files["module"], inputs=["1x3x8x8"])


def test_a_trusted_module_whose_class_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiny, "__module__", "nowhere_to_be_found")
    monkeypatch.setitem(sys.modules, "nowhere_to_be_found", sys.modules[__name__])
    torch.save(make_tiny(), tmp_path / "module")
    monkeypatch.delitem(sys.modules, "nowhere_to_be_found")
    with pytest.raises(UsageError, match="nowhere_to_be_found"):
        read(tmp_path / "module", inputs=["1x3x8x8"], trust_pickle=True)


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_exported_programs_run_nothing_without_trust(files: dict[str, Path], tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    call = f"__import__('os').mkdir({str(trap)!r})"
    buffer = io.BytesIO()
    torch.save(((Malicious(trap),), {}), buffer)

    def program(change: Callable[[dict[str, object]], object]) -> Callable[[str, bytes], bytes]:
        def apply(name: str, data: bytes) -> bytes:
            if not name.endswith("models/model.json"):
                return data
            tree = json.loads(data)
            change(tree)
            return json.dumps(tree).encode()

        return apply

    def expression(tree: dict) -> None:
        sizes = tree["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = call

    def text_expression(tree: dict) -> None:
        sizes = tree["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = f'FloorDiv("{call}", 1)'

    def node_target(tree: dict) -> None:
        tree["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"

    def file_target(tree: dict) -> None:
        tree["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

    def argument(tree: dict) -> None:
        tree["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [f"image={call}"]

    changes = [
        lambda name, data: buffer.getvalue() if "sample_inputs" in name else data,
        program(lambda tree: tree.update(guards_code=[call])),
        program(lambda tree: tree.update(guards_code=[f"L['image'].size()[{call}] == 1"])),
        program(expression),
        program(text_expression),
        program(node_target),
        program(file_target),
        program(argument),
    ]
    for number, change in enumerate(changes):
        path = tmp_path / f"evil{number}"
        rewrite(files["export"], path, change)
        with pytest.raises(UsageError, match="run code"):
            answer(read(path), INPUT)
        assert not trap.exists()


class Members:
    """An exported program taken apart, for a test to put something else together."""

    WEIGHTS = "data/weights/model_weights_config.json"
    CONSTANTS = "data/constants/model_constants_config.json"
    PROGRAM = "models/model.json"

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            self.root = archive.namelist()[0].partition("/")[0] + "/"
            self.content = {name.removeprefix(self.root): archive.read(name) for name in archive.namelist()}

    def json(self, name: str) -> dict:
        return json.loads(self.content[name])

    def pickled_weight(self, member: str) -> None:
        """Has the first weight unpickled from a member."""
        tree = self.json(self.WEIGHTS)
        next(iter(tree["config"].values())).update(use_pickle=True, path_name=member)
        self.content[self.WEIGHTS] = json.dumps(tree).encode()

    def save(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in self.content.items():
                archive.writestr(self.root + name, data)


def code_in_sample_inputs(members: Members, code: bytes, _: str) -> None:
    members.content["data/sample_inputs/model.PT"] = code
    del members.content["data/sample_inputs/model.pt"]


def code_in_weight_of_other_case(members: Members, code: bytes, _: str) -> None:
    members.pickled_weight("WEIGHT_0")
    members.content["data/weights/weight_0"] = code


def code_in_weight_elsewhere(members: Members, code: bytes, _: str) -> None:
    members.pickled_weight("/weight")
    members.content["/weight"] = code


def code_in_weight_of_nested_model(members: Members, code: bytes, _: str) -> None:
    members.pickled_weight("weight_0")
    for name in [name for name in members.content if "model" in name.rpartition("/")[2]]:
        members.content[name.replace("/model", "/deep/model")] = members.content.pop(name)
    members.content["data/weights/deep/weight_0"] = b""
    members.content["data/weights/weight_0"] = code


def code_in_object(members: Members, code: bytes, _: str) -> None:
    meta = next(iter(members.json(members.WEIGHTS)["config"].values()))["tensor_meta"]
    code += bytes(-len(code) % 4)
    meta.update(sizes=[{"as_int": len(code) // 4}], strides=[{"as_int": 1}])
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": meta}
    members.content[members.CONSTANTS] = json.dumps({"config": {"x": entry}}).encode()
    members.content["data/constants/OPAQUE_OBJ_0"] = code


def code_in_tensor_called_metadata(members: Members, _: bytes, call: str) -> None:
    tree = json.loads(members.content[members.PROGRAM].replace(b'"image"', b'"metadata"'))
    sizes = tree["graph_module"]["graph"]["tensor_values"]["metadata"]["sizes"]
    sizes[0] = {"as_expr": {"expr_str": call, "hint": None}}
    members.content[members.PROGRAM] = json.dumps(tree).encode()


def code_in_nested_graph(members: Members, _: bytes, call: str) -> None:
    tree = members.json(members.PROGRAM)
    graph = members.json(members.PROGRAM)["graph_module"]["graph"]
    graph["tensor_values"]["image"]["sizes"][0] = {"as_expr": {"expr_str": call, "hint": None}}
    argument = {"as_string_to_argument": {"metadata": {"as_graph": {"name": "g", "graph": graph}}}}
    tree["graph_module"]["graph"]["nodes"][0]["inputs"].append({"name": "x", "arg": argument, "kind": 1})
    members.content[members.PROGRAM] = json.dumps(tree).encode()


@pytest.mark.parametrize(
    "hide",
    [
        code_in_sample_inputs,
        code_in_weight_of_other_case,
        code_in_weight_elsewhere,
        code_in_weight_of_nested_model,
        code_in_object,
        code_in_tensor_called_metadata,
        code_in_nested_graph,
    ],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_vetted_is_what_pytorch_reads(
    hide: Callable[[Members, bytes, str], None], trusted: bool, files: dict[str, Path], tmp_path: Path
) -> None:
    """PyTorch ignores the case of members' names, joins names to paths, and lets a tensor have any name."""
    trap = tmp_path / "trap"
    buffer = io.BytesIO()
    if hide is code_in_object:
        buffer.write(pickle.dumps(Malicious(trap)))
    else:
        torch.save(((Malicious(trap),), {}), buffer)
    members = Members(files["export"])
    hide(members, buffer.getvalue(), f"__import__('os').mkdir({str(trap)!r})")
    members.save(tmp_path / "evil")
    if trusted:
        # The code is where PyTorch finds it: otherwise the refusal would prove nothing.
        with contextlib.suppress(EdgeqError):
            read(tmp_path / "evil", trust_pickle=True)
        assert trap.exists()
        return
    with pytest.raises(UsageError):
        read(tmp_path / "evil")
    assert not trap.exists()


@pytest.mark.parametrize("config", [[], {}, {"config": [1]}, {"config": {"a": "b"}}, {"config": {"a": {}}}])
def test_lists_of_weights_that_are_none(config: object, files: dict[str, Path], tmp_path: Path) -> None:
    members = Members(files["export"])
    members.content[members.WEIGHTS] = json.dumps(config).encode()
    members.save(tmp_path / "x")
    with pytest.raises(UsageError, match="not what"):
        read(tmp_path / "x")


def test_torchscript_touches_no_files_without_trust(tmp_path: Path) -> None:
    trap = str(tmp_path / "trap")

    class Writes(torch.nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, self.path)
            return x + 1

    torch.jit.script(Writes(trap)).save(str(tmp_path / "script"))
    with pytest.raises(UsageError, match="touches files") as error:
        read(tmp_path / "script", inputs=["1x3"])
    assert "--trust-pickle" in error.value.remedy
    assert not Path(trap).exists()


def test_an_untouched_copy_of_an_exported_program_is_read(files: dict[str, Path], tmp_path: Path) -> None:
    rewrite(files["export"], tmp_path / "copy", lambda name, data: data)
    assert read(tmp_path / "copy").dynamic_batch


def test_guards_and_bounds_of_honest_programs_are_read(tmp_path: Path) -> None:
    class Bounded(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > 5:
                x = x * 2
            return x.reshape(x.shape[0] // 2, 2, -1).mean(1) + y[: x.shape[0] // 2]

    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        Bounded(), (torch.zeros(4, 6), torch.zeros(4, 6)), dynamic_shapes=({0: auto}, {0: auto})
    )
    torch.export.save(program, tmp_path / "bounded.pt2")
    loaded = read(tmp_path / "bounded.pt2")
    assert loaded.input_names == ("x", "y")


def test_an_operator_that_is_not_here(files: dict[str, Path], tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"torch.ops.aten.relu.default", b"torch.ops.elsewhere.relu.default")

    rewrite(files["export"], tmp_path / "x", change)
    with pytest.raises(UnsupportedError, match="elsewhere"):
        read(tmp_path / "x")


# ---------------------------------------------------------------- networks that are not supported


def test_eight_bit_floats_are_refused() -> None:
    network = make_tiny()
    network.register_buffer("scale", torch.ones(2).to(torch.float8_e4m3fn))
    with pytest.raises(UnsupportedError, match=r"scale.*float8"):
        read(network, inputs=["1x3x8x8"])


def test_training_mode_in_an_exported_program_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(make_tiny().train(), (INPUT,)), tmp_path / "training.pt2")
    with pytest.raises(UnsupportedError, match="training mode"):
        read(tmp_path / "training.pt2")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("holds", ["module", "program", "decomposed program", "file", "torchscript"])
def test_batch_norms_without_running_statistics_are_named(holds: str, affine: bool, tmp_path: Path) -> None:
    norm = torch.nn.BatchNorm2d(3, affine=affine, track_running_stats=False)
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), norm), torch.nn.ReLU()).eval()
    program = torch.export.export(model, (INPUT,))
    torch.export.save(program, tmp_path / "file.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(model, INPUT)
    source = {
        "module": model,
        "program": program,
        "decomposed program": program.run_decompositions({}),
        "file": tmp_path / "file.pt2",
        "torchscript": script,
    }[holds]
    with pytest.raises(UnsupportedError) as error:
        read(source, inputs=["2x3x8x8"])
    # TorchScript says where an operator is from by its weights alone.
    layer = "0.1" if affine or holds != "torchscript" else "batch_norm"
    assert error.value.cause.startswith(f"'{layer}' normalises by the batch's own statistics")
    assert "track_running_stats=True" in error.value.remedy and "\n" not in error.value.cause


def test_instance_norms_are_read() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.InstanceNorm2d(3)).eval()
    assert read(model, inputs=["1x3x8x8"]).dynamic_batch
    assert read(torch.export.export(model, (INPUT,)).run_decompositions())


@pytest.mark.parametrize("model", [Remembers(), Counts()])
def test_state_is_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError):
        read(model, inputs=["1x4"])
    torch.jit.script(model).save(str(tmp_path / "state"))
    with pytest.raises(UnsupportedError):
        read(tmp_path / "state", inputs=["1x4"])


def test_branches_on_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot trace"):
        read(Branches(), inputs=["1x4"])
    torch.jit.script(Branches()).save(str(tmp_path / "branches"))
    with pytest.raises(UnsupportedError) as error:
        read(tmp_path / "branches", inputs=["1x4"])
    assert error.value.remedy and "\n" not in error.value.cause


def test_random_answers_are_refused() -> None:
    class Noisy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(UnsupportedError, match="otherwise"):
        read(Noisy(), inputs=["1x4"])


# ---------------------------------------------------------------- real models


@needs_zoo
def test_torchscript_of_a_real_network_agrees_with_its_export() -> None:
    script = read(ZOO / "models" / "resnet20_cifar10.torchscript.pt", inputs=["1x3x32x32"])
    export = read(ZOO / "models" / "resnet20_cifar10.pt2")
    x = torch.linspace(-2, 2, 3 * 3 * 32 * 32).reshape(3, 3, 32, 32)
    torch.testing.assert_close(answer(script, x), answer(export, x), rtol=1e-4, atol=1e-4)


@needs_zoo
def test_a_network_with_state_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="prim::SetAttr"):
        read(ZOO / "extra" / "silero_vad.jit", inputs=["1x512"])


@needs_zoo
@pytest.mark.parametrize("name", ["dscnn_kws", "stories260k"])
def test_real_exports_are_read_as_they_are(name: str) -> None:
    path = ZOO / "models" / f"{name}.pt2"
    loaded = read(path)
    assert loaded.kind == "torch.export"
    assert loaded.input_names == {"dscnn_kws": ("x",), "stories260k": ("tokens",)}[name]
    assert loaded.dynamic_batch == (name == "dscnn_kws")


@needs_zoo
@pytest.mark.parametrize(
    ("file", "kind", "rounds"),
    [
        ("dscnn_kws_reference_int8.tflite", "TFLite", True),
        ("tflite/resnet8_cifar10_int8.tflite", "TFLite", True),
        ("face/slim_320.tflite", "TFLite", False),
        ("face/slim_320.onnx", "ONNX", False),
    ],
)
def test_real_files_of_other_kinds(file: str, kind: str, rounds: bool) -> None:
    model = load(ZOO / "extra" / file)
    assert model.kind == kind and (model.grids is not None) == rounds

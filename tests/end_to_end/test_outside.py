"""What a file names must lie in its own folder: nothing elsewhere is read or written for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import device_models as models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.devices import Candidate, open_device
from edgeq.errors import UsageError
from edgeq.lock import Damaged, read_lock, write_lock
from edgeq.reading import within
from edgeq.registry.load import load_profile, load_target
from edgeq.runtimes import runtime


def moved_out(path: Path, entries: list[tuple[str, str]]) -> Path:
    """The quantized model with its weights kept as `entries` say."""
    model = onnx.load(str(models.write_quantized_onnx(path)))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    keep(weights, entries)
    path.write_bytes(model.SerializeToString())
    return path


def keep(tensor: TensorProto, entries: list[tuple[str, str]]) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder three deep, as an archive leaves it, with a victim beside and above."""
    folder = tmp_path / "pkg/a/b"
    folder.mkdir(parents=True)
    (tmp_path / "victim").write_bytes(models.WEIGHT.tobytes())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/w.bin").write_bytes(models.WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "victim")
    (folder / "folder").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.mark.parametrize(
    "name",
    ["../../../victim", "x/../../../../victim", "{tmp}/victim", "link.bin", "folder/w.bin", "loop", "..\\victim", "",
     " ", ".", "C:\\victim", "n" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("by", ["onnxruntime", "openvino"])
def test_external_data_outside_of_the_models_folder_is_refused(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, by: str
) -> None:
    pytest.importorskip("openvino")
    path = moved_out(package / "m.onnx", [("location", name.replace("{tmp}", str(tmp_path)))])
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if not file.is_symlink()}
    with pytest.raises(UsageError) as caught:
        open_device("local").outputs(Candidate(path, by), {"x": models.images(1)})  # type: ignore[arg-type]
    assert caught.value.where == str(path) and caught.value.remedy
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if not file.is_symlink()} == before


def test_external_data_beside_the_model_is_used_also_by_way_of_a_link_within(package: Path) -> None:
    (package / "deep").mkdir()
    (package / "deep/w.bin").write_bytes(b"\0" * 3 + models.WEIGHT.tobytes())
    (package / "near.bin").symlink_to("deep/w.bin")
    x = models.images(2)
    for name in ("deep/w.bin", "./deep/w.bin", "near.bin"):
        path = moved_out(package / "m.onnx", [("location", name), ("offset", "3"), ("length", str(models.WEIGHT.size))])
        (y,) = open_device("local").outputs(Candidate(path, "onnxruntime"), {"x": x})
        np.testing.assert_array_equal(y, models.quantized_answer(x))


@pytest.mark.parametrize(
    ("key", "value"),
    [("offset", "-1"), ("length", "-5"), ("offset", "99999999999"), ("length", "9" * 5000), ("length", "1e3"),
     ("offset", "0x10"), ("offset", ""), ("length", "\N{ARABIC-INDIC DIGIT ONE}"), ("offset", "12")],
)  # fmt: skip
def test_places_in_external_data_are_within_the_file(package: Path, key: str, value: str) -> None:
    (package / "w.bin").write_bytes(models.WEIGHT.tobytes())
    entries = [("location", "w.bin"), ("length", "12"), (key, value)]
    with pytest.raises(UsageError, match=r"no number of bytes|beyond the end"):
        runtime("onnxruntime").companions(moved_out(package / "m.onnx", entries))


def in_a_sparse_initializer(model: onnx.ModelProto) -> TensorProto:
    sparse = model.graph.sparse_initializer.add()
    sparse.dims.append(4)
    return sparse.indices


def in_a_branch(model: onnx.ModelProto) -> TensorProto:
    inner = helper.make_graph([], "inner", [], [], [numpy_helper.from_array(np.zeros(3, np.float32), "t")])
    outer = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=inner)], "outer", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=outer))
    return model.graph.node[-1].attribute[0].g.node[0].attribute[0].g.initializer[0]


def in_an_attribute(model: onnx.ModelProto) -> TensorProto:
    value = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    model.graph.node.append(helper.make_node("Constant", [], ["o"], value=value))
    return model.graph.node[-1].attribute[0].t


def in_a_function(model: onnx.ModelProto) -> TensorProto:
    value = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    node = helper.make_node("Constant", [], ["o"], value=value)
    model.functions.append(helper.make_function("own", "f", [], ["o"], [node], []))
    return model.functions[0].node[0].attribute[0].t


@pytest.mark.parametrize("place", [in_a_sparse_initializer, in_a_branch, in_an_attribute, in_a_function])
def test_external_data_is_found_wherever_a_tensor_can_be(
    package: Path, place: Callable[[onnx.ModelProto], TensorProto]
) -> None:
    path = models.write_quantized_onnx(package / "m.onnx")
    model = onnx.load(str(path))
    keep(place(model), [("location", "../../../victim")])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="no place in its own folder"):
        runtime("onnxruntime").companions(path)


def test_weights_beside_an_xml_file_are_no_link_to_elsewhere(package: Path, tmp_path: Path) -> None:
    (package / "m.xml").write_text("<net/>")
    (package / "m.bin").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match=r"m\.bin"):
        runtime("openvino").companions(package / "m.xml")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "plans/../../secret", "out"])
def test_a_lock_names_files_of_its_own_build_alone(tmp_path: Path, name: str) -> None:
    build = tmp_path / "build"
    build.mkdir()
    (tmp_path / "secret").write_text("secret")
    (build / "out").symlink_to(tmp_path / "secret")
    (build / "m").write_text("m")
    write_lock(build, model="m", data={}, plans={}, files=["m"], versions={})
    lock = json.loads((build / "edgeq.lock").read_text())
    lock["files"] = {name: hashlib.sha256(b"secret").hexdigest()}
    (build / "edgeq.lock").write_text(json.dumps(lock))
    with pytest.raises(Damaged, match="no place in its own folder"):
        read_lock(build)


@pytest.mark.parametrize("key", ["extends", "default_profile"])
@pytest.mark.parametrize(
    "name", ["../base.toml", "/{tmp}/base.toml", "~/base.toml", "sub/../../base.toml", "link.toml"]
)
def test_target_files_name_files_beside_them_alone(tmp_path: Path, key: str, name: str) -> None:
    folder = tmp_path / "targets"
    folder.mkdir()
    (tmp_path / "base.toml").write_text('extends = "arm-neon"\nname = "base"\n')
    (folder / "link.toml").symlink_to(tmp_path / "base.toml")
    name = name.replace("{tmp}", str(tmp_path))
    base = "" if key == "extends" else 'extends = "arm-neon"\n'
    (folder / "own.toml").write_text(f'{base}{key} = "{name}"\nname = "own"\n')
    with pytest.raises(UsageError) as caught:
        load_target(str(folder / "own.toml"))
    assert caught.value.where.endswith(f"own.toml: {key}")


def test_a_profile_beside_a_target_file_is_its_default_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text('extends = "raspberry-pi-5"\nname = "slow"\ntarget = "own"\n')
    (tmp_path / "own.toml").write_text('extends = "arm-neon"\nname = "own"\ndefault_profile = "./slow.toml"\n')
    default = load_target(str(tmp_path / "own.toml")).default_profile
    assert default is not None and load_profile(default).name == "slow"


def test_a_folder_by_way_of_a_link_is_a_folder_like_any(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").touch()
    (tmp_path / "link").symlink_to("real")
    assert within(tmp_path / "link", "file", "x") == tmp_path / "link/file"

"""Keras files and SavedModels: what carries code is refused before anything reads it; the rest TensorFlow converts."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.errors import EdgeqError, MissingExtraError, UsageError
from edgeq.frontends.load import load
from edgeq.frontends.tensorflow.recognise import is_keras, is_saved_model, sha256_folder
from edgeq.frontends.tensorflow.vet import vet_keras

DENSE = {"module": "keras.layers", "class_name": "Dense", "config": {"name": "dense", "units": 3}}


def archive(path: Path, layer: Any) -> Path:
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [layer]}}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", json.dumps(config))
        file.writestr("metadata.json", "{}")
        file.writestr("model.weights.h5", b"")
    return path


def test_what_keras_would_run_is_refused(tmp_path: Path) -> None:
    plain = archive(tmp_path / "plain.keras", DENSE)
    assert is_keras(plain)
    vet_keras(plain)
    function = {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}
    for number, layer in enumerate([
        {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "mine", "function": function}},
        {"module": "os", "class_name": "system", "config": {}},
        {"module": "keras.layers", "class_name": "Dense", "config": {"activation": function}},
        {"module": None, "class_name": "Own", "registered_name": "pack>Own", "config": {}},
        {"module": "tensorflow.io", "class_name": "write_file", "config": "write_file"},
        {"module": "builtins", "class_name": "print", "config": "print"},
        {"module": "keras.utils", "class_name": "get_file", "config": "get_file"},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/tmp/other"}},
        {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/hostname"}},
        {"class_name": "TFOpLambda", "config": {"function": "io.write_file"}},
    ]):  # fmt: skip
        with pytest.raises(UsageError, match="would run code"):
            load(archive(tmp_path / f"{number}.keras", layer))


def test_damaged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras", DENSE)
    with zipfile.ZipFile(tmp_path / "n.keras", "w") as file:
        file.writestr("config.json", b"{\xff")
        file.writestr("model.weights.h5", b"")
    (tmp_path / "o.keras").write_bytes(path.read_bytes()[:-30])
    (tmp_path / "p.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    for name in ("n.keras", "o.keras", "p.h5"):
        with pytest.raises(EdgeqError) as error:
            load(tmp_path / name)
        assert error.value.remedy


def test_a_saved_model_is_all_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")
    assert is_saved_model(folder)
    before = sha256_folder(folder)
    (folder / "more").write_bytes(b"1")
    assert sha256_folder(folder) != before
    (folder / "variables").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match="no place in its own folder"):
        load(folder)


def test_a_saved_model_that_would_write_is_refused(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow", reason="the extra tensorflow is not installed")
    target = tmp_path / "written"

    class Written(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32)])  # type: ignore[untyped-decorator]
        def f(self, x: Any) -> Any:
            tf.print("all yours", output_stream=f"file://{target}")
            return {"y": tf.nn.relu(x)}

    module = Written()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.f)
    with pytest.raises(UsageError, match=r"would run code.*PrintV2"):
        load(tmp_path / "saved")
    assert not target.exists()


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"edgeq\[tensorflow\]"):
        load(archive(tmp_path / "m.keras", DENSE))


def test_a_network_of_keras(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", reason="the extra tensorflow is not installed")
    pytest.importorskip("tensorflow", reason="the extra tensorflow is not installed")
    keras.utils.set_random_seed(0)
    network = keras.Sequential([
        keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
        keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5),
    ])  # fmt: skip
    network.save(tmp_path / "m.keras")
    network.save(tmp_path / "m.h5")
    network.export(tmp_path / "folder")
    image = np.random.default_rng(0).normal(0, 1, (3, 8, 8, 3)).astype(np.float32)
    wanted = network.predict(image, verbose=0)
    import torch

    for name, kind in (("m.keras", "Keras"), ("m.h5", "Keras"), ("folder", "SavedModel")):
        model = load(tmp_path / name)
        assert model.kind == kind and model.inputs[0].shape == (None, 8, 8, 3)
        with torch.no_grad():
            (found,) = model.exported().module()(torch.from_numpy(image))
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-4)

"""Folders of language models that are damaged, are of another kind, or would run code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgeq.errors import EdgeqError, UnsupportedError, UsageError
from edgeq.hugging_face.folder import is_decoder
from edgeq.hugging_face.tokenizer import load_tokenizer
from edgeq.language.decoder import Decoder
from edgeq.language.float_onnx import refuse_another, write_float
from edgeq.language.folder import open_folder


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["tied"], tmp_path / "model"))


def changed(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_whole_folder_is_read(folder: Path) -> None:
    found = open_folder(folder)
    assert found.architecture == "LlamaForCausalLM"
    assert [file.name for file in found.weights] == ["model.safetensors"]
    assert is_decoder(folder)
    assert load_tokenizer(folder)("the cat")["input_ids"]


def test_the_digest_follows_weights_and_tokenizer(folder: Path) -> None:
    before = open_folder(folder).sha256
    assert open_folder(folder).sha256 == before
    with (folder / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    assert open_folder(folder).sha256 != before


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"architectures": ["BertModel"]}, UnsupportedError, "BertModel"),
        ({"architectures": None}, UnsupportedError, "not told"),
        ({"auto_map": {"AutoModel": "code.Model"}}, UsageError, "auto_map"),
    ],
)
def test_other_kinds_are_refused(folder: Path, changes: dict[str, object], kind: type[EdgeqError], told: str) -> None:
    with pytest.raises(kind, match=told):
        open_folder(changed(folder, **changes))


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_config_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json"):
        open_folder(folder)


def test_weights_that_are_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights"):
        open_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(UnsupportedError, match="pickles"):
        open_folder(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_an_index_that_leads_out(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(UsageError, match="leads out"):
        open_folder(folder)


def test_an_index_of_files_that_are_gone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "part2.safetensors"}}))
    with pytest.raises(UsageError, match=r"part2\.safetensors"):
        open_folder(folder)


def test_a_tokenizer_that_is_broken(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UsageError, match="tokenizer cannot be read"):
        load_tokenizer(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UsageError, match="tokenizer cannot be read"):
        load_tokenizer(folder)


def test_weights_that_do_not_fit_the_config_make_no_model(folder: Path, tmp_path: Path) -> None:
    """transformers would go on with random numbers."""
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError):
        write_float(open_folder(changed(folder, num_hidden_layers=3)), tmp_path / "out")


def test_weights_that_are_cut_off(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match="builder cannot make it"):
        write_float(open_folder(folder), tmp_path / "out")


def test_a_float_file_that_is_another_model(
    folder: Path, decoders: dict[str, Decoder], folders: dict[str, Path], tmp_path: Path
) -> None:
    """The builder writes a Mistral with a window as one without."""
    refuse_another(open_folder(folders["apart"]), decoders["apart"])
    with pytest.raises(UnsupportedError, match="does not answer as transformers does"):
        refuse_another(
            open_folder(changed(folder, rope_parameters={"rope_type": "default", "rope_theta": 50.0})), decoders["tied"]
        )

"""Folders of language models that are damaged, are of another kind, or would run code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from edgeq.errors import EdgeqError, UnsupportedError, UsageError
from edgeq.hugging_face.folder import is_decoder
from edgeq.hugging_face.tokenizer import load_tokenizer
from edgeq.language.decoder import Decoder
from edgeq.language.deploy import told_of
from edgeq.language.float_onnx import refuse_another, write_float
from edgeq.language.folder import open_folder
from edgeq.language.generate import stops
from edgeq.language.kept import float_decoder


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


def test_a_build_in_the_folder_is_no_part_of_the_model(folder: Path) -> None:
    before = open_folder(folder).sha256
    for name in ("build", ".build.partial-7"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    (folder / "build" / "edgeq.lock").write_text("")
    assert open_folder(folder).sha256 == before
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"vocab_size": -3}, "vocab_size is '-3'"),
        ({"vocab_size": None}, "no vocab_size"),
    ],
)
def test_a_config_with_no_number_of_words(folder: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_folder(changed(folder, **changes))


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"eos_token_id": [2,', '{"eos_token_id": "two"}', '{"eos_token_id": [true]}']
)
def test_a_generation_config_that_is_damaged(folder: Path, content: str) -> None:
    """Others pass over it, and end answers at another token."""
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(UsageError, match=r"generation_config\.json"):
        open_folder(folder)
    with pytest.raises(UsageError, match=r"generation_config\.json"):
        stops(folder, 2)


def test_what_ends_an_answer(folder: Path) -> None:
    for content, wanted in (({"eos_token_id": [5, 7]}, [5, 7]), ({"eos_token_id": 5}, [5]), ({}, [2])):
        (folder / "generation_config.json").write_text(json.dumps(content))
        assert stops(open_folder(folder).path, 2) == wanted
    (folder / "generation_config.json").unlink()
    assert stops(folder, 2) == [2] and stops(folder, None) == []


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
    with pytest.raises(UsageError, match="weights cannot be read"):
        write_float(open_folder(folder), tmp_path / "out")


def without(folder: Path, part: str) -> Path:
    """Removes tensors from the folder's file."""
    tensors = {name: one for name, one in load_file(folder / "model.safetensors").items() if part not in name}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("part", ["input_layernorm", "model.norm"])
def test_factors_that_are_missing(
    folder: Path, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoders: dict[str, Decoder]
) -> None:
    """Factors of a norm are 1 where they are missing, for the builder as for transformers, and both agree."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    found = open_folder(without(folder, part))
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match=f"{part}.weight is not in its files"):
        write_float(found, tmp_path / "out")
    with pytest.raises(UnsupportedError, match=f"{part}.weight is not in its files"):
        refuse_another(found, decoders["tied"])


def test_layers_that_the_config_does_not_tell_of(folder: Path, tmp_path: Path) -> None:
    """transformers leaves them away in silence."""
    found = float_decoder(open_folder(changed(folder, num_hidden_layers=1)), tmp_path)
    assert all(name.startswith("model.layers.1.") for name in found.unread) and len(found.unread) == 9
    (told,) = told_of(found)
    assert "9 tensors are in the model's files" in told and "model.layers.1.input_layernorm.weight" in told


def test_code_beside_the_model_does_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoders: dict[str, Decoder]
) -> None:
    for name in ("torch", "transformers", "onnxruntime_genai"):
        (folder / f"{name}.py").write_text("raise SystemExit('code of the folder ran')")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(folder)
    assert write_float(open_folder(Path()), tmp_path / "out").is_file()
    assert refuse_another(open_folder(Path()), decoders["tied"]) == ()


def test_a_float_file_that_is_another_model(
    folder: Path, decoders: dict[str, Decoder], folders: dict[str, Path], tmp_path: Path
) -> None:
    """The builder writes a Mistral with a window as one without."""
    refuse_another(open_folder(folders["apart"]), decoders["apart"])
    with pytest.raises(UnsupportedError, match="does not answer as transformers does"):
        refuse_another(
            open_folder(changed(folder, rope_parameters={"rope_type": "default", "rope_theta": 50.0})), decoders["tied"]
        )

"""Encoders from folders: the program answers as transformers does on texts of several lengths, and what is wrong with a
folder is told by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_folders as folders
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import edgeq
from edgeq.cache import Cache
from edgeq.errors import UnsupportedError, UsageError
from edgeq.frontends.kept import load_kept
from edgeq.hugging_face.folder import is_decoder
from edgeq.model.model import Model

TEXTS = ["good film", "a very bad book was not a good song", "the meal is cold"]


def tokens(folder: Path, length: int = folders.LENGTH) -> dict[str, torch.Tensor]:
    made = folders.transformers.AutoTokenizer.from_pretrained(folder)
    return dict(made(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt"))


def answers(model: Model, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    program = model.exported().module()
    with torch.no_grad():
        found: Any = program(*(inputs[spec.name] for spec in model.inputs))
    (value,) = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else (found,)
    return np.asarray(value)


def test_an_encoder_gives_its_last_hidden_state(tmp_path: Path) -> None:
    net = folders.encoder(tmp_path)
    model = edgeq.load(tmp_path)
    assert [str(spec) for spec in model.inputs] == [
        f"{name} [N, {folders.LENGTH}] int64" for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert model.output_names == ("last_hidden_state",)
    inputs = tokens(tmp_path)
    with torch.no_grad():
        wanted = net(**inputs).last_hidden_state.numpy()
    counted = inputs["attention_mask"].numpy() == 1
    np.testing.assert_allclose(answers(model, inputs)[counted], wanted[counted], atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("told", "pooled"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_pooling_becomes_part_of_the_network(
    tmp_path: Path, told: dict[str, Any], pooled: str, normalize: bool
) -> None:
    net = folders.encoder(tmp_path)
    folders.sentences(tmp_path, "Transformer", "Pooling", *["Normalize"] * normalize, pooling=told)
    model = edgeq.load(tmp_path)
    assert model.output_names == ("sentence_embedding",)
    made = folders.transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = []
    for text in TEXTS:  # alone and not filled up: no mask plays a part
        with torch.no_grad():
            hidden = net(**made(text, return_tensors="pt")).last_hidden_state[0].numpy()
        vector = hidden.mean(0) if pooled == "mean" else hidden[0]
        wanted.append(vector / np.sqrt((vector**2).sum()) if normalize else vector)
    np.testing.assert_allclose(answers(model, tokens(tmp_path)), np.stack(wanted), atol=1e-4)


def test_a_classifier_gives_logits_of_texts_and_of_pairs(tmp_path: Path) -> None:
    net = folders.classifier(tmp_path)
    model = edgeq.load(tmp_path, inputs=["1x16:int64"])
    assert model.output_names == ("logits",)
    assert model.inputs[0].shape == (None, 16)
    made = folders.transformers.AutoTokenizer.from_pretrained(tmp_path)
    pair = dict(made(TEXTS[0], TEXTS[2], padding="max_length", max_length=16, return_tensors="pt"))
    assert pair["token_type_ids"].any()
    for inputs in (tokens(tmp_path, 16), pair):
        with torch.no_grad():
            np.testing.assert_allclose(answers(model, inputs), net(**inputs).logits.numpy(), atol=1e-4)


def test_without_token_types_there_are_two_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = folders.transformers.DistilBertConfig(
        vocab_size=len(folders.SPECIAL) + len(folders.WORDS), dim=32, n_layers=1, n_heads=2, hidden_dim=64,
        max_position_embeddings=16,
    )  # fmt: skip
    net = folders.transformers.DistilBertModel(settings).eval()
    net.save_pretrained(tmp_path)
    folders.save_tokenizer(tmp_path)
    model = edgeq.load(tmp_path)
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask"]
    inputs = tokens(tmp_path)
    with torch.no_grad():
        wanted = net(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    counted = inputs["attention_mask"].numpy() == 1
    np.testing.assert_allclose(answers(model, inputs)[counted], wanted.numpy()[counted], atol=1e-4)


def test_weights_in_half_precision_become_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folders.transformers.BertModel(folders.config()).to(torch.bfloat16).save_pretrained(tmp_path)
    folders.save_tokenizer(tmp_path)
    model = edgeq.load(tmp_path)
    assert any("bfloat16" in note for note in model.notes)
    assert {str(value.dtype) for value in model.state.values() if value.dtype.kind == "f"} == {"float32"}


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    net = folders.encoder(tmp_path / "sharded", max_shard_size="40KB")
    names = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(names) > 1
    inputs = tokens(tmp_path / "sharded")
    with torch.no_grad():
        wanted = net(**inputs).last_hidden_state.numpy()
    counted = inputs["attention_mask"].numpy() == 1
    np.testing.assert_allclose(answers(edgeq.load(tmp_path / "sharded"), inputs)[counted], wanted[counted], atol=1e-4)


def test_a_pooler_that_nobody_reads_may_be_missing(tmp_path: Path) -> None:
    folders.encoder(tmp_path)
    _edit_weights(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("pooler")})
    assert edgeq.load(tmp_path).output_names == ("last_hidden_state",)


def _edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def _edit_config(folder: Path, **more: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def _without_layer(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: {n: t for n, t in tensors.items() if "layer.1.output.dense" not in n})


def _of_other_shape(folder: Path) -> None:
    name = "encoder.layer.0.intermediate.dense.bias"
    _edit_weights(folder, lambda tensors: tensors | {name: torch.zeros(7)})


def _cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _index(folder: Path, file: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"embeddings": file}}))


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _linked_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "outside.safetensors")


BROKEN: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: (f / "config.json").write_text("{"), "no valid JSON"),
    (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    (lambda f: _edit_config(f, auto_map={"AutoModel": "modeling.Net"}), "auto_map"),
    (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    (_cut_short, "cannot be read"),
    (lambda f: _edit_config(f, hidden_size="wide"), "cannot be read"),
    (lambda f: _edit_config(f, intermediate_size=128), "other shapes.*intermediate"),
    (_without_layer, "missing from its weights.*encoder.layer.1.output.dense.bias"),
    (_of_other_shape, "other shapes.*encoder.layer.0.intermediate.dense.bias"),
    (lambda f: _index(f, "../outside.safetensors"), "leads out of the folder"),
    (lambda f: _index(f, "/etc/passwd"), "leads out of the folder"),
    (lambda f: _index(f, "absent.safetensors"), "which is not there"),
    (_linked_out, "leads out of the folder"),
    (lambda f: _edit_config(f, quantization_config={"quant_method": "gptq", "bits": 4}), "quantized already"),
    (_pickled, "pickles, which run code"),
    (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer cannot be read"),
    (lambda f: (f / "modules.json").write_text("{}"), "no list of modules|its steps are none"),
    (lambda f: (f / "1_Pooling").mkdir(), "is missing, and the folder has a 1_Pooling"),
]


@pytest.mark.parametrize(("harm", "told"), BROKEN, ids=[told for _, told in BROKEN])
def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path, harm: Callable[[Path], Any], told: str) -> None:
    folder = tmp_path / "net"
    folders.encoder(folder)
    harm(folder)
    with pytest.raises((UsageError, UnsupportedError), match=told) as error:
        edgeq.load(folder)
    assert "net" in error.value.where and error.value.remedy


def test_pickled_weights_are_read_where_they_are_trusted(tmp_path: Path) -> None:
    net = folders.encoder(tmp_path)
    _pickled(tmp_path)
    inputs = tokens(tmp_path)
    with torch.no_grad():
        wanted = net(**inputs).last_hidden_state.numpy()
    counted = inputs["attention_mask"].numpy() == 1
    found = answers(edgeq.load(tmp_path, trust_pickle=True), inputs)
    np.testing.assert_allclose(found[counted], wanted[counted], atol=1e-4)


@pytest.mark.parametrize(
    ("kinds", "pooling", "told"),
    [
        (("Transformer", "Pooling", "Dense"), None, "Dense"),
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "mean and cls",
        ),
        (("Transformer", "Pooling"), {}, "not said"),
    ],
)
def test_other_steps_are_refused(tmp_path: Path, kinds: tuple[str, ...], pooling: Any, told: str) -> None:
    folders.encoder(tmp_path)
    folders.sentences(tmp_path, *kinds, pooling=pooling)
    with pytest.raises(UnsupportedError, match=told):
        edgeq.load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("LlamaForCausalLM", "llama"),
        ("GPT2Model", "gpt2"),
        ("T5Model", "t5"),
        ("BartModel", "bart"),
        ("ViTModel", "vit"),
        ("BertForMaskedLM", "bert"),
    ],
)
def test_other_architectures_are_refused_with_what_is_supported(tmp_path: Path, architecture: str, kind: str) -> None:
    folders.encoder(tmp_path)
    _edit_config(tmp_path, architectures=[architecture], model_type=kind, is_encoder_decoder=kind in ("t5", "bart"))
    with pytest.raises(UnsupportedError, match=architecture) as error:
        edgeq.load(tmp_path)
    assert "BERT" in error.value.remedy
    assert is_decoder(tmp_path) is (architecture == "LlamaForCausalLM")


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    folders.encoder(tmp_path)
    with pytest.raises(UsageError, match="17 tokens, and the network has 16"):
        edgeq.load(tmp_path, inputs=["1x17:int64"])
    with pytest.raises(UsageError, match="one number of tokens"):
        edgeq.load(tmp_path, inputs=["1x3x8:int64"])


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is a folder"):
        edgeq.load(tmp_path)


def test_a_kept_model_is_that_of_its_weights_settings_and_tokenizer(tmp_path: Path) -> None:
    cache, folder = Cache(tmp_path / "cache"), tmp_path / "net"
    folders.encoder(folder)
    first = load_kept(folder, (), cache)
    assert load_kept(folder, (), cache).fingerprint == first.fingerprint
    assert sum(1 for _ in (tmp_path / "cache").rglob("*")) > 0
    hashes = {first.sha256}
    for change in (
        lambda: _edit_weights(folder, lambda tensors: {name: tensor * 1.5 for name, tensor in tensors.items()}),
        lambda: _edit_config(folder, hidden_act="relu"),
        lambda: folders.sentences(folder, "Transformer", "Pooling"),
        lambda: folders.sentences(folder, "Transformer", "Pooling", pooling={"pooling_mode": "cls"}),
        lambda: (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n"),
    ):
        change()
        changed = load_kept(folder, (), cache)
        again = edgeq.load(folder)
        assert changed.sha256 == again.sha256 and changed.sha256 not in hashes
        np.testing.assert_array_equal(answers(changed, tokens(folder)), answers(again, tokens(folder)))
        hashes.add(changed.sha256)


def test_the_hub_s_cache_links_its_files_and_is_read(tmp_path: Path) -> None:
    made, snapshot, blobs = (
        tmp_path / "made",
        tmp_path / "models--a--b" / "snapshots" / "1",
        tmp_path / "models--a--b" / "blobs",
    )
    folders.encoder(made)
    snapshot.mkdir(parents=True)
    shutil.copytree(made, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
    assert edgeq.load(snapshot).fingerprint == edgeq.load(made).fingerprint

"""Packed checkpoints: what they are read as, what the model then answers, and that integers are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_checkpoints import KINDS, Written, words, write
from safetensors.torch import load_file, save_file
from test_rounding import whole

from edgeq.errors import EdgeqError, UnsupportedError, UsageError
from edgeq.hugging_face.folder import HfFolder
from edgeq.hugging_face.tokenizer import load_tokenizer
from edgeq.language.checkpoints import unpack
from edgeq.language.checkpoints.tensors import from_words
from edgeq.language.checkpoints.unpack import dequantized
from edgeq.language.decoder import Decoder
from edgeq.language.deploy import LanguageRequest, deploy_language
from edgeq.language.folder import open_folder
from edgeq.language.formats import FORMATS, differing
from edgeq.language.kept import float_decoder, has_integers, keeping, rounded_again
from edgeq.language.plan import chosen, read_decoder_plan, uniform
from edgeq.language.rounding import round_weights
from edgeq.registry.load import load_target

RUNTIMES = {one.format: one for one in load_target("x86-avx512").runtimes if one.decoders}


def packed(folders: dict[str, Path], out: Path, kind: str) -> tuple[HfFolder, dict[str, Written]]:
    written = write(folders["apart"], out, *KINDS[kind]())
    return open_folder(out), written


def all_of(folder: HfFolder) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in (one for one in folder.weights if one.suffix == ".safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_read_as_documented(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """To the bit; and into several files, where one were too large."""
    folder, written = packed(folders, tmp_path / "packed", kind)
    monkeypatch.setattr(unpack, "SHARD", 30_000)
    floats, layers = dequantized(folder, tmp_path)
    assert len(floats.weights) > 2
    found, before = all_of(floats), load_file(folders["apart"] / "model.safetensors")
    assert found.keys() == before.keys()
    for name, tensor in before.items():
        layer = written.get(name.removesuffix(".weight"))
        assert torch.equal(found[name], tensor if layer is None else torch.from_numpy(layer.real)), name
        if layer is not None:  # nothing that random numbers would do as well
            assert (found[name] - tensor).norm() < (0.5 if "2 bits" in kind else 0.2) * tensor.norm()
    assert {one.name for one in layers} == set(written)
    assert "quantization_config" not in json.loads((floats.path / "config.json").read_text())
    assert load_tokenizer(floats.path)("the cat")["input_ids"] == load_tokenizer(folder.path)("the cat")["input_ids"]


@pytest.fixture(scope="session")
def decoded(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By kind: the checkpoint, what was written, and the float file of it."""
    made: dict[str, tuple[HfFolder, dict[str, Written], Decoder]] = {}

    def of(kind: str) -> tuple[HfFolder, dict[str, Written], Decoder]:
        if kind not in made:
            place = tmp_path_factory.mktemp("packed")
            folder, written = packed(folders, place / "model", kind)
            made[kind] = folder, written, float_decoder(folder, place)
        return made[kind]

    return of


def by_torch(source: Path, written: dict[str, Written], tokens: Any) -> Any:
    """Logits of the dequantized model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, layer in written.items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(layer.real))
        return model(torch.from_numpy(tokens)).logits.numpy()


@pytest.mark.parametrize("kind", ["gptq", "gptq, act order", "bitsandbytes, nested nf4"])
def test_the_float_file_answers_as_pytorch(folders: dict[str, Path], decoded: Any, tokens: Any, kind: str) -> None:
    _, written, decoder = decoded(kind)
    wanted = by_torch(folders["apart"], written, tokens)
    assert np.allclose(whole(decoder, tokens), wanted, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["gptq", "gptq symmetric", "awq", "bitsandbytes, 8 bits"])
def test_integers_are_kept(decoded: Any, tokens: Any, tmp_path: Path, kind: str, form: str) -> None:
    """What the file holds are the checkpoint's own integers, and the real weights are the same to the bit."""
    folder, written, decoder = decoded(kind)
    runtime = RUNTIMES[form]
    assert has_integers(folder)
    plan = keeping(uniform(decoder.weights, runtime, "x86-avx512", "kept"), decoder, runtime)
    schemes = {name: one.scheme for name, one in chosen(plan, decoder.weights, runtime).items()}
    rounded = round_weights(decoder, schemes, "kept")
    path = FORMATS[form].write(decoder, rounded, tmp_path)
    held = FORMATS[form].read_back(path)
    assert differing(held, rounded) == []
    if kind == "bitsandbytes, 8 bits" and form == "openvino":  # whose scales are float16, and the checkpoint's are not
        (told,) = rounded_again(decoder, plan, schemes, form)
        assert "rounded a second time" in told
        return
    assert rounded_again(decoder, plan, schemes, form) == []
    left = {name: layer for name, layer in written.items()}
    for weight in decoder.weights:
        if weight.name not in decoder.kept:
            continue
        stored, at = held[weight.name], 0
        group = stored.integers.shape[1] // stored.scale.shape[1]
        zero, scale = (np.repeat(one.astype(np.float64), group, 1) for one in (stored.zero_point, stored.scale))
        real = ((stored.integers - zero) * scale)[:, : weight.columns]
        for layer in decoder.kept[weight.name].layers:
            one = left.pop(layer.name)
            rows = slice(at, at + layer.rows)
            assert np.array_equal(stored.integers[rows, : weight.columns], one.integers)
            assert np.array_equal(real[rows].astype(np.float32), one.real)
            at += layer.rows
        assert at == weight.rows
    assert left == {}


def test_layers_that_are_joined_in_the_file_are_found(decoded: Any) -> None:
    """The builder makes one matrix of queries, keys and values."""
    _, _, decoder = decoded("gptq")
    joined = [[one.name.split(".")[-1] for one in held.layers] for held in decoder.kept.values()]
    assert joined.count(["q_proj", "k_proj", "v_proj"]) == 2


def test_a_build_keeps_what_the_folder_has(decoded: Any, tmp_path: Path) -> None:
    """With no method and no text asked for; words are rounded to nearest, and the report says what was not kept."""
    folder, written, _ = decoded("gptq")
    out = tmp_path / "build"
    report = deploy_language(LanguageRequest(folder.path, target="x86-avx512", format="onnx", out=out))
    assert report.builds[0].layers and not [one for one in report.warnings if "second" in one]
    plans = [path for path in out.glob("*.json") if '"edgeq.decoder-plan"' in path.read_text()]
    assert [read_decoder_plan(path).method for path in plans] == ["kept"]
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    held = FORMATS["onnx"].read_back(out / "model.onnx")
    integers = {one.tobytes() for stored in held.values() for one in stored.integers}
    down = next(layer.integers for name, layer in written.items() if name.endswith("o_proj"))
    assert all(row.astype(np.uint8).tobytes() in integers for row in down)


def test_what_cannot_be_kept_is_rounded_and_told(decoded: Any) -> None:
    _, _, decoder = decoded("gptq, act order")
    runtime = RUNTIMES["onnx"]
    plan = keeping(uniform(decoder.weights, runtime, "x86-avx512", "kept"), decoder, runtime)
    schemes = {name: one.scheme for name, one in chosen(plan, decoder.weights, runtime).items()}
    assert round_weights(decoder, schemes, "kept").weights.keys() == schemes.keys()
    (told,) = rounded_again(decoder, plan, schemes, "onnx")
    assert f"{len(decoder.kept)} of {len(decoder.kept)} packed matrices" in told


def test_there_must_be_something_to_keep(decoders: dict[str, Decoder]) -> None:
    decoder = replace(decoders["tied"])
    with pytest.raises(UsageError, match="no integers that could be kept"):
        round_weights(decoder, {}, "kept")


def test_three_bits_lie_across_words() -> None:
    numbers = np.random.default_rng(0).integers(0, 8, (3, 64))
    assert np.array_equal(from_words(np.ascontiguousarray(words(numbers, 3).numpy().T), 3), numbers.T)


def damaged(folder: HfFolder, name: str, change: Any) -> HfFolder:
    """A folder with one tensor of the first down projection changed, or taken away."""
    tensors = load_file(folder.weights[0])
    full = f"model.layers.0.mlp.down_proj{name}"
    new = change(tensors.pop(full))
    if new is not None:
        tensors[full] = new.contiguous()
    save_file(tensors, folder.weights[0], {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("kind", "name", "change", "said"),
    [
        ("gptq", ".qzeros", lambda one: None, "this tensor is missing"),
        ("gptq", ".scales", lambda one: one[:-1], r"it is \[2, 64\], where \[3, 64\] is due"),
        ("gptq", ".scales", lambda one: one.fill_(torch.nan), "not finite"),
        ("gptq", ".qweight", lambda one: one.float(), "where int32 of rank 2 is due"),
        ("gptq", ".g_idx", lambda one: one + 2, "a group beyond the 3"),
        ("gptq", ".g_idx", lambda one: one[:5], "where .80. is due"),
        ("awq", ".qzeros", lambda one: one[:, :-1], "is due"),
        ("awq", ".scales", lambda one: one.int(), "where floats are due"),
        ("bitsandbytes, 8 bits", ".SCB", lambda one: one[1:], "is due"),
        ("bitsandbytes, 8 bits", ".weight_format", lambda one: one + 1, "an order for one kind of GPU"),
        ("bitsandbytes, nf4", ".weight", lambda one: one[1:], "is due"),
        ("bitsandbytes, nf4", ".weight.quant_state.bitsandbytes__nf4", lambda one: one[3:], "no JSON"),
        ("bitsandbytes, nf4", ".weight.quant_state.bitsandbytes__nf4", lambda one: None, "quant_state is missing"),
        ("bitsandbytes, nested nf4", ".weight.nested_absmax", lambda one: one[1:], "is due"),
        ("bitsandbytes, nested nf4", ".weight.absmax", lambda one: one.int(), "where uint8"),
        ("compressed-tensors", ".weight_shape", lambda one: one * 2, "hold no"),
        ("compressed-tensors", ".weight_scale", lambda one: one[:, :0], "is due"),
    ],
)
def test_damaged_tensors_are_named(
    folders: dict[str, Path], tmp_path: Path, kind: str, name: str, change: Any, said: str
) -> None:
    folder, _ = packed(folders, tmp_path / "packed", kind)
    with pytest.raises(EdgeqError, match=said) as caught:
        dequantized(damaged(folder, name, change), tmp_path)
    assert "down_proj" in caught.value.where and caught.value.remedy


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "aqlm"}, "packed by 'aqlm'"),
        ({"bits": 4}, "packed by 'None'"),
        ([1], "packed by 'None'"),
        ({"quant_method": "gptq", "bits": 5}, "of 5 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'gemv'"),
        ({"quant_method": "bitsandbytes"}, "neither of 8 nor of 4"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "'float-quantized'"),
    ],
)
def test_other_formats_are_refused(folders: dict[str, Path], tmp_path: Path, config: Any, said: str) -> None:
    folder = open_folder(folders["apart"])
    other = replace(folder, config={**folder.config, "quantization_config": config})
    with pytest.raises(UnsupportedError, match=said) as caught:
        dequantized(other, tmp_path)
    assert str(folder.path) in caught.value.where and caught.value.remedy


def test_a_config_without_its_weights_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = open_folder(folders["apart"])
    config = {**folder.config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(UsageError, match="there are none"):
        dequantized(replace(folder, config=config), tmp_path)
    assert dequantized(folder, tmp_path) == (folder, ())

"""Language models that learn from a text beside packed weights that stay: what learns, what stays, what is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packed_checkpoints
import pytest
import torch
from llama_text import INNER, LONGEST, TEXT, WIDTH, WORDS
from safetensors.torch import load_file
from torch import nn

import edgeq
from edgeq.errors import MissingExtraError, UnsupportedError, UsageError
from edgeq.hugging_face.folder import is_decoder
from edgeq.language.folder import open_folder
from edgeq.language.kept import float_decoder
from edgeq.language.rounding import round_weights
from edgeq.language.tuning import loop, qlora
from edgeq.language.tuning.adapted import Adapted, frozen
from edgeq.language.tuning.base import load_base
from edgeq.language.tuning.bitfit import bitfit
from edgeq.language.tuning.loop import Heard, Pace, judged, learn
from edgeq.language.tuning.tune import TUNED, Tuned, TuneRequest, tune_language
from edgeq.numerics import Scheme
from edgeq.packed.layers import PackedLinear
from edgeq.progress import Silent

WAYS = ["bitfit", "qlora"]
UNHEARD = Heard(lambda state: None, lambda done, total: None, lambda text: None)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen of the words, by a rule that a random model does not know."""
    begins = np.random.default_rng(2).integers(0, 16, (24, 1))
    tokens = 3 + (begins + 3 * np.arange(32)) % 16
    path = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(path, tokens)
    return path


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return needed(request.param)


@pytest.fixture(scope="module")
def tuned(
    folders: dict[str, Path], text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Tuned, Path]]:
    """By way and kind of folder, what was learned; each made once."""
    made: dict[tuple[str, str], tuple[Tuned, Path]] = {}

    def one(way: str, kind: str) -> tuple[Tuned, Path]:
        if (way, kind) not in made:
            out = tmp_path_factory.mktemp("tuned") / "model"
            made[way, kind] = tune_language(asked(folders[kind], text, needed(way), out)), out
        return made[way, kind]

    return one


def needed(way: str) -> str:
    if way == "qlora":
        for package in ("peft", "bitsandbytes"):
            pytest.importorskip(package, reason="the extra qlora is not installed")
    return way


def asked(model: Path, text: Path, way: str, out: Path, **more: Any) -> TuneRequest:
    return TuneRequest(model, train=text, adapt=way, out=out, **{"epochs": 3, "batch": 4, "rate": 0.02, **more})


def adapted(folder: Path, way: str) -> Adapted:
    torch.manual_seed(0)
    model = load_base(open_folder(folder))
    return bitfit(model) if way == "bitfit" else qlora.qlora(model, 4, str(folder))


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=tokens).logits
    return found


def plain(folder: Path) -> Any:
    """As any other program loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def integers(model: nn.Module) -> dict[str, str]:
    """By packed layer, a hash of its integers and scales."""
    found = {}
    for name, layer in model.named_modules():
        parts: tuple[torch.Tensor, ...] = ()
        if isinstance(layer, PackedLinear):
            parts = (layer.packed.integers, layer.packed.scale)
        elif type(layer).__name__ == "Linear4bit" and not hasattr(layer, "base_layer"):
            state: Any = layer.weight.quant_state
            parts = (layer.weight.data, state.absmax, state.state2.absmax, state.offset.reshape(1))
        if parts:
            found[name] = hashlib.sha256(b"".join(one.detach().numpy().tobytes() for one in parts)).hexdigest()
    return found


@pytest.mark.parametrize("kind", ["tied", "apart"])
def test_what_is_trained_is_what_is_written(
    way: str, kind: str, folders: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    one = adapted(folders[kind], way)
    tokens = torch.from_numpy(np.load(text))
    before, base, start = integers(one.model), frozen(one), logits(one.model, tokens[:2])
    assert len(before) == 14 + (way == "bitfit" and kind == "apart")  # seven in a block; words are scored in float
    epochs = learn(one, tokens[2:], tokens[:2], Pace(3, 4, 0.02), UNHEARD)
    assert epochs[-1].held_out < epochs[0].held_out - 0.5
    assert integers(one.model) == before and frozen(one) == base
    trained = logits(one.model, tokens[:2])
    assert (trained - start).abs().max() > 1
    one.merged().save_pretrained(tmp_path)
    assert torch.allclose(logits(plain(tmp_path), tokens[:2]), trained, atol=2e-4)


@pytest.mark.parametrize("kind", ["tied", "apart"])
def test_a_folder_of_learned_biases(kind: str, tuned: Any, folders: dict[str, Path]) -> None:
    """Its weights are those that 8 bits give; its config tells of the biases."""
    told, out = tuned("bitfit", kind)
    packed = edgeq.quantize(load_base(open_folder(folders[kind])), "int8", 32)
    written = load_file(out / "model.safetensors")
    layers = {name: layer for name, layer in packed.named_modules() if isinstance(layer, PackedLinear)}
    assert all(torch.equal(written[f"{name}.weight"], layer.weight) for name, layer in layers.items())
    biases = {name: one for name, one in written.items() if name.endswith(".bias")}
    assert set(biases) == {f"{name}.bias" for name in layers if name != "lm_head"} and len(biases) == 14
    assert all(one.abs().max() > 0 for name, one in biases.items() if "k_proj" not in name)
    assert told.numbers == sum(one.numel() for one in biases.values())
    config = json.loads((out / "config.json").read_text())
    assert config["attention_bias"] and config["mlp_bias"] and config["tie_word_embeddings"] == (kind == "tied")


def test_an_artefact_can_hold_the_integers_that_biases_were_learned_on(
    tuned: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Rounded to 8 bits in the same groups, weights become the integers that they were made float from."""
    _, out = tuned("bitfit", "apart")
    decoder = float_decoder(open_folder(out), tmp_path)
    linear = [weight.name for weight in decoder.weights if weight.linear and "lm_head" not in weight.name]
    scheme = Scheme("int8", "symmetric", "group", group=32)
    rounded = round_weights(decoder, dict.fromkeys(linear, scheme), "nearest", None, Silent()).weights
    packed = edgeq.quantize(load_base(open_folder(folders["apart"])), "int8", 32)
    found = {name: layer.packed.integers for name, layer in packed.named_modules() if isinstance(layer, PackedLinear)}
    count = 0
    for name in linear:
        block, kind = name.removeprefix("model.layers.").split(".")[0], name.split(".")[4]
        parts = ["q_proj", "k_proj", "v_proj"] if kind == "qkv_proj" else [kind]
        mine = [one for part in parts for layer, one in found.items() if f"layers.{block}." in layer and part in layer]
        assert np.array_equal(rounded[name].integers, torch.cat(mine).numpy()), name
        count += len(mine)
    assert count == 14


def test_a_packed_checkpoint_is_a_base_as_well(folders: dict[str, Path], text: Path, tmp_path: Path) -> None:
    config, pack = packed_checkpoints.gptq(8, 16)
    real = packed_checkpoints.write(folders["tied"], tmp_path / "model", config, pack)
    told = tune_language(asked(tmp_path / "model", text, "bitfit", tmp_path / "out"))
    assert told.perplexity < 0.7 * told.base_perplexity
    weight = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].numpy()
    wanted = real["model.layers.0.mlp.up_proj"].real
    assert 0 < np.abs(weight - wanted).max() < 0.01 * np.abs(wanted).max()
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_an_adapter_fits_the_base_that_it_was_learned_on(tuned: Any, folders: dict[str, Path], text: Path) -> None:
    """transformers and PEFT make the base themselves, of the folder that was given."""
    _, out = tuned("qlora", "apart")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(folders["apart"], quantization_config=how, dtype=torch.float32)
    tokens = torch.from_numpy(np.load(text)[:2])
    alone = logits(base, tokens)
    together = logits(PeftModel.from_pretrained(base, out / "adapter"), tokens)
    merged = logits(plain(out), tokens)
    assert torch.allclose(together, merged, atol=2e-3)
    assert (alone - merged).abs().max() > 1


def test_what_is_told(way: str, tuned: Any, folders: dict[str, Path], text: Path) -> None:
    told, out = tuned(way, "tied")
    held_out = torch.from_numpy(np.load(text)[::20])
    model = plain(out)
    nll = nn.functional.cross_entropy(logits(model, held_out)[:, :-1].flatten(0, 1), held_out[:, 1:].flatten())
    assert told.perplexity == pytest.approx(float(nll.exp()), rel=1e-4)
    assert told.float_perplexity == pytest.approx(np.exp(judged(plain(folders["tied"]), held_out)), rel=1e-4)
    assert told.perplexity < 0.7 * min(told.float_perplexity, told.base_perplexity)
    assert [one.number for one in told.epochs] == [0, 1, 2, 3]
    assert told.best == min(range(4), key=lambda i: told.epochs[i].held_out)
    record = json.loads((out / TUNED).read_text())
    assert record["base_sha256"] == told.base_sha256 and record["texts"] == 22 and record["held_out_texts"] == 2
    assert (
        is_decoder(out) and (out / "tokenizer.json").read_bytes() == (folders["tied"] / "tokenizer.json").read_bytes()
    )
    assert sorted(one.name for one in out.parent.iterdir()) == ["model"]


def test_one_integer_that_is_not_what_it_was(way: str, folders: dict[str, Path]) -> None:
    one = adapted(folders["tied"], way)
    before = frozen(one)
    next(iter(one.learned.values())).data += 1
    assert frozen(one) == before
    name = next(name for name in integers(one.model))
    layer: Any = one.model.get_submodule(name)
    held = layer.packed.integers if way == "bitfit" else layer.weight.data
    held.view(torch.uint8).view(-1)[0] ^= 1
    assert frozen(one) != before


class Stops(Silent):
    """The user does, behind a step."""

    def __init__(self, behind: int) -> None:
        self.behind = behind

    def step(self, done: int, total: int) -> None:
        if done == self.behind:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    way: str, tuned: Any, folders: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "BETWEEN", 0.0)
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        tune_language(asked(folders["tied"], text, way, out, progress=Stops(10)))
    assert [one.name for one in tmp_path.iterdir()] == ["model.checkpoint"]
    with pytest.raises(UsageError, match="of another training"):
        tune_language(asked(folders["tied"], text, way, out, seed=1))
    steps: list[int] = []
    heard = Silent()
    monkeypatch.setattr(heard, "step", lambda done, total: steps.append(done))
    tune_language(asked(folders["tied"], text, way, out, progress=heard))
    assert steps == list(range(10, 19))  # the tenth was not kept
    whole = tuned(way, "tied")[1]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (out / TUNED).read_text() == (whole / TUNED).read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_parts_of_a_step_add_up(folders: dict[str, Path], text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of a step that is computed text by text are those of the mean of all tokens."""
    one = adapted(folders["tied"], "bitfit")
    tokens = torch.from_numpy(np.load(text)[:5])
    found = one.model(input_ids=tokens).logits[:, :-1]
    nn.functional.cross_entropy(found.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in one.learned.items() if parameter.grad is not None}
    assert set(wanted) == set(one.learned)
    for most in (1, 2 * 32 * WORDS, loop.AT_ONCE):
        monkeypatch.setattr(loop, "AT_ONCE", most)
        for parameter in one.learned.values():
            parameter.grad = None
        loop._gradients(one.model, tokens)
        for name, parameter in one.learned.items():
            assert parameter.grad is not None and torch.allclose(parameter.grad, wanted[name], atol=1e-6), name


def random_model(kind: str, folder: Path) -> Path:
    import transformers

    sizes = {"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LONGEST}
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    return folder


def test_biases_that_an_architecture_always_has(text: Path, tmp_path: Path) -> None:
    """Qwen2 has them for queries, keys and values, and its config can tell of no others."""
    pytest.importorskip("transformers")
    told = tune_language(asked(random_model("Qwen2", tmp_path / "model"), text, "bitfit", tmp_path / "out"))
    written = load_file(tmp_path / "out" / "model.safetensors")
    biases = [name.split(".")[-2] for name in written if name.endswith(".bias")]
    assert sorted(biases) == ["k_proj", "q_proj", "v_proj"]
    assert told.numbers == WIDTH + 2 * WIDTH // 2 and told.perplexity < told.base_perplexity


def test_an_architecture_without_biases(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UnsupportedError, match="MistralForCausalLM has no setting") as raised:
        tune_language(asked(random_model("Mistral", tmp_path / "model"), text, "bitfit", tmp_path / "out"))
    assert "qlora" in raised.value.remedy
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_experts_that_share_one_weight(text: Path, tmp_path: Path) -> None:
    needed("qlora")
    with pytest.raises(UnsupportedError, match="such as those of experts"):
        tune_language(asked(random_model("Mixtral", tmp_path / "model"), text, "qlora", tmp_path / "out"))
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("missing", ["peft", "bitsandbytes"])
def test_a_package_that_is_not_there(
    missing: str, folders: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())
    with pytest.raises(MissingExtraError, match=missing) as raised:
        tune_language(asked(folders["tied"], text, "qlora", tmp_path / "out"))
    assert raised.value.remedy == "pip install 'edgeq[qlora]'" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"adapt": "magic"}, "one of bitfit, qlora"),
        ({"rank": 4}, "bitfit has no low-rank matrices"),
        ({"epochs": 0}, "--epochs: 0 is too few"),
        ({"batch": -1}, "--batch: -1 is too few"),
        ({"rate": 0.0}, "--rate: nothing is learned"),
        ({"rate": float("nan")}, "--rate: nothing is learned"),
        ({"rate": 1e38}, "--rate: nothing is learned"),
        ({"train": Path("nowhere.txt")}, "nowhere.txt: there is no such file"),
        ({"model": Path("nowhere")}, "config.json"),
    ],
)
def test_wrong_use(more: dict[str, Any], told: str, folders: dict[str, Path], text: Path, tmp_path: Path) -> None:
    given = {"model": folders["tied"], "train": text, "adapt": "bitfit", "out": tmp_path / "out"} | more
    with pytest.raises(UsageError) as raised:
        tune_language(TuneRequest(given.pop("model"), **given))
    assert told in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite(folders: dict[str, Path], text: Path) -> None:
    tokens = torch.from_numpy(np.load(text))
    with pytest.raises(UsageError, match="the loss is nan at step 2") as raised:
        learn(adapted(folders["tied"], "bitfit"), tokens[2:], tokens[:2], Pace(1, 4, 1e30), UNHEARD)
    assert "--rate" in raised.value.remedy


def test_a_text_of_which_nothing_could_judge(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(TEXT[:200])
    with pytest.raises(UsageError, match="is too little"):
        tune_language(asked(folders["tied"], tmp_path / "short.txt", "bitfit", tmp_path / "out"))


def test_a_folder_with_an_adapter(folders: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """transformers would load it, from wherever it says its base lies."""
    model = Path(shutil.copytree(folders["tied"], tmp_path / "model"))
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    with pytest.raises(UsageError, match="it holds an adapter"):
        tune_language(asked(model, text, "bitfit", tmp_path / "out"))


def test_where_it_is_written(folders: dict[str, Path], text: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folders["tied"], tmp_path / "model"))
    for place in (model, model / "tuned"):
        with pytest.raises(UsageError, match="the model's own folder"):
            tune_language(asked(model, text, "bitfit", place, overwrite=True))
    inside = Path(shutil.copytree(folders["tied"], tmp_path / "earlier" / "model"))
    (inside.parent / TUNED).write_text("{}")
    with pytest.raises(UsageError, match="the model lies in it"):
        tune_language(asked(inside, text, "bitfit", inside.parent, overwrite=True))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no tuned model of edgeq"):
        tune_language(asked(model, text, "bitfit", tmp_path / "thesis", overwrite=True))
    out = tmp_path / "out"
    tune_language(asked(model, text, "bitfit", out, epochs=1))
    with pytest.raises(UsageError, match="another tuned model"):
        tune_language(asked(model, text, "bitfit", out, epochs=1))
    chance = torch.random.get_rng_state()
    again = tune_language(asked(model, text, "bitfit", out, epochs=2, overwrite=True))
    assert torch.equal(torch.random.get_rng_state(), chance)  # the caller's own
    assert json.loads((out / TUNED).read_text())["epochs"] == 2 and len(again.epochs) == 3

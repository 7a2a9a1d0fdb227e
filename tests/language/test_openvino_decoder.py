"""Decoders as OpenVINO IR against ONNX Runtime with the weights made float by hand; and what the CPU plugin makes of
them: compressed products, a Gather of integers, attention that holds its cache."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeq.errors import MissingExtraError, UnsupportedError, UsageError
from edgeq.language.decoder import Decoder, Weight, read_decoder
from edgeq.language.formats import differing
from edgeq.language.openvino_decoder import read_back, write_openvino
from edgeq.language.openvino_tokenizer import write_tokenizers
from edgeq.language.rounding import Rounded, round_weights
from edgeq.numerics import Scheme
from edgeq.numerics.quantize import QParams
from edgeq.numerics.weights import QuantizedWeight

openvino = pytest.importorskip("openvino")

LAYERS, WORDS, WIDTH, INNER = 2, 160, 64, 80  # INNER is no multiple of 32: its last group is not full
PROMPT = "the cat sat on the"

S4, S8, S2 = (Scheme(dtype, "symmetric", "group", group=32) for dtype in ("int4", "int8", "int2"))
S3 = replace(S4, bits=3)
A4, A8, A2 = (Scheme(dtype, "asymmetric", "group", group=32) for dtype in ("uint4", "uint8", "uint2"))
A3 = replace(A4, bits=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with tied ends and a tokenizer, as transformers saves it."""
    pytest.importorskip("onnxruntime_genai", reason="the builder of onnxruntime-genai is not installed")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(made)
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    letters = sorted(letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter.isascii() or letter == "Ġ")
    told = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    pieces.train_from_iterator(["the cat sat on the mat and the dog ran to the house of rain and sea " * 40], told)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=pieces, **special).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def decoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    out = tmp_path_factory.mktemp("onnx")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "made/here", "-p", "fp32", "-e", "cpu"]
    command = [*builder, "-i", str(folder), "-o", str(out), "-c", str(out / "kept")]
    subprocess.run(command, check=True, capture_output=True)
    return read_decoder(out / "model.onnx")


@pytest.fixture(scope="module")
def tokens() -> Any:
    return np.random.default_rng(1).integers(3, WORDS, (2, 24))


def rounding(decoder: Decoder, products: Scheme, words: Scheme) -> Rounded:
    schemes = {one.name: words if one.embedding else products for one in decoder.weights}
    return round_weights(decoder, schemes, "nearest")


def by_hand(one: Weight, w: QuantizedWeight) -> Any:
    """(integer - zero point) * scale, group by group, in the layout of the float file."""
    group = w.integers.shape[1] if w.q.scheme.group is None else w.q.scheme.group
    steps = w.integers.astype(np.float64).reshape(-1, group) - np.reshape(w.q.zero_point, (-1, 1))
    matrix = (steps * w.q.scale.reshape(-1, 1)).reshape(w.integers.shape)[:, : one.columns].astype(np.float32)
    return np.ascontiguousarray(matrix.T if one.transposed else matrix)


def logits(decoder: Decoder, rounded: Rounded, tokens: Any) -> Any:
    """[texts, positions, words] of the float file in ONNX Runtime, its weights replaced."""
    model = onnx.load(decoder.path)
    weights = {one.name: one for one in decoder.weights}
    for tensor in model.graph.initializer:
        if tensor.name in rounded.weights:
            real = by_hand(weights[tensor.name], rounded.weights[tensor.name])
            tensor.CopyFrom(onnx.numpy_helper.from_array(real, tensor.name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given: dict[str, Any] = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    empty = np.zeros((len(tokens), 2, 0, decoder.head_size), np.float32)
    given |= {value.name: empty for value in session.get_inputs() if value.name.startswith("past")}
    return session.run(["logits"], given)[0]


class Run:
    """A compiled file and what it has read."""

    def __init__(self, path: Path) -> None:
        self.compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._request = self.compiled.create_infer_request()
        self._read = 0

    def __call__(self, tokens: Any, beams: Any = None) -> Any:
        self._read += tokens.shape[1]
        mask = np.ones((len(tokens), self._read), np.int64)
        beams = np.arange(len(tokens)) if beams is None else np.asarray(beams)
        given = {"input_ids": tokens, "attention_mask": mask, "beam_idx": beams.astype(np.int32)}
        return np.array(self._request.infer(given)["logits"])

    def kinds(self, kind: str) -> list[tuple[Any, str]]:
        """Operators of the compiled graph, each with the precision of what it reads."""
        rows = [(op, op.get_rt_info()) for op in self.compiled.get_runtime_model().get_ordered_ops()]
        return [
            (op, info["runtimePrecision"].astype(str)) for op, info in rows if info["layerType"].astype(str) == kind
        ]


CASES = {
    # what products and words are; what the CPU plugin then reads in products, and in the words and the tied head
    "4 bits": (S4, S8, "i4", "i8"),
    "8 bits": (S8, S4, "i8", "i4"),
    "4 bits with zero points": (A4, A4, "u4", "u4"),
    "8 bits with zero points": (A8, A8, "u8", "u8"),
    "2 bits": (S2, S8, "u2", "i8"),
    "2 bits with zero points": (A2, S8, "u2", "i8"),
    # expanded when the file is loaded
    "3 bits": (S3, S8, "f32", "i8"),
    "3 bits with zero points": (A3, A3, "f32", "f32"),
    "words of 2 bits": (S4, S2, "i4", "f32"),
    # the middle is a zero point that the type does not fix
    "unsigned, but symmetric": (replace(A4, symmetry="symmetric"), S8, "u4", "i8"),
    "signed, with zero points": (replace(S4, symmetry="asymmetric"), replace(S8, symmetry="asymmetric"), "u4", "u8"),
    "one scale a row": (Scheme("int8", "symmetric", "channel"), S8, "i8", "i8"),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_and_integers(decoder: Decoder, tokens: Any, tmp_path: Path, case: str) -> None:
    products, words, multiplied, looked_up = CASES[case]
    rounded = rounding(decoder, products, words)
    path = write_openvino(decoder, rounded, tmp_path)
    assert differing(read_back(path), rounded) == []
    expected = logits(decoder, rounded, tokens)
    assert np.abs(expected - logits(decoder, Rounded({}, {}), tokens)).max() > 1e-2  # so that rounding is seen
    at_once, steps = Run(path), Run(path)
    np.testing.assert_allclose(at_once(tokens), expected, atol=1e-4)
    parts = [steps(tokens[:, :9]), *(steps(tokens[:, at : at + 1]) for at in range(9, tokens.shape[1]))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-4)
    kinds = [multiplied if not one.embedding else looked_up for one in decoder.weights if one.linear]
    assert Counter(kind for _, kind in at_once.kinds("FullyConnected")) == Counter(kinds)
    (found,) = {kind for op, kind in at_once.kinds("Gather") if "embed_tokens" in op.get_friendly_name()}
    assert found == looked_up


@pytest.mark.parametrize(("scheme", "bits"), [(S2, 2), (S3, 3), (S4, 4), (S8, 8)])
def test_the_file_holds_so_many_bits_and_tied_ends_once(
    decoder: Decoder, tmp_path: Path, scheme: Scheme, bits: int
) -> None:
    rounded = rounding(decoder, scheme, scheme)
    path = write_openvino(decoder, rounded, tmp_path)
    model = openvino.Core().read_model(path)
    held = [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]
    integers = [op for op in held if op.get_element_type().get_type_name() in (f"i{bits}", f"u{bits}")]
    assert sum(op.get_byte_size() for op in integers if len(op.shape) == 3 and op.shape[2] > 1) == sum(
        w.integers.size * bits // 8 for w in rounded.weights.values()
    )
    (tied,) = [one for one in decoder.weights if one.linear and one.embedding]
    (one,) = [op for op in integers if op.get_friendly_name() == f"{tied.name}.integers"]
    readers = [port.get_node() for port in one.output(0).get_target_inputs()]
    assert len(readers) == 2 and {reader.get_type_name() for reader in readers} == {"Convert"}
    numbers = sum(w.q.scale.nbytes + w.integers.size * bits // 8 for w in rounded.weights.values())
    floats = sum(decoder.array(name).nbytes for name in decoder.initializers if name not in rounded.weights)
    zero_points = sum(w.q.scale.size for w in rounded.weights.values())
    assert path.with_suffix(".bin").stat().st_size < numbers + floats + zero_points + 4096


def test_attention_holds_its_cache(decoder: Decoder, tokens: Any, tmp_path: Path) -> None:
    """One operator for each layer reads and writes the state, under its beams; nothing else joins keys or values."""
    run = Run(write_openvino(decoder, rounding(decoder, S4, S8), tmp_path))
    run(tokens)
    attention = run.kinds("ScaledDotProductAttention")
    assert [len(op.inputs()) for op, _ in attention] == [8] * LAYERS  # q, k, v, mask, scale, beams, past k and v
    states = {op.get_friendly_name() for op, _ in run.kinds("MemoryInput")}
    assert len(states) == 2 * LAYERS
    for op, _ in attention:
        read = {port.get_source_output().get_node().get_friendly_name() for port in op.inputs()}
        assert len(read & states) == 2


def test_beams_reorder_the_cache(decoder: Decoder, tokens: Any, tmp_path: Path) -> None:
    rounded = rounding(decoder, S4, S8)
    run = Run(write_openvino(decoder, rounded, tmp_path))
    run(tokens[:, :10])
    found = run(tokens[:, 10:], beams=[1, 0])
    crossed = np.concatenate([tokens[::-1, :10], tokens[:, 10:]], axis=1)
    np.testing.assert_allclose(found, logits(decoder, rounded, crossed)[:, 10:], atol=1e-4)
    assert np.abs(found - logits(decoder, rounded, tokens)[:, 10:]).max() > 1e-2


@pytest.mark.parametrize(("activations", "cache", "kept"), [(None, "float32", "f32"), (32, "uint8", "u8")])
def test_the_file_says_what_else_is_rounded(
    decoder: Decoder, tokens: Any, tmp_path: Path, activations: int | None, cache: Any, kept: str
) -> None:
    rounded = rounding(decoder, S4, S8)
    run = Run(write_openvino(decoder, rounded, tmp_path, activations=activations, cache=cache))
    assert run.compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == (activations or 0)
    assert run.compiled.get_property("KV_CACHE_PRECISION").to_dtype() == np.dtype(cache)
    parts = [run(tokens[:, at : at + 1]) for at in range(tokens.shape[1])]
    off = np.abs(np.concatenate(parts, axis=1) - logits(decoder, rounded, tokens)).max()
    assert (off > 1e-4) == (kept == "u8")


def test_options_without_sense(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 numbers"):
        write_openvino(decoder, Rounded({}, {}), tmp_path, activations=0)
    assert not list(tmp_path.iterdir())


def test_what_has_no_form_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    name = next(one.name for one in decoder.weights if not one.embedding)
    rounded = rounding(decoder, S4, S8)
    w = rounded.weights[name]
    five = replace(w, q=QParams(replace(S8, bits=5), w.q.scale, w.q.zero_point, 0))
    whole = replace(w, q=QParams(replace(S8, granularity="tensor", group=None), w.q.scale[:1], w.q.zero_point[:1], 0))
    levels = replace(w, levels=np.linspace(-1, 1, 16, dtype=np.float32))
    for odd in (five, whole, levels):
        with pytest.raises(UnsupportedError, match="has no form") as caught:
            write_openvino(decoder, rounded._replace(weights={**rounded.weights, name: odd}), tmp_path)
        assert caught.value.where == name
    assert not list(tmp_path.iterdir())


def test_another_matrix_in_the_float_file_is_seen(decoder: Decoder, tmp_path: Path) -> None:
    rounded = rounding(decoder, S4, S8)
    first, *rest = (one for one in decoder.weights if not one.embedding)
    gone = first._replace(name="gone")
    for other, said in ((first._replace(rows=first.rows + 1), "reads one of"), (gone, "reads nothing")):
        changed = replace(decoder)
        vars(changed)["weights"] = (other, *rest)  # as if it had been found in the graph
        weights = {**rounded.weights, "gone": rounded.weights[first.name]}
        with pytest.raises(UnsupportedError, match=said):
            write_openvino(changed, rounded._replace(weights=weights), tmp_path)


def test_a_pipeline_writes_what_was_rounded(decoder: Decoder, folder: Path, tmp_path: Path) -> None:
    """From text to text in OpenVINO's own pipeline: the likeliest word every time, by ONNX Runtime without a cache."""
    genai = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    pytest.importorskip("openvino_tokenizers", reason="openvino-tokenizers is not installed")
    from transformers import AutoTokenizer

    rounded = rounding(decoder, S4, S8)
    write_openvino(decoder, rounded, tmp_path)
    written = write_tokenizers(folder, tmp_path)
    assert all(path.exists() and path.with_suffix(".bin").exists() for path in written)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    pipeline = genai.LLMPipeline(str(tmp_path), "CPU")
    told = genai.GenerationConfig(max_new_tokens=10, do_sample=False, apply_chat_template=False, ignore_eos=True)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    given = tokenizer(PROMPT)["input_ids"]
    assert np.array_equal(pipeline.get_tokenizer().encode(PROMPT).input_ids.data, [given])
    text = list(given)
    for _ in range(10):
        text.append(int(logits(decoder, rounded, np.array([text]))[0, -1].argmax()))
    assert pipeline.generate(PROMPT, told) == tokenizer.decode(text[len(given) :], skip_special_tokens=True)


def test_beam_search_of_the_pipeline(decoder: Decoder, folder: Path, tmp_path: Path) -> None:
    """It finds a text that is at least as likely as the greedy one."""
    genai = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    pytest.importorskip("openvino_tokenizers", reason="openvino-tokenizers is not installed")
    rounded = rounding(decoder, S4, S8)
    write_openvino(decoder, rounded, tmp_path)
    write_tokenizers(folder, tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    pipeline = genai.LLMPipeline(str(tmp_path), "CPU")
    given = pipeline.get_tokenizer().encode(PROMPT)
    start = given.input_ids.data.shape[1]

    def likelihood(beams: int) -> float:
        told = genai.GenerationConfig(max_new_tokens=6, num_beams=beams, do_sample=False, ignore_eos=True)
        told.apply_chat_template = False
        new = pipeline.generate(given, told).tokens[0]
        text = np.concatenate([given.input_ids.data, [new]], axis=1)
        found = logits(decoder, rounded, text)[0, start - 1 : -1].astype(np.float64)
        found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
        return float(found[np.arange(len(new)), new].sum())

    assert likelihood(4) >= likelihood(1) - 1e-4


def test_without_the_package_of_tokenizers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"edgeq\[openvino-genai\]"):
        write_tokenizers(folder, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("openvino_tokenizers", reason="openvino-tokenizers is not installed")
    with pytest.raises(UsageError, match="tokenizer cannot be read"):
        write_tokenizers(tmp_path, tmp_path)

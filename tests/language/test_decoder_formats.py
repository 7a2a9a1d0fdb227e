"""Files of decoders in their runtimes: the integers that they hold, and what they answer, word by word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rounding import every, real, whole

from edgeq.devices import Candidate, open_device
from edgeq.devices.decoding import generate, negative_log_likelihood
from edgeq.language.decoder import Decoder
from edgeq.language.formats import FORMATS, differing
from edgeq.language.rounding import Rounded, round_weights
from edgeq.numerics import Scheme
from edgeq.registry.load import load_target

pytest.importorskip("openvino")
RUNTIMES = {one.format: one for one in load_target("x86-avx512").runtimes if one.decoders}
CASES = [
    (form, name)
    for form, one in RUNTIMES.items()
    for name, choice in one.decoder_choices("linear").items()
    if choice.scheme.group != 128
]
LOCAL = open_device("local")


def artefact(form: str, path: Path) -> Candidate:
    return Candidate(path, RUNTIMES[form].name)


def foretold(logits: Any, tokens: Any) -> Any:
    """Negative log-likelihoods by hand, float64."""
    z = logits[:, :-1].astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    right = np.take_along_axis(z, np.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]
    return np.log(np.exp(z).sum(axis=-1)) - right


def test_every_format_that_a_table_has_is_written() -> None:
    assert set(RUNTIMES) == set(FORMATS)


@pytest.mark.parametrize(("form", "choice"), CASES)
def test_the_file_holds_and_answers_what_was_rounded(
    decoders: dict[str, Decoder], tokens: Any, tmp_path: Path, form: str, choice: str
) -> None:
    """For each choice of each table. The answers are those of the float file with the same weights in float32."""
    runtime = RUNTIMES[form]
    how = runtime.decoder_choices("linear")[choice]
    decoder = decoders["tied" if how.scheme.symmetry == "asymmetric" else "apart"]
    rounded = round_weights(decoder, {one.name: how.scheme for one in decoder.weights}, "nearest")
    if how.dynamic:
        rounded = rounded._replace(dynamic=frozenset(rounded.weights))
    path = FORMATS[form].write(decoder, rounded, tmp_path)
    assert differing(FORMATS[form].read_back(path), rounded) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FORMATS[form].files)
    found = negative_log_likelihood(LOCAL, artefact(form, path), tokens)
    wanted = foretold(whole(decoder, tokens, real(decoder, rounded)), tokens)
    if how.dynamic:  # 8 bits of activations move what is foretold, and not by much
        assert np.abs(found.nll - wanted).max() > 0
        assert np.sqrt(np.square(found.nll - wanted).mean()) < 0.1 * wanted.std()
    else:
        assert np.allclose(found.nll, wanted, atol=2e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_the_float_model_is_the_float_model(decoder: Decoder, tokens: Any, tmp_path: Path, form: str) -> None:
    path = FORMATS[form].write(decoder, Rounded({}, {}), tmp_path)
    found = negative_log_likelihood(LOCAL, artefact(form, path), tokens)
    assert np.allclose(found.nll, foretold(whole(decoder, tokens), tokens), atol=2e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_normalizations_change_with_the_weights(decoder: Decoder, tokens: Any, tmp_path: Path, form: str) -> None:
    rounded = round_weights(decoder, every(decoder, Scheme("int4", "symmetric", "group", group=32)), "awq", tokens)
    path = FORMATS[form].write(decoder, rounded, tmp_path)
    found = negative_log_likelihood(LOCAL, artefact(form, path), tokens)
    assert np.allclose(found.nll, foretold(whole(decoder, tokens, real(decoder, rounded)), tokens), atol=2e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_word_by_word_as_at_once(decoder: Decoder, tokens: Any, tmp_path: Path, form: str) -> None:
    """The likeliest word every time, with a cache, is that of the whole text without one."""
    rounded = round_weights(decoder, every(decoder, Scheme("int8", "symmetric", "group", group=32)), "nearest")
    path = FORMATS[form].write(decoder, rounded, tmp_path)
    prompt = tokens[0, :10].tolist()
    (written,) = generate(LOCAL, artefact(form, path), [prompt], most=12)
    text = np.array([[*prompt, *written.tokens]])
    best = whole(decoder, text, real(decoder, rounded))[0].argmax(axis=1)
    assert best[len(prompt) - 1 : -1].tolist() == list(written.tokens)


@pytest.mark.parametrize("form", FORMATS)
def test_one_bit_that_changes_is_seen(decoder: Decoder, tmp_path: Path, form: str) -> None:
    rounded = round_weights(decoder, every(decoder, Scheme("int4", "symmetric", "group", group=32)), "nearest")
    path = FORMATS[form].write(decoder, rounded, tmp_path)
    data = next(tmp_path / name for name in FORMATS[form].files if (tmp_path / name) != path)
    content = bytearray(data.read_bytes())
    name = max(rounded.weights, key=lambda one: rounded.weights[one].integers.size)
    held = rounded.weights[name].q.scale.tobytes()
    at = bytes(content).find(held[:64])
    assert at >= 0
    content[at] ^= 1
    data.write_bytes(content)
    assert name in differing(FORMATS[form].read_back(path), rounded)


def test_tied_ends_are_stored_once(decoders: dict[str, Decoder], tmp_path: Path) -> None:
    """The table of words has half a byte a number, and there is no second one."""
    decoder = decoders["tied"]
    scheme = Scheme("int4", "symmetric", "group", group=32)
    rounded = round_weights(decoder, {one.name: scheme for one in decoder.weights}, "nearest")
    numbers = sum(w.integers.size for w in rounded.weights.values())
    others = sum(decoder.array(n).nbytes for n in decoder.initializers if n not in rounded.weights)
    for form, written in FORMATS.items():
        folder = tmp_path / form
        folder.mkdir()
        path = written.write(decoder, rounded, folder)
        data = next(folder / name for name in written.files if (folder / name) != path)
        assert data.stat().st_size < numbers / 2 + 4 * numbers / 32 + others + 8000


def test_pipelines_of_others_read_a_build(
    decoders: dict[str, Decoder], folders: dict[str, Path], tmp_path: Path
) -> None:
    """onnxruntime-genai and openvino-genai write what `edgeq generate` does."""
    genai = pytest.importorskip("onnxruntime_genai")
    openvino_genai = pytest.importorskip("openvino_genai")
    tokenizers = pytest.importorskip("openvino_tokenizers")
    import openvino
    from transformers import AutoTokenizer

    from edgeq.language.deploy import copy_beside
    from edgeq.language.folder import open_folder

    decoder, folder = decoders["tied"], open_folder(folders["tied"])
    rounded = round_weights(decoder, every(decoder, Scheme("int8", "symmetric", "group", group=32)), "nearest")
    copy_beside(folder, decoder, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(folders["tied"]))
    prompt = "the cat sat on"
    given = tokenizer(prompt)["input_ids"]
    answers = {}
    for form in FORMATS:
        path = FORMATS[form].write(decoder, rounded, tmp_path)
        (written,) = generate(LOCAL, artefact(form, path), [given], most=8)
        answers[form] = list(written.tokens)
    model = genai.Model(str(tmp_path))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(given) + 8, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(given, np.int32))
    theirs = []
    while len(theirs) < 8 and not generator.is_done():
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    assert theirs == answers["onnx"]
    pieces = tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, one in zip(("openvino_tokenizer", "openvino_detokenizer"), pieces, strict=True):
        openvino.save_model(one, tmp_path / f"{name}.xml")
    pipeline = openvino_genai.LLMPipeline(str(tmp_path), "CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=8, do_sample=False, apply_chat_template=False)
    tensor = openvino.Tensor(np.array([given], np.int64))
    found = pipeline.generate(
        openvino_genai.TokenizedInputs(tensor, openvino.Tensor(np.ones((1, len(given)), np.int64))), config
    )
    assert list(found.tokens[0]) == answers["openvino"]

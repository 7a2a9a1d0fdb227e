"""Language models on a device, against PyTorch's own and against sums by hand."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import decoder_models as models
import device_models
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeq.devices import Candidate, Device, open_device, qemu
from edgeq.devices.decoding import (
    Likelihood,
    Written,
    generate,
    loglikelihoods,
    negative_log_likelihood,
    peak,
    speed,
)
from edgeq.errors import DeviceError
from edgeq.on_device import decoder as on_device
from edgeq.on_device import openvino as on_openvino
from edgeq.on_device.worker import Setting, WorkerError

pytest.importorskip("onnxruntime_genai")
openvino = pytest.importorskip("openvino")

LOCAL = open_device("local")


Whole = Callable[[torch.Tensor], torch.Tensor]
Made = dict[str, tuple[Whole, Candidate]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A Llama in files of both kinds that ONNX Runtime reads, a layer of attention in OpenVINO's, and what PyTorch says
    in their place: logits after each token of texts."""
    folder = tmp_path_factory.mktemp("llama")
    model = models.llama(folder / "model")
    built = models.build(folder / "model", folder / "built")
    fixed = models.with_fixed_cache(built, folder / "fixed" / "decoder.onnx")
    attention = models.Attention()

    def of_llama(text: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(text).logits
        return found

    return {
        "one buffer": (of_llama, Candidate(built, "onnxruntime")),
        "two buffers": (of_llama, Candidate(fixed, "onnxruntime")),
        "a state": (attention.whole, Candidate(attention.write(folder / "stateful" / "decoder.xml"), "openvino")),
    }


@pytest.fixture(params=["one buffer", "two buffers", "a state"])
def pair(request: pytest.FixtureRequest, made: Made) -> tuple[Whole, Candidate]:
    return made[request.param]


def texts(count: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(length).integers(3, models.WORDS, (count, length))


def by_torch(model: Whole, text: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logarithms of probabilities after each token of texts, [texts, positions, words]."""
    with torch.no_grad():
        logits = model(torch.from_numpy(text)).double()
    found: NDArray[np.float64] = torch.log_softmax(logits, -1).numpy()
    return found


def of_next(logarithms: NDArray[np.float64], text: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the token that follows each position, [texts, positions - 1]."""
    return np.take_along_axis(logarithms[:, :-1], text[:, 1:, None], axis=2)[..., 0]


# what buffers are made for: the real thing is longer than one part
@pytest.mark.parametrize("length", [2, on_device.CHUNK, on_device.CHUNK + 1, on_device.CHUNK + 2, 300])
def test_texts_of_any_length_are_foretold_as_in_pytorch(pair: tuple[Whole, Candidate], length: int) -> None:
    model, candidate = pair
    text = texts(2, length)
    expected = by_torch(model, text)
    found = negative_log_likelihood(LOCAL, candidate, text)
    assert found.nll.dtype == np.float32 and found.best.dtype == np.int32
    np.testing.assert_allclose(found.nll, -of_next(expected, text), atol=2e-4)
    np.testing.assert_array_equal(found.best, expected[:, :-1].argmax(axis=2))


@pytest.mark.parametrize("first", [1, 100, 127, 128, 129, 198])
def test_what_gives_context_only_is_not_scored(made: Made, first: int) -> None:
    text = texts(2, 200)
    candidate = made["one buffer"][1]
    whole, part = (negative_log_likelihood(LOCAL, candidate, text, first=one) for one in (0, first))
    assert part.nll.shape == part.best.shape == (2, 199 - first)
    np.testing.assert_array_equal(part.nll, whole.nll[:, first:])
    np.testing.assert_array_equal(part.best, whole.best[:, first:])


def test_one_buffer_for_the_cache_changes_no_bit(made: Made) -> None:
    text = texts(3, 140)
    one, two = (negative_log_likelihood(LOCAL, made[name][1], text) for name in ("one buffer", "two buffers"))
    np.testing.assert_array_equal(one.nll, two.nll)


def greedy(model: Whole, prompt: list[int], most: int) -> list[int]:
    """The likeliest token after the likeliest token, each from the whole text anew."""
    text = list(prompt)
    with torch.no_grad():
        for _ in range(most):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    return text[len(prompt) :]


def test_it_writes_what_transformers_writes(tmp_path: Path, made: Made) -> None:
    model, prompt = models.llama(tmp_path / "model"), texts(1, 9)
    settings = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    told = model.generate(torch.from_numpy(prompt), **settings)[0, prompt.shape[1] :]
    found = generate(LOCAL, made["one buffer"][1], prompt.tolist(), most=30)
    assert found == [Written(tuple(told.tolist()), False)]


def test_it_writes_the_likeliest_and_is_heard_as_it_goes(pair: tuple[Whole, Candidate]) -> None:
    model, candidate = pair
    prompts = [texts(1, length)[0].tolist() for length in (1, 5, 150)]
    heard: list[tuple[int, int]] = []
    found = generate(LOCAL, candidate, prompts, most=20, heard=lambda prompt, token: heard.append((prompt, token)))
    expected = [greedy(model, prompt, 20) for prompt in prompts]
    assert found == [Written(tuple(tokens), False) for tokens in expected]
    assert heard == [(number, token) for number, tokens in enumerate(expected) for token in tokens]


def test_a_token_that_stops_is_none_of_them(pair: tuple[Whole, Candidate]) -> None:
    model, candidate = pair
    prompt = [5, 9, 11]
    whole = greedy(model, prompt, 20)
    at, stop = next((at, token) for at, token in enumerate(whole) if at > 1 and token not in whole[:at])
    never = next(token for token in range(models.WORDS) if token not in whole)
    assert generate(LOCAL, candidate, [prompt], most=20, stop=[never, stop]) == [Written(tuple(whole[:at]), True)]
    assert generate(LOCAL, candidate, [prompt], most=3, stop=[whole[0]]) == [Written((), True)]
    assert generate(LOCAL, candidate, [prompt], most=1) == [Written((whole[0],), False)]


def test_continuations_are_as_likely_as_by_hand(pair: tuple[Whole, Candidate]) -> None:
    model, candidate = pair
    context = texts(1, 140)[0].tolist()
    own = greedy(model, context, 3)
    pairs = [(context, own), (context, [*own[:2], 7]), (context[:-1], [context[-1], *own]), ([4], [5]), ([4], [6])]
    pairs += [([4, 5], [6, 8]), ([4], [5, 6, 9])]  # read once, split elsewhere
    expected = []
    for before, after in pairs:
        text = np.array([[*before, *after]])
        logarithms = by_torch(model, text)
        likely = logarithms[0, len(before) - 1 : -1].argmax(axis=1).tolist() == list(after)
        expected.append((of_next(logarithms, text)[0, len(before) - 1 :].sum(), likely))
    found = loglikelihoods(LOCAL, candidate, pairs)
    assert all(isinstance(one, Likelihood) for one in found)
    np.testing.assert_allclose([one.logarithm for one in found], [one for one, _ in expected], atol=5e-4)
    assert [one.greedy for one in found] == [likely for _, likely in expected]
    assert found[0].greedy and not found[1].greedy


@pytest.fixture(params=["onnxruntime", "openvino"])
def by_hand(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[models.Sums, Callable[[models.Sums], Candidate]]:
    """Sums, and what makes a file of them: with positions, other names for the cache, and in OpenVINO beams."""

    def write(sums: models.Sums) -> Candidate:
        if request.param == "onnxruntime":
            return Candidate(sums.write(tmp_path / "sums.onnx"), "onnxruntime")
        path = sums.write(tmp_path / "sums.onnx", beams=True)
        model, pairs = openvino.Core().read_model(path), {"memory_in": "memory_out"}
        return Candidate(models.stateful(model, tmp_path / "stateful" / "sums.xml", pairs), "openvino")

    return models.Sums(), write


def test_positions_beams_and_other_names(by_hand: tuple[models.Sums, Callable[[models.Sums], Candidate]]) -> None:
    sums, write = by_hand
    text = texts(2, 150)
    found = negative_log_likelihood(LOCAL, write(sums), text)
    logits = np.stack([sums.logits(one) for one in text])
    expected = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    expected -= logits.max(-1, keepdims=True)
    np.testing.assert_allclose(found.nll, -of_next(expected, text), rtol=1e-4, atol=1e-3)


def test_logits_that_are_no_numbers_are_an_error(
    by_hand: tuple[models.Sums, Callable[[models.Sums], Candidate]],
) -> None:
    sums, write = by_hand
    sums.head[:, 17] = np.nan
    candidate = write(sums)
    with pytest.raises(DeviceError, match="logits are not finite"):
        negative_log_likelihood(LOCAL, candidate, texts(1, 9))
    with pytest.raises(DeviceError, match="logits are not finite"):
        generate(LOCAL, candidate, [[3, 4]], most=2)
    with pytest.raises(DeviceError, match="logits are not finite"):
        loglikelihoods(LOCAL, candidate, [([3, 4], [5])])


def test_a_word_that_is_ruled_out_is_no_error_unless_it_comes() -> None:
    logits = np.array([[0, -np.inf, 0]], np.float32)
    found, _ = on_device.log_likelihoods(logits, np.array([[0, 2]]))
    np.testing.assert_allclose(found, np.log([[0.5, 0.5]]))
    assert on_device.next_word(logits) == 0
    none = np.full((1, 3), np.nan, np.float32)
    for wrong, target in ((logits, 1), (-logits, 0), (none, 0)):
        with pytest.raises(WorkerError, match="not finite"):
            on_device.log_likelihoods(wrong, np.array([[target]]))
    for wrong in (-logits, none):
        with pytest.raises(WorkerError, match="not finite"):
            on_device.next_word(wrong)


class Asked(list[int]):
    """A decoder that knows nothing, and keeps how much it was asked to read at once."""

    def decoder(self, logits: NDArray[np.float32]) -> on_device.Decoder:
        at = [0]

        def reset(room: int) -> None:
            at[0] = 0

        def step(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
            self.append(tokens.shape[1])
            at[0] += tokens.shape[1]
            return logits[at[0] - tokens.shape[1] : at[0]]

        return on_device.Decoder(reset, step, logits.shape[1])


@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 11])
@pytest.mark.parametrize("first", [0, 4, 9])
def test_parts_of_any_size_are_one_text(chunk: int, first: int) -> None:
    logits = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32) * 50
    read, ends = np.array([0, 5, 2, 2, 3, 1, 4, 0, 0, 5]), np.array([3, 0])
    asked = Asked()
    done: list[int] = []
    found = on_device.score(asked.decoder(logits), read, ends, first, done.append, chunk)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    np.testing.assert_allclose(found.within, [expected[i, read[i + 1]] for i in range(first, 9)], rtol=1e-12)
    np.testing.assert_allclose(found.ends, expected[9, ends], rtol=1e-12)
    np.testing.assert_array_equal(found.best, logits[first:].argmax(1))
    assert max(asked) <= chunk and sum(asked) == sum(done) == 10


@pytest.mark.parametrize("block", [1, 6, 13, 1000])
def test_likelihoods_of_blocks_are_those_of_all(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(on_device, "BLOCK", block)
    logits = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32) + 1e4  # whose exponentials have no end
    targets = np.random.default_rng(2).integers(0, 6, (9, 3))
    expected = np.take_along_axis(torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy(), targets, 1)
    found, best = on_device.log_likelihoods(logits, targets)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_array_equal(best, logits.argmax(1))


@pytest.mark.parametrize("name", ["one buffer", "a state"])
def test_speed_is_told_of_every_artefact_and_round(made: Made, name: str) -> None:
    candidate = made[name][1]
    steps: list[tuple[int, int]] = []

    class Steps(_Silent):
        def step(self, done: int, total: int) -> None:
            steps.append((done, total))

    found = speed(
        LOCAL, {"a": candidate, "b": candidate}, [5, 6, 7] * 20, new=7, context=150, rounds=3, progress=Steps()
    )
    assert list(found) == ["a", "b"] and steps[-1] == (3, 3)
    for one in found.values():
        assert one.prefill.shape == (3,) and one.decode.shape == (3, 7)
        assert (one.prefill > 0).all() and (one.decode > 0).all()
    some = speed(LOCAL, {"a": candidate}, [5, 6, 7], new=2, rounds=1000, seconds=0, fewest=2)
    assert some["a"].decode.shape == (2, 2)


class _Silent:
    def start(self, stage: str) -> None: ...
    def step(self, done: int, total: int) -> None: ...
    def end(self, stage: str, seconds: float) -> None: ...
    def note(self, text: str) -> None: ...


@pytest.mark.parametrize("name", ["one buffer", "a state"])
def test_memory_is_that_of_a_process_of_its_own(made: Made, name: str) -> None:
    filled = np.ones(1 << 26)  # 512 MB here are none of the worker's
    found = peak(LOCAL, made[name][1], list(range(3, 90)), runs=2)
    assert 0 < found.baseline_bytes < found.peak_bytes < filled.nbytes
    assert found.load_seconds > 0 and found.first_seconds > 0


@pytest.mark.parametrize(
    ("options", "kept"),
    [({}, "f32"), ({"precision": "float32"}, "f32"), ({"cache": "uint8"}, "u8"), ({"cache": "float16"}, "f16")],
)
def test_openvino_rounds_the_cache_only_where_it_is_asked_to(made: Made, options: dict[str, str], kept: str) -> None:
    how = Setting(threads=1, calls=1, others=False, profile=False)
    compiled = on_openvino._compiled(openvino, str(made["a state"][1].path), options, how)
    assert compiled.get_property("KV_CACHE_PRECISION").to_string() == kept
    assert openvino.Core().get_property("CPU", "KV_CACHE_PRECISION").to_string() != "f32"  # left to itself


def test_emulated_devices_tell_no_times(made: Made) -> None:
    candidate = made["one buffer"][1]
    device = dataclasses.replace(LOCAL, emulated=True)
    with pytest.raises(DeviceError, match="not latency"):
        speed(device, {"a": candidate}, [1, 2])
    with pytest.raises(DeviceError, match="not the device's"):
        peak(device, candidate, [1, 2])
    assert len(generate(device, candidate, [[1, 2]], most=2)[0].tokens) == 2


def test_an_emulated_arm_foretells_what_pytorch_does(made: Made) -> None:
    if qemu.read_machine(qemu.devices_folder() / "arm64") is None:
        pytest.skip("the emulated machine is not set up: edgeq device setup arm64")
    device: Device = open_device("arm64")
    model, candidate = made["one buffer"]
    text = texts(1, 135)
    found = negative_log_likelihood(device, candidate, text)
    np.testing.assert_allclose(found.nll, -of_next(by_torch(model, text), text), atol=2e-4)
    prompt = text[0, :5].tolist()
    assert generate(device, candidate, [prompt], most=4)[0].tokens == tuple(greedy(model, prompt, 4))


def test_what_is_no_token_is_refused(pair: tuple[Whole, Candidate]) -> None:
    candidate = pair[1]
    text = texts(1, 9)
    for wrong in (-1, models.WORDS):
        with pytest.raises(DeviceError, match=f"no token {wrong}: the model knows {models.WORDS}"):
            negative_log_likelihood(LOCAL, candidate, np.where(np.arange(9) == 8, wrong, text))
        with pytest.raises(DeviceError, match=f"no token {wrong}"):
            generate(LOCAL, candidate, [[1, 2], [wrong]], most=2)
        with pytest.raises(DeviceError, match=f"no token {wrong}"):
            loglikelihoods(LOCAL, candidate, [([1], [wrong])])
        with pytest.raises(DeviceError, match=f"no token {wrong}"):
            speed(LOCAL, {"a": candidate}, [1, wrong])
        with pytest.raises(DeviceError, match=f"no token {wrong}"):
            peak(LOCAL, candidate, [1, wrong])


def test_questions_without_an_answer_are_refused(made: Made) -> None:
    candidate = made["two buffers"][1]
    for first in (-1, 8, 9):
        with pytest.raises(DeviceError, match=f"no token is scored: first is {first} of 9"):
            negative_log_likelihood(LOCAL, candidate, texts(1, 9), first=first)
    for shape in ((3,), (0, 5), (2, 1)):
        with pytest.raises(DeviceError, match="two positions or more"):
            negative_log_likelihood(LOCAL, candidate, np.ones(shape, np.int32))
    for pair in (([], [1]), ([1], [])):
        with pytest.raises(DeviceError, match="pair 1: a context and a continuation"):
            loglikelihoods(LOCAL, candidate, [([1], [1]), pair])
    with pytest.raises(DeviceError, match="0 new tokens"):
        generate(LOCAL, candidate, [[1]], most=0)
    with pytest.raises(DeviceError, match="not empty"):
        generate(LOCAL, candidate, [[]], most=1)
    with pytest.raises(DeviceError, match="0 tokens after 1"):
        speed(LOCAL, {"a": candidate}, [1], new=0)
    odd = dataclasses.replace(candidate, options={"cache": "uint8"})
    with pytest.raises(DeviceError, match="cache=uint8"):
        generate(LOCAL, odd, [[1]], most=1)


def test_files_that_are_no_decoders_say_why(made: Made, tmp_path: Path) -> None:
    built = made["one buffer"][1].path
    shutil.copytree(built.parent, tmp_path / "bare")
    (tmp_path / "bare" / "genai_config.json").unlink()
    bare = Candidate(tmp_path / "bare" / "model.onnx", "onnxruntime")
    with pytest.raises(DeviceError, match=r"says how large 'past_key_values\.0\.key' is"):
        generate(LOCAL, bare, [[1]], most=1)
    with pytest.raises(DeviceError, match="keeps no cache itself: beside tokens it wants past_key_values"):
        generate(LOCAL, Candidate(bare.path, "openvino"), [[1]], most=1)
    other = device_models.write_float_onnx(tmp_path / "other.onnx")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(DeviceError, match="no decoder of tokens"):
            generate(LOCAL, Candidate(other, runtime), [[1]], most=1)
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(DeviceError, match="no language models in this runtime"):
        generate(LOCAL, Candidate(other, "litert"), [[1]], most=1)


def test_the_file_beside_a_model_may_call_its_ends_otherwise(tmp_path: Path) -> None:
    sums = models.Sums()
    path = sums.write(tmp_path / "sums.onnx", past="then_0_k", present="now_0_k")
    inputs = {"past_key_names": "then_%d_k", "past_value_names": "then_%d_v"}
    outputs = {"present_key_names": "now_%d_k", "present_value_names": "now_%d_v"}
    told = {"model": {"decoder": {"inputs": inputs, "outputs": outputs}}}
    (tmp_path / "genai_config.json").write_text(json.dumps(told))
    found = generate(LOCAL, Candidate(path, "onnxruntime"), [[5, 6]], most=3)[0].tokens
    text = [5, 6]
    for _ in range(3):
        text.append(int(sums.logits(np.array(text))[-1].argmax()))
    assert found == tuple(text[2:])

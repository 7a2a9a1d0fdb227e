"""Random Llamas as Hugging Face folders, and their float ONNX files; made once for all tests of a worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_text import INNER, LONGEST, TEXT, WIDTH, WORDS

from edgeq.language.decoder import Decoder, read_decoder
from edgeq.language.float_onnx import write_float
from edgeq.language.folder import open_folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By whether the ends are tied."""
    pytest.importorskip("onnxruntime_genai", reason="the extra language is not installed")
    return {kind: _llama(tmp_path_factory.mktemp(kind), tied=kind == "tied") for kind in ("tied", "apart")}


@pytest.fixture(scope="session")
def decoders(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    """The float files of the same."""
    found = {}
    for kind, folder in folders.items():
        found[kind] = read_decoder(write_float(open_folder(folder), tmp_path_factory.mktemp(f"{kind}-onnx")))
    return found


@pytest.fixture(scope="session", params=["tied", "apart"])
def decoder(request: pytest.FixtureRequest, decoders: dict[str, Decoder]) -> Decoder:
    return replace(decoders[request.param])


@pytest.fixture(scope="session")
def tokens() -> Any:
    return np.random.default_rng(1).integers(3, WORDS, (6, 48))


def _llama(folder: Path, *, tied: bool) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    letters = sorted({letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter.isascii() or letter == "Ġ"})
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    pieces.train_from_iterator([TEXT], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder

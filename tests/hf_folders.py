"""Folders as Hugging Face's tools write them: tiny encoders of random weights, with a tokenizer of a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = [
    "good",
    "bad",
    "fine",
    "poor",
    "warm",
    "cold",
    "bright",
    "dark",
    "film",
    "book",
    "song",
    "meal",
    "a",
    "the",
    "is",
    "was",
    "very",
    "not",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LENGTH = 12


def save_tokenizer(folder: Path) -> Any:
    """A WordPiece tokenizer with BERT's template."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = tokenizers.normalizers.BertNormalizer()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
        **names,
    )
    made.save_pretrained(folder)
    return made


def config(**more: Any) -> Any:
    return transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16, initializer_range=0.2, **more,
    )  # fmt: skip


def encoder(folder: Path, **kept: Any) -> Any:
    """A BERT for features, saved."""
    torch.manual_seed(0)
    model = transformers.BertModel(config()).eval()
    model.save_pretrained(folder, **kept)
    save_tokenizer(folder)
    return model


def classifier(folder: Path) -> Any:
    """A BERT that tells three classes apart, saved."""
    torch.manual_seed(0)
    labels = ["poor", "fair", "good"]
    model = transformers.BertForSequenceClassification(
        config(id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
    ).eval()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def sentences(folder: Path, *kinds: str, pooling: dict[str, Any] | None = None) -> None:
    """What sentence-transformers writes beside an encoder."""
    places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    steps = [
        {"idx": i, "name": str(i), "path": places[kind], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    told = pooling if pooling is not None else {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **told}))


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Of two to eight words each."""
    made = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(2, 9, (1,), generator=made))
        found.append(" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=made).tolist()))
    return found

"""Encoders from a folder of Hugging Face's: sentences or classes from a text, read by transformers without a network.

The network takes what the folder's tokenizer makes of a text, at one length, and gives logits, the sentence's
embedding, or the last hidden state (docs/transformers.md).
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edgeq.errors import UnsupportedError, UsageError
from edgeq.frontends.examples import Given
from edgeq.frontends.loaded import Loaded
from edgeq.frontends.sentences import Steps, read_steps
from edgeq.frontends.trace import from_module
from edgeq.hugging_face.folder import (
    CONFIG,
    MODULES,
    SENTENCES,
    HfFolder,
    has_tokenizer,
    is_decoder,
    read_folder,
    read_settings,
)
from edgeq.hugging_face.offline import offline
from edgeq.hugging_face.tokenizer import load_tokenizer
from edgeq.model.refusals import gist

KIND = "Hugging Face encoder"
LONGEST = 128
"""Tokens of an input, where the folder allows more and `--input` does not ask for it: time grows with the square."""

_CLASSIFIER = "ForSequenceClassification"
_MASKED = "ForMaskedLM"
_SUPPORTED = (
    f"encoders such as BERT, RoBERTa, DistilBERT, MPNet or ELECTRA, saved as *{_CLASSIFIER} or as *Model, "
    "or for sentence-transformers"
)
_UNBOUND = 1 << 20
"""Tokenizers that know no end say so by a number far beyond this one."""


class Network(torch.nn.Module):
    """An encoder with the arguments that its tokenizer gives, and one output that is named.

    Args:
        encoder: of transformers.
        steps: from the last hidden state to the output; None for the encoder's own.
        output: `logits` or `last_hidden_state`, of what the encoder returns.
    """

    def __init__(self, encoder: torch.nn.Module, steps: Steps | None, output: str) -> None:
        super().__init__()
        self.encoder, self.steps, self.output = encoder, steps, output

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            input_ids: [N, T], numbers of words.
            attention_mask: [N, T], 1 where a token counts and 0 where it only fills up.
            token_type_ids: [N, T], 1 in the second of two texts; for encoders that tell them apart.
        """
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = getattr(self.encoder(input_ids=input_ids, attention_mask=attention_mask, **more), self.output)
        if self.steps is None:
            return {self.output: found}
        return {"sentence_embedding": self.steps(found, attention_mask)}


def read_hugging_face(path: Path, given: Given, trust: bool) -> Loaded:
    """The encoder of a folder as an exported program.

    Args:
        path: of the folder.
        given: inputs whose shape says how many tokens a text has.
        trust: whether weights may be pickles.

    Raises:
        UsageError: something in the folder is missing or damaged, needs trust, or does not fit the rest.
        UnsupportedError: it is no encoder, or cannot be exported.
        MissingExtraError: transformers is not installed.
    """
    folder, steps = read_folder(path), read_steps(path)
    if "quantization_config" in folder.config:
        raise UnsupportedError(
            "its weights are quantized already",
            where=f"{path.name}/{CONFIG}",
            remedy="give the folder of the float model that it was made from",
        )
    if folder.pickled and not trust:
        raise UsageError(
            "its weights are pickles, which run code while they are read",
            where=f"{path.name}/{folder.weights[0].name}",
            remedy="give a folder with model.safetensors, or --trust-pickle if you trust whoever made it",
        )
    if not has_tokenizer(path):
        raise UsageError(
            "it holds no tokenizer", where=path.name, remedy="save it there with tokenizer.save_pretrained(folder)"
        )
    with offline():
        classifies = _is_classifier(folder, steps)
        tokenizer = load_tokenizer(path)
        read = _encoder(folder, classifies)
        module = Network(read.module, steps, "logits" if classifies else "last_hidden_state").eval()
        names = _arguments(read.module, tokenizer)
        sample = _sample(folder, names, _length(folder, tokenizer, given), tokenizer)
        loaded = from_module(module, Given(sample, names), path.name)
    _refuse_random(loaded, read.missing, path.name)
    notes = loaded.notes if steps is None else (*loaded.notes, f"its output is the sentence's embedding: {steps}")
    return replace(loaded, kind=KIND, notes=(*read.notes, *notes))


def _is_classifier(folder: HfFolder, steps: Steps | None) -> bool:
    """Whether logits are meant, and not what the encoder makes of each token.

    Raises:
        UnsupportedError: it is neither.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    named, kind = folder.architecture, str(folder.config.get("model_type", ""))
    cause = f"its architecture is {named or 'not said'}"
    if is_decoder(folder.path):
        raise UnsupportedError(
            f"{cause}, which continues a text and is no network of fixed inputs",
            where=folder.path.name,
            remedy=f"edgeq deploy and edgeq plan take it; this command reads {_SUPPORTED}",
        )
    classifies = named.endswith(_CLASSIFIER)
    known = classifies or named.endswith("Model") or (named.endswith(_MASKED) and steps is not None)
    if not known or kind not in ENCODERS or folder.config.get("is_encoder_decoder", False):
        raise UnsupportedError(
            f"{cause} ({kind or 'no model_type'})", where=folder.path.name, remedy=f"supported are {_SUPPORTED}"
        )
    if classifies and steps is not None:
        raise UnsupportedError(
            f"{cause}, and {MODULES} makes a sentence's embedding of it",
            where=folder.path.name,
            remedy=f"remove {MODULES} if classes are wanted",
        )
    return classifies


class _Encoder(NamedTuple):
    """An encoder in float32, the tensors that its file lacks, and what to tell of it."""

    module: torch.nn.Module
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def _encoder(folder: HfFolder, classifies: bool) -> _Encoder:
    from transformers import AutoModel, AutoModelForSequenceClassification

    where = folder.path.name
    kind = AutoModelForSequenceClassification if classifies else AutoModel
    try:
        module, told = kind.from_pretrained(
            str(folder.path),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=not folder.pickled,
            weights_only=not folder.pickled,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, with their names
        )
    except MemoryError:
        raise
    except Exception as error:
        raise UsageError(
            f"it cannot be read ({gist(error)})",
            where=where,
            remedy="download the folder again; config.json and weights have to be of one model",
        ) from error
    other = sorted(str(one[0]) for one in told["mismatched_keys"])
    if other:
        raise UsageError(
            f"{len(other)} of its tensors have other shapes than config.json says: {_few(other)}",
            where=where,
            remedy="config.json and weights have to be of one model",
        )
    stored = folder.config.get("torch_dtype") or folder.config.get("dtype")
    halves = isinstance(stored, str) and stored in ("float16", "bfloat16")
    notes = (f"weights in {stored} were converted to float32",) if halves else ()
    return _Encoder(module.eval(), tuple(sorted(map(str, told["missing_keys"]))), notes)


def _refuse_random(loaded: Loaded, missing: tuple[str, ...], where: str) -> None:
    """transformers fills up what a file lacks with random numbers: harmless only where nothing is computed from it, as
    in a pooler whose output nobody takes."""
    signature = loaded.program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    waiting, seen = [loaded.program.graph.output_node()], set[torch.fx.Node]()
    while waiting:
        node = waiting.pop()
        waiting += [one for one in node.all_input_nodes if one not in seen]
        seen.update(node.all_input_nodes)
    used = {tensors[node.name].removeprefix("encoder.") for node in seen if node.name in tensors}
    random = [name for name in missing if name in used]
    if random:
        raise UsageError(
            f"{len(random)} tensors are missing from its weights: {_few(random)}",
            where=where,
            remedy="give the folder of the model that was trained for this, whole",
        )


def _arguments(module: torch.nn.Module, tokenizer: Any) -> tuple[str, ...]:
    """Those that the tokenizer gives and the encoder takes, in the order of `Network.forward`."""
    taken = inspect.signature(module.forward).parameters
    more = "token_type_ids"
    both = more in tokenizer.model_input_names and more in taken
    return ("input_ids", "attention_mask", *([more] if both else []))


def _length(folder: HfFolder, tokenizer: Any, given: Given) -> int:
    """How many tokens an input has: what the user says, or what the folder allows, but not more than `LONGEST`.

    Raises:
        UsageError: the user says something else than [N, tokens], or more than the network takes.
    """
    limits = [LONGEST]
    sentence = read_settings(folder.path, SENTENCES) if (folder.path / SENTENCES).is_file() else {}
    for most in (sentence.get("max_seq_length"), getattr(tokenizer, "model_max_length", None)):
        if isinstance(most, int) and 0 < most < _UNBOUND:
            limits.append(most)
    positions = folder.config.get("max_position_embeddings")
    most = positions if isinstance(positions, int) and positions > 0 else _UNBOUND
    if not given.tensors:
        return min(*limits, most)
    shapes = {tuple(tensor.shape) for tensor in given.tensors}
    (shape,) = shapes if len(shapes) == 1 else ((),)
    if len(shape) != 2 or not 0 < shape[1] <= most:
        raise UsageError(
            "--input says something else than one number of tokens for all inputs"
            if len(shape) != 2
            else f"--input asks for {shape[1]} tokens, and the network has {most} positions",
            where=folder.path.name,
            remedy=f"for example --input 1x{min(*limits, most)}:int64",
        )
    return shape[1]


def _sample(folder: HfFolder, names: tuple[str, ...], length: int, tokenizer: Any) -> tuple[torch.Tensor, ...]:
    """Two inputs that tell arguments and positions apart: other words everywhere, the second one filled up."""
    made = torch.Generator().manual_seed(0)
    words = min(folder.count("vocab_size") or len(tokenizer), len(tokenizer))
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, (length + 1) // 2 :] = 0
    ids = torch.randint(words, (2, length), generator=made)
    ids = torch.where(mask == 1, ids, int(tokenizer.pad_token_id or 0))
    types = folder.count("type_vocab_size") or 1
    found = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.randint(min(types, 2), (2, length), generator=made),
    }
    return tuple(found[name] for name in names)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

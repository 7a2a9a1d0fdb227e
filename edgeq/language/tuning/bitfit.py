"""Biases that are learned on 8-bit weights that stay (Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient
Fine-tuning for Transformer-based Masked Language-models", arXiv 2106.10199).

Few decoders have biases. Those layers get one, of zeros, that the model's `config.json` can tell of: then any program
that reads the folder knows them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from edgeq.errors import UnsupportedError
from edgeq.hugging_face.offline import offline
from edgeq.language.tuning.adapted import Adapted, exchanged, linear
from edgeq.packed.layers import PackedLinear
from edgeq.packed.quantize import quantize

FLAGS = ("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias")
"""Settings in `config.json` that give linear layers biases, each of some architectures."""

GROUP = 32
"""Numbers of a row that share a scale: as those that artefacts have, so that their integers can be the same."""


def bitfit(model: Any) -> Adapted:
    """Packs a model's linear layers into 8 bits, and gives them biases that learn, with those that it has.

    Args:
        model: of transformers; it is changed.

    Raises:
        UnsupportedError: its config has no setting for biases, or that changes more than linear layers.
    """
    config = _with_biases(model.config)
    for name in _places(model, config):
        layer = model.get_submodule(name)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_features))
    model.config = config
    quantize(model, "int8", GROUP, inplace=True)
    learned = {name: one for name, one in model.named_parameters() if name.split(".")[-1] == "bias"}
    for one in learned.values():
        one.requires_grad_(True)

    def merged() -> Any:
        exchanged(model, lambda _, layer: _whole(layer))
        return model

    return Adapted(model, learned, merged)


def _whole(layer: nn.Module) -> nn.Module | None:
    return linear(layer.weight, layer.bias) if isinstance(layer, PackedLinear) else None


def _with_biases(config: Any) -> Any:
    found = copy.deepcopy(config)
    for flag in FLAGS:
        if getattr(found, flag, None) is False:
            setattr(found, flag, True)
    return found


def _places(model: Any, config: Any) -> list[str]:
    """Names of the linear layers that have a bias in a model of this config."""
    with offline(), torch.device("meta"):
        from transformers import AutoModelForCausalLM

        other = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    places = [name for name, one in other.named_modules() if isinstance(one, nn.Linear) and one.bias is not None]
    architecture = type(model).__name__
    if not places:
        raise UnsupportedError(
            f"a config.json of {architecture} has no setting that gives linear layers biases",
            where="--adapt bitfit",
            remedy="--adapt qlora needs none",
        )
    biases = {f"{name}.bias" for name in places}
    names = {name for name, _ in model.named_parameters()}
    if strange := {name for name, _ in other.named_parameters()} ^ (names | biases):
        raise UnsupportedError(
            f"what gives the linear layers of {architecture} biases also changes {min(strange)}",
            where="--adapt bitfit",
            remedy="--adapt qlora leaves its layers as they are",
        )
    return places

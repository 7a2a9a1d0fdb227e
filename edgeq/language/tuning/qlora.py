"""Low-rank matrices that are learned beside 4-bit weights that stay (Dettmers et al. 2023, "QLoRA: Efficient Finetuning
of Quantized LLMs", arXiv 2305.14314).

The base is stored as NF4 with factors that are rounded as well (double quantization, section 3) by bitsandbytes, and
the matrices are PEFT's, on all linear layers but the one that scores words.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.hugging_face.offline import offline
from edgeq.language.tuning.adapted import Adapted, exchanged, linear

RANK = 16
"""Of the matrices, where nothing else is asked for."""

TIMES = 2
"""What the product of the two matrices is multiplied by: LoRA's alpha in parts of the rank."""

_NAME = "default"


def qlora(model: Any, rank: int, called: str) -> Adapted:
    """Packs a model's linear layers into NF4, and puts low-rank matrices beside them.

    Args:
        model: of transformers; it is changed.
        rank: of the matrices.
        called: the model's folder, which PEFT writes into the adapter.

    Raises:
        MissingExtraError: bitsandbytes or PEFT is not installed.
        UnsupportedError: weights are no matrices of linear layers, such as those of experts.
    """
    refuse_missing()
    if others := [name for name, one in model.named_parameters() if one.ndim > 2]:
        raise UnsupportedError(
            f"it has {len(others)} weights that are no matrices of linear layers, such as those of experts",
            where=others[0],
            remedy="give a model without experts and convolutions",
        )
    with offline():
        import peft

        _pack(model)
        model.is_loaded_in_4bit = True  # PEFT asks this before it looks at the type of layers
        model.name_or_path = called
        config = peft.LoraConfig(
            r=rank, lora_alpha=TIMES * rank, target_modules="all-linear", bias="none", task_type="CAUSAL_LM"
        )
        whole = peft.get_peft_model(model, config)
    learned = {name: one for name, one in whole.named_parameters() if one.requires_grad}

    def merged() -> Any:
        exchanged(model, lambda _, layer: _whole(layer))
        del model.is_loaded_in_4bit
        return model

    def beside(out: Path) -> None:
        with offline():
            whole.save_pretrained(str(out), save_embedding_layers=False)
        (out / "README.md").unlink(missing_ok=True)  # an empty form

    return Adapted(whole, learned, merged, beside)


def refuse_missing() -> None:
    """
    Raises:
        MissingExtraError: bitsandbytes or PEFT is not installed.
    """
    for package in ("bitsandbytes", "peft"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "qlora")


def _pack(model: Any) -> None:
    """Linear layers become NF4, but for the one that scores words: as transformers does when it loads a model so."""
    import bitsandbytes as bnb

    scores = model.get_output_embeddings()

    def packed(_: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear or layer is scores:
            return None
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        new = bnb.nn.Linear4bit(*sizes, torch.float32, quant_type="nf4", device="meta")
        new.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4", module=new)
        if layer.bias is not None:
            new.bias = layer.bias
        new.support_avx512bf16_for_cpu = False  # it would repack the integers, and multiply in bfloat16
        done: nn.Module = new.to("cpu")
        return done

    exchanged(model, packed)


def _whole(layer: nn.Module) -> nn.Module | None:
    import bitsandbytes as bnb
    from peft.tuners.lora import LoraLayer

    if isinstance(layer, LoraLayer):
        base = layer.get_base_layer()
        return linear(_real(base) + layer.get_delta_weight(_NAME).detach(), base.bias)
    return linear(_real(layer), layer.bias) if isinstance(layer, bnb.nn.Linear4bit) else None


def _real(layer: Any) -> torch.Tensor:
    """[outputs, inputs] in float32."""
    import bitsandbytes as bnb

    found: torch.Tensor = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return found.float()

"""The formats of packed checkpoints that are read, by the `quant_method` of their config. A format is an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeq.errors import EdgeqError, UnsupportedError
from edgeq.language.checkpoints.awq import awq
from edgeq.language.checkpoints.bits_and_bytes import bits_and_bytes
from edgeq.language.checkpoints.compressed import compressed
from edgeq.language.checkpoints.gptq import gptq
from edgeq.language.checkpoints.layer import Layout, Opener

FORMATS: dict[str, Opener] = {
    "gptq": gptq,
    "awq": awq,
    "bitsandbytes": bits_and_bytes,
    "compressed-tensors": compressed,
}

KEYS = ("quantization_config", "compression_config")
"""Under which a config tells of it."""


def layout_of(config: Mapping[str, Any], where: str) -> Layout | None:
    """How the weights of a folder are packed; None where they are float.

    Args:
        config: what its `config.json` says.

    Raises:
        UnsupportedError: they are packed in a way that is not read.
    """
    told = next((config[key] for key in KEYS if config.get(key)), None)
    if told is None:
        return None
    name = told.get("quant_method") if isinstance(told, dict) else None
    if name is None and isinstance(told, dict) and (told.get("load_in_8bit") or told.get("load_in_4bit")):
        name = "bitsandbytes"  # which did not name itself at first
    if name not in FORMATS:
        raise UnsupportedError(
            f"its weights are packed by {str(name)[:80]!r}",
            where=where,
            remedy=f"give the float model, or one packed by {', '.join(FORMATS)}",
        )
    try:
        return FORMATS[name](told)
    except EdgeqError as error:
        error.where = error.where or f"{where}: {name}"
        raise

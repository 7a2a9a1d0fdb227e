"""The float model of a folder, as transformers loads it: what is adapted, and what an adapted folder is compared by."""

from __future__ import annotations

from typing import Any

import torch

from edgeq.errors import UnsupportedError, UsageError
from edgeq.hugging_face.folder import HfFolder
from edgeq.hugging_face.offline import offline

ADAPTER = "adapter_config.json"
"""Of PEFT: transformers would load what it names, wherever that lies."""


def load_base(folder: HfFolder) -> Any:
    """A model of one of transformers' classes, float32, in which nothing learns.

    Raises:
        UsageError: the folder is an adapter, not a model.
        UnsupportedError: transformers cannot load it, or a weight is missing.
        MissingExtraError: transformers is not installed.
    """
    where = str(folder.path)
    if (folder.path / ADAPTER).exists():
        remedy = f"give the folder of the whole model, without {ADAPTER}"
        raise UsageError("it holds an adapter beside the model, or in its place", where=where, remedy=remedy)
    with offline():
        from transformers import AutoModelForCausalLM

        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder.path),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:
            cause = f"transformers cannot load it ({' '.join(str(error).split())[:200] or type(error).__name__})"
            raise UnsupportedError(cause, where=where, remedy="look at its files, or download it again") from error
    model, told = loaded
    lost = [*map(str, told["missing_keys"]), *(str(one[0]) for one in told["mismatched_keys"])]
    if lost:
        raise UnsupportedError(
            f"the weight {min(lost)} is not in its files, or not as config.json says",
            where=where,
            remedy="copy config.json and the weights from the same model",
        )
    return model.eval().requires_grad_(False)

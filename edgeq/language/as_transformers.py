"""What transformers itself foretells, for a float file to be compared with. Run as a process of its own: it holds the
whole model, and half of transformers.

    python -m edgeq.language.as_transformers FOLDER TOKENS.npy OUT.npy READ.json

TOKENS are int64 [1, length]. OUT are float32 [length - 1], the negative log-likelihood of each token but the first.
READ are names of weights: `lost`, which its files have not or in another shape, and `unread`, which it has no use for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: str, tokens: str, out: str, read: str) -> None:
    """See above."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
    )
    model, told = loaded
    lost = [*map(str, told["missing_keys"]), *(str(one[0]) for one in told["mismatched_keys"])]
    Path(read).write_text(json.dumps({"lost": sorted(lost), "unread": sorted(map(str, told["unexpected_keys"]))}))
    model.eval()
    ids = torch.from_numpy(np.load(tokens))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, :-1]
        np.save(out, torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").float().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])

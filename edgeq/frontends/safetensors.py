"""Reading safetensors files, which hold tensors by name and nothing that runs."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import torch

from edgeq.model.refusals import damaged


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Format: 8 bytes of header length, a JSON header, then the raw tensors at the offsets that it gives."""
    types = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    }  # fmt: skip
    data = path.read_bytes()
    try:
        start = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            low, high = entry["data_offsets"]
            shape, dtype = entry["shape"], types[entry["dtype"]]
            if not 0 <= low <= high <= len(data) - start or high - low != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"the tensor {name!r} does not lie inside the file")
            buffer = bytearray(data[start + low : start + high])
            flat = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
            tensors[str(name)] = flat.reshape(shape)
    except Exception as error:
        raise damaged(path.name, error) from error
    return tensors

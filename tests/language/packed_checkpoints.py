"""Checkpoints of packed weights, written number by number as their formats are documented, from a float folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file


class Written(NamedTuple):
    """Attributes:
    tensors: by the ends of their names.
    real: float32, what they stand for.
    integers: as stored, [outputs, inputs]; None where neighbours share no scales.
    """

    tensors: dict[str, torch.Tensor]
    real: Any
    integers: Any


def write(source: Path, out: Path, config: dict[str, Any], pack: Callable[[Any], Written]) -> dict[str, Written]:
    """A folder whose linear layers are packed; by layer, what was written."""
    shutil.copytree(source, out)
    found, tensors = {}, {}
    for name, tensor in load_file(out / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            layer = name.removesuffix(".weight")
            found[layer] = pack(tensor.float().numpy())
            tensors |= {f"{layer}{end}": one.clone().contiguous() for end, one in found[layer].tensors.items()}
        else:
            tensors[name] = tensor
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    told = json.loads((out / "config.json").read_text()) | {"quantization_config": config}
    (out / "config.json").write_text(json.dumps(told))
    return found


def gridded(weight: Any, bits: int, group: int, *, symmetric: bool, of: Any = None) -> tuple[Any, Any, Any]:
    """Integers [outputs, inputs], zero points and float16 scales [outputs, groups]; `of` is the group of each input."""
    of = np.arange(weight.shape[1]) // group if of is None else of
    most = (1 << bits) - 1
    integers = np.zeros(weight.shape, np.int64)
    scales, zeros = [], []
    for number in range(of.max() + 1):
        mine = weight[:, of == number]
        low, high = np.minimum(mine.min(1), 0), np.maximum(mine.max(1), 0)
        if symmetric:
            scale = np.maximum(np.maximum(-low, high) * 2 / most, 1e-4).astype(np.float16).astype(np.float64)
            zero = np.full(len(weight), (most + 1) // 2)
        else:
            scale = np.maximum((high - low) / most, 1e-4).astype(np.float16).astype(np.float64)
            zero = np.clip(np.rint(-low / scale), 0, most).astype(np.int64)
        integers[:, of == number] = np.clip(np.rint(mine / scale[:, None]) + zero[:, None], 0, most)
        scales.append(scale)
        zeros.append(zero)
    return integers, np.stack(zeros, 1), np.stack(scales, 1)


def real(integers: Any, zero: Any, scale: Any, of: Any) -> Any:
    return ((integers - zero[:, of]) * scale[:, of]).astype(np.float32)


def words(rows: Any, bits: int) -> torch.Tensor:
    """Each row's numbers as a stream of bits, the lowest first, cut to words: int32 [rows, words]."""
    found = []
    for row in rows:
        stream = sum(int(number) << (bits * place) for place, number in enumerate(row))
        count = -(-len(row) * bits // 32)
        found.append([(stream >> (32 * word)) & 0xFFFFFFFF for word in range(count)])
    return torch.from_numpy(np.array(found, np.uint32).view(np.int32))


def gptq(bits: int, group: int, *, v2: bool = False, symmetric: bool = False, act_order: bool = False) -> Any:
    def pack(weight: Any) -> Written:
        inputs = weight.shape[1]
        of = np.arange(inputs) // group
        if act_order:
            of = np.random.default_rng(inputs).permutation(of)
        integers, zero, scale = gridded(weight, bits, group, symmetric=symmetric, of=of)
        if v2:
            stored = words(zero.T, bits)
        else:  # one less, of all numbers of a word together
            ones = sum(1 << at for at in range(0, 32, bits))
            stored = ((words(zero.T, bits).to(torch.int64) - ones) & 0xFFFFFFFF).numpy().astype(np.uint32)
            stored = torch.from_numpy(stored.view(np.int32))
        tensors = {
            ".qweight": words(integers, bits).T,
            ".qzeros": stored,
            ".scales": torch.from_numpy(scale.T.astype(np.float16)),
            ".g_idx": torch.from_numpy(of.astype(np.int32)),
        }
        return Written(tensors, real(integers, zero, scale, of), None if act_order else integers)

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": symmetric}
    return config | ({"checkpoint_format": "gptq_v2"} if v2 else {}), pack


def awq(group: int) -> Any:
    def lying(rows: Any) -> torch.Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return words([[row[at + place] for at in range(0, len(row), 8) for place in order] for row in rows], 4)

    def pack(weight: Any) -> Written:
        integers, zero, scale = gridded(weight, 4, group, symmetric=False)
        scales = torch.from_numpy(scale.T.astype(np.float16))
        tensors = {".qweight": lying(integers.T), ".qzeros": lying(zero.T), ".scales": scales}
        return Written(tensors, real(integers, zero, scale, np.arange(weight.shape[1]) // group), integers)

    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}, pack


def bnb8() -> Any:
    def pack(weight: Any) -> Written:
        largest = np.abs(weight).max(1).astype(np.float32)
        integers = np.rint(weight / largest[:, None] * 127).astype(np.int8)
        scale = largest / np.float32(127)
        tensors = {".weight": torch.from_numpy(integers), ".SCB": torch.from_numpy(largest)}
        tensors[".weight_format"] = torch.tensor(0, dtype=torch.uint8)
        return Written(tensors, integers.astype(np.float32) * scale[:, None], integers.astype(np.int64) + 128)

    return {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, pack


LEVELS = np.array([-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1], np.float32)  # fmt: skip  # noqa: E501


def bnb4(*, nested: bool) -> Any:
    block, outer = 64, 16

    def pack(weight: Any) -> Written:
        flat = weight.reshape(-1)
        assert len(flat) % block == 0
        largest = np.abs(flat.reshape(-1, block)).max(1)
        tensors = {".weight.quant_map": torch.from_numpy(LEVELS)}
        state: dict[str, Any] = {
            "quant_type": "nf4", "blocksize": block, "dtype": "float16", "shape": list(weight.shape)
        }  # fmt: skip
        if nested:
            offset = float(np.float32(largest.mean()))
            table = np.linspace(-1, 1, 256, dtype=np.float32)
            spread = largest - np.float32(offset)
            padded = np.pad(spread, (0, -len(spread) % outer)).reshape(-1, outer)
            outmost = np.maximum(np.abs(padded).max(1), 1e-6).astype(np.float32)
            places = np.abs(
                (spread / np.repeat(outmost, outer)[: len(spread)])[:, None] - table[None]
            ).argmin(1)  # fmt: skip
            largest = (table[places] * np.repeat(outmost, outer)[: len(spread)] + np.float32(offset)).astype(np.float32)
            tensors[".weight.absmax"] = torch.from_numpy(places.astype(np.uint8))
            tensors[".weight.nested_absmax"] = torch.from_numpy(outmost)
            tensors[".weight.nested_quant_map"] = torch.from_numpy(table)
            state |= {"nested_blocksize": outer, "nested_dtype": "float32", "nested_offset": offset}
        else:
            tensors[".weight.absmax"] = torch.from_numpy(largest)
        each = np.repeat(largest, block)
        taken = np.abs((flat / each)[:, None] - LEVELS[None]).argmin(1)
        bytes_ = [(int(taken[at]) << 4) | int(taken[at + 1]) for at in range(0, len(taken), 2)]
        tensors[".weight"] = torch.tensor(bytes_, dtype=torch.uint8).reshape(-1, 1)
        told = json.dumps(state).encode()
        tensors[".weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(told), dtype=torch.uint8)
        return Written(tensors, (LEVELS[taken] * each).reshape(weight.shape), None)

    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, pack


def compressed(bits: int, group: int, *, symmetric: bool) -> Any:
    def pack(weight: Any) -> Written:
        size = group if weight.shape[1] % group == 0 else weight.shape[1]
        integers, zero, scale = gridded(weight, bits, size, symmetric=symmetric)
        tensors = {
            ".weight_packed": words(integers, bits),
            ".weight_scale": torch.from_numpy(scale.astype(np.float16)),
            ".weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            tensors[".weight_zero_point"] = words(zero.T, bits).T
        return Written(tensors, real(integers, zero, scale, np.arange(weight.shape[1]) // size), integers)

    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}, pack


KINDS: dict[str, Callable[[], Any]] = {
    "gptq": lambda: gptq(4, 32),
    "gptq symmetric": lambda: gptq(4, 32, symmetric=True),
    "gptq v2, 8 bits": lambda: gptq(8, 64, v2=True),
    "gptq, 2 bits": lambda: gptq(2, 32),
    "gptq, act order": lambda: gptq(4, 16, act_order=True),
    "gptq, whole rows": lambda: gptq(4, 1 << 20),
    "awq": lambda: awq(32),
    "bitsandbytes, 8 bits": bnb8,
    "bitsandbytes, nf4": lambda: bnb4(nested=False),
    "bitsandbytes, nested nf4": lambda: bnb4(nested=True),
    "compressed-tensors": lambda: compressed(4, 32, symmetric=True),
    "compressed-tensors, zero points": lambda: compressed(8, 32, symmetric=False),
}

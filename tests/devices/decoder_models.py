"""Small language models: a Llama with random weights, as ONNX Runtime GenAI's builder writes it, and one by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

WORDS, WIDTH, HEADS, LONGEST = 96, 64, 4, 320  # ONNX Runtime wants heads of a multiple of 16


def llama(folder: Path) -> Any:
    """Random weights, larger than a fresh model's, so that its answers differ; saved in a folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    words = Tokenizer(
        WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w0")
    )  # the builder's wish
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return model


def build(folder: Path, out: Path) -> Path:
    """The same as an ONNX file with a cache, its weights beside it."""
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "made/here", "-p", "fp32", "-e", "cpu"]
    command = [*builder, "-i", str(folder), "-o", str(out), "-c", str(out.parent / "kept")]
    subprocess.run(command, check=True, capture_output=True)
    return out / "model.onnx"


def with_fixed_cache(built: Path, out: Path) -> Path:
    """The same without a word beside it: the file itself says how wide its cache is."""
    model = onnx.load(built)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past", "present")):
            value.type.tensor_type.shape.dim[3].dim_value = WIDTH // HEADS
    out.parent.mkdir()
    onnx.save(model, out)
    return out


class Attention(torch.nn.Module):
    """One layer of attention by hand, with a cache that OpenVINO knows as one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.tokens, self.places = torch.nn.Embedding(WORDS, WIDTH), torch.nn.Embedding(LONGEST, WIDTH)
        self.parts = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = torch.nn.Linear(WIDTH, WORDS)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        beam_idx: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        read = self.tokens(input_ids) + self.places(position_ids)
        q, k, v = (part(read).reshape(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for part in self.parts)
        k, v = torch.cat([key.index_select(0, beam_idx), k], 2), torch.cat([value.index_select(0, beam_idx), v], 2)
        before = torch.arange(attention_mask.shape[1])[None] <= position_ids[0][:, None]
        mask = (before & attention_mask[0].bool()[None])[None, None]
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.head(seen.transpose(1, 2).reshape(1, -1, WIDTH)), k, v

    def whole(self, text: Tensor) -> Tensor:
        """Logits after each token of texts that are read at once."""
        none, count = torch.zeros(1, HEADS, 0, WIDTH // HEADS), text.shape[1]
        ends = torch.ones(1, count), torch.arange(count)[None], torch.zeros(1, dtype=torch.int32), none, none
        return torch.cat([self(one[None], *ends)[0] for one in text])

    def write(self, path: Path) -> Path:
        """As a file of OpenVINO."""
        import openvino

        count, past = 3, 2
        cache = torch.zeros(1, HEADS, past, WIDTH // HEADS)
        example = {
            "input_ids": torch.zeros(1, count, dtype=torch.int64),
            "attention_mask": torch.ones(1, past + count, dtype=torch.int64),
            "position_ids": torch.arange(past, past + count)[None],
            "beam_idx": torch.zeros(1, dtype=torch.int32),
            "key": cache,
            "value": cache,
        }
        model = openvino.convert_model(self.eval(), example_input=example)
        for port, name in zip(model.outputs, ("logits", "key_then", "value_then"), strict=True):
            port.tensor.set_names({name})
        return stateful(model, path, {"key": "key_then", "value": "value_then"})


def stateful(model: Any, out: Path, pairs: dict[str, str]) -> Path:
    """A model of OpenVINO that keeps the cache itself.

    Args:
        pairs: the outputs that go on as inputs, by the inputs' names.
    """
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    shapes = {one.get_any_name(): one.partial_shape for one in model.inputs}
    for name, shape in shapes.items():
        shape[0] = 1
        if name in pairs and shape[3].is_dynamic:
            shape[1], shape[3] = HEADS, WIDTH // HEADS
    model.reshape(shapes)
    apply_make_stateful_transformation(model, pairs)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":  # a state of attention's wants to be told how it begins
            shape = [0 if size.is_dynamic else size.get_length() for size in node.get_output_partial_shape(0)]
            node.set_arguments([openvino.op.Constant(np.zeros(shape, np.float32))])
    model.validate_nodes_and_infer_types()
    out.parent.mkdir(exist_ok=True)
    openvino.save_model(model, out, compress_to_fp16=False)
    return out


class Sums:
    """A decoder by hand: what it says is a product with the sum of all that it has read, by token and by position.

    Attributes:
        tokens: float32 [words, 4].
        places: float32 [positions, 4].
        head: float32 [4, words].
    """

    def __init__(self, seed: int = 0) -> None:
        made = np.random.default_rng(seed)
        self.tokens, self.places, self.head = (
            made.normal(size=shape).astype(np.float32) for shape in ((WORDS, 4), (LONGEST, 4), (4, WORDS))
        )

    def logits(self, text: NDArray[Any]) -> NDArray[np.float64]:
        """After every token of a text, [T, words]."""
        read = self.tokens[text].astype(np.float64) + self.places[: len(text)]
        return np.cumsum(read, axis=0) @ self.head

    def write(self, path: Path, *, beams: bool = False, past: str = "memory_in", present: str = "memory_out") -> Path:
        """As an ONNX file that other names and types than the builder's are in: its cache is called otherwise, and its
        positions are int32.

        Args:
            beams: whether it has an input for the order of beams.
        """
        constants = {
            "tokens": self.tokens,
            "places": self.places,
            "head": self.head,
            "split": np.array([1, 1, -1, 4], np.int64),
            "joined": np.array([1, -1, 4], np.int64),
            "two": np.array(2, np.int64),
            "far": np.array([np.iinfo(np.int64).max], np.int64),
            "second": np.array([2], np.int64),
            "mask_axes": np.array([1, 3], np.int64),
            "zero": np.array([0], np.int64),
        }
        node = helper.make_node
        before = "ordered" if beams else past
        nodes = [
            node("Gather", ["tokens", "input_ids"], ["by_token"]),
            node("Gather", ["places", "position_ids"], ["by_place"]),
            node("Add", ["by_token", "by_place"], ["read"]),
            node("Reshape", ["read", "split"], ["new"]),
            *([node("Gather", [past, "beam_idx"], ["ordered"], axis=0)] if beams else []),
            node("Concat", [before, "new"], [present], axis=2),
            node("Cast", ["attention_mask"], ["float_mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["float_mask", "mask_axes"], ["wide_mask"]),
            node("Mul", [present, "wide_mask"], ["seen"]),
            node("CumSum", ["seen", "two"], ["sums"]),
            node("Shape", ["input_ids"], ["count"], start=1),
            node("Sub", ["zero", "count"], ["from"]),
            node("Slice", ["sums", "from", "far", "second"], ["last"]),
            node("Reshape", ["last", "joined"], ["flat"]),
            node("MatMul", ["flat", "head"], ["logits"]),
        ]
        value, ints, floats = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
        graph = helper.make_graph(
            nodes,
            "sums",
            [
                value("input_ids", ints, [1, "t"]),
                value("attention_mask", ints, [1, "all"]),
                value("position_ids", TensorProto.INT32, [1, "t"]),
                *([value("beam_idx", TensorProto.INT32, [1])] if beams else []),
                value(past, floats, [1, 1, "past", 4]),
            ],
            [value("logits", floats, [1, "t", WORDS]), value(present, floats, [1, 1, "all", 4])],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path

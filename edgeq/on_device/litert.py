"""LiteRT on a device: the interpreter says which operators a delegate took over, and the types of their tensors."""

# ruff: noqa: B905  (zip has no `strict` before Python 3.10)

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set

import numpy as np

from edgeq.on_device.worker import Loaded, Port, Runtime, Setting, first_installed

_KERNELS = {"xnnpack": "AUTO", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
_CONVERSIONS_AND_MOVES = frozenset(
    {"BROADCAST_TO", "CAST", "CONCATENATION", "DEQUANTIZE", "EXPAND_DIMS", "GATHER", "PACK", "PAD", "PADV2", "QUANTIZE",
     "RESHAPE", "SHAPE", "SLICE", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK"}
)  # fmt: skip
_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})


def integer(op: str, inputs: Sequence[str], outputs: Sequence[str]) -> Optional[bool]:
    """Whether an operator computed on integers, told from the types of its tensors.

    None where it only moves or converts data, and for float activations with integer weights: there the kernel may
    quantize the activations on the way in or expand the weights, and the interpreter does not say which.

    Args:
        op: the operator's name in the file (`CONV_2D`).
        inputs: element types of its operands, numpy's names.
        outputs: of its results.
    """
    if op in _CONVERSIONS_AND_MOVES or not inputs or not outputs:
        return None
    if op in _WEIGHTED and "float" in inputs[0] and "int" in inputs[1]:
        return None
    return all("int" in kind for kind in (inputs[0], *outputs))


def load(path: str, options: Dict[str, str], how: Setting) -> Loaded:
    """The interpreter with its default delegate, or with the kernels that the option `kernels` names; one for each of
    the calls side by side."""
    kernels = options.get("kernels", "xnnpack")
    module = find()[0]
    resolver = getattr(module, "OpResolverType", None) or module.experimental.OpResolverType
    with captured_stderr() as log:
        model = module.Interpreter(
            model_path=path,
            num_threads=how.threads,
            experimental_op_resolver_type=getattr(resolver, _KERNELS[kernels]),
        )
        model.allocate_tensors()
    delegate = "XNNPACK delegate" if "XNNPACK delegate" in log[0] else "delegate"
    own = "reference kernel" if kernels == "reference" else "builtin kernel"
    own_inputs, own_outputs = model.get_input_details(), model.get_output_details()
    signatures = model.get_signature_list()
    given_in: Dict[int, str] = {}
    given_out: Dict[int, str] = {}
    if len(signatures) == 1:
        runner = model.get_signature_runner(next(iter(signatures)))
        given_in = {d["index"]: name for name, d in runner.get_input_details().items()}
        given_out = {d["index"]: name for name, d in runner.get_output_details().items()}

    own_inputs = in_numbered_order(own_inputs, given_in)
    own_outputs = in_numbered_order(own_outputs, given_out)
    shapes = [tuple(d["shape"]) for d in own_inputs]

    def feed(arrays: List[np.ndarray]) -> None:
        if [a.shape for a in arrays] != shapes:
            shapes[:] = [a.shape for a in arrays]
            for d, array in zip(own_inputs, arrays):
                model.resize_tensor_input(d["index"], array.shape)
            model.allocate_tensors()
        for d, array in zip(own_inputs, arrays):
            model.set_tensor(d["index"], array)

    return Loaded(
        _ports(own_inputs, given_in),
        _ports(own_outputs, given_out),
        feed,
        model.invoke,
        lambda: [model.get_tensor(d["index"]) for d in own_outputs],
        functools.partial(_placement, model, delegate, own),
        lambda: load(path, options, how),
    )


def _ports(details: List[Dict[str, Any]], given: Dict[int, str]) -> List[Port]:
    found = []
    for d in details:
        scale, zero = d["quantization"]
        names = ([given[d["index"]]] if d["index"] in given else []) + [d["name"]]
        shape = d["shape_signature"] if len(d["shape_signature"]) else d["shape"]
        quantization = (float(scale), int(zero)) if scale else (None, None)
        found.append(Port(names, [int(n) for n in shape], np.dtype(d["dtype"]).name, *quantization))
    return found


def _placement(model: Any, delegate: str, own: str) -> List[Dict[str, Any]]:
    """Where operators ran: in the delegate, or by the interpreter's own kernels, as these are called."""
    ops, tensors = model._get_ops_details(), {d["index"]: d for d in model.get_tensor_details()}
    delegated = replaced_by_delegates(ops)
    rows = []
    for op in ops:
        if op["op_name"] == "DELEGATE":
            continue
        inputs, outputs = ([tensors[i] for i in op[key] if i in tensors] for key in ("inputs", "outputs"))
        kinds = ([np.dtype(tensor["dtype"]).name for tensor in some] for some in (inputs, outputs))
        rows.append(
            {
                "name": outputs[0]["name"] if outputs else op["op_name"],
                "op": op["op_name"],
                "where": delegate if op["index"] in delegated else own,
                "integer": integer(op["op_name"], *kinds),
                "microseconds": None,
            }
        )
    return rows


def in_numbered_order(details: List[Dict[str, Any]], given: Dict[int, str]) -> List[Dict[str, Any]]:
    """Put tensors in the order of their signature names where those are numbered (`args_0`, `output_1`): converters may
    list the tensors of a subgraph in another order than the model's own. Otherwise the subgraph's order stands."""
    names = [given.get(d["index"], "") for d in details]
    stems = {name.rpartition("_")[0] for name in names}
    tails = [name.rpartition("_")[2] for name in names]
    if len(stems) == 1 and all(tail.isdigit() for tail in tails):
        return [d for _, d in sorted(zip(map(int, tails), details), key=lambda pair: pair[0])]
    return details


def replaced_by_delegates(ops: Sequence[Dict[str, Any]]) -> Set[int]:
    """Indices of the operators that a delegate took over.

    The interpreter lists them still, beside DELEGATE nodes that carry the borders of what they replaced: walk back from
    each border output to the border inputs.
    """
    maker = {int(t): op for op in ops if op["op_name"] != "DELEGATE" for t in op["outputs"]}
    found = set()
    for delegate in ops:
        if delegate["op_name"] != "DELEGATE":
            continue
        seen = {int(t) for t in delegate["inputs"]}
        left = [int(t) for t in delegate["outputs"]]
        while left:
            tensor = left.pop()
            if tensor in seen or tensor not in maker:
                continue
            seen.add(tensor)
            found.add(int(maker[tensor]["index"]))
            left.extend(int(t) for t in maker[tensor]["inputs"])
    return found


@contextlib.contextmanager
def captured_stderr() -> Iterator[List[str]]:
    """What native code writes to standard error meanwhile: the only place where LiteRT names its delegate."""
    text = [""]
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield text
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text[0] = file.read().decode("utf-8", "replace")
            sys.stderr.write(text[0])


def find() -> Any:
    return first_installed("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")


# What the interpreter writes while it loads belongs to one model, and it loads fast.
RUNTIME = Runtime(find, load, {"precision": ["float32"], "kernels": sorted(_KERNELS)}, by_order=True, alone=True)

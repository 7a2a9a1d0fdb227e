"""ExecuTorch on a device, by its Python runtime, which needs PyTorch beside it. The file says which operators XNNPACK
runs, and in which types; the runtime's profile in which kernels, and how long that took."""

# ruff: noqa: B905  (zip has no `strict` before Python 3.10)

from __future__ import annotations

import json
import os
import tempfile
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from edgeq.on_device.flatbuffer import read_root
from edgeq.on_device.pte import NAMES, File, inputs_of, outputs_of, read, schema
from edgeq.on_device.worker import Loaded, Port, Runtime, Setting, first_installed

PORTABLE = "portable kernel"

_TYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
}
_WEIGHTED = {
    "XNNConv2d": "Convolution",
    "XNNDepthwiseConv2d": "Convolution",
    "XNNConvTranspose2d": "Deconvolution",
    "XNNFullyConnected": "Fully Connected",
    "XNNBatchMatrixMultiply": "Batch Matrix Multiply",
}
"""What XNNPACK's profile calls operators that it never drops, nor makes one of with others."""
_CONVERSIONS_AND_MOVES = frozenset(
    {"XNNConvert", "XNNCopy", "XNNStaticTranspose", "XNNStaticReshape", "XNNStaticSlice", "XNNStaticConstantPad",
     "XNNConcatenate2", "XNNConcatenate3", "XNNConcatenate4", "XNNConcatenate5"}
)  # fmt: skip
_FLOATS = ("HALF", "FLOAT", "DOUBLE", "BFLOAT16")
_INTEGER_KERNELS = ("QC8", "QS8", "QU8", "QC4", "QD8", "QB4")


def load(path: str, options: Dict[str, str], how: Setting) -> Loaded:
    """The first method of a file."""
    lib, torch = find()[0], first_installed("torch")[0]
    if lib._threadpool_get_thread_count() != how.threads:
        lib._unsafe_reset_threadpool(how.threads)  # nothing is loaded yet: all models of a job have as many
    program = lib._load_program(path, enable_etdump=how.profile)
    methods = [program.get_method_name(i) for i in range(program.num_methods())]
    names = _names(program) if NAMES in methods else {}
    name = next(name for name in methods if name != NAMES)
    method, meta = program.load_method(name), program.method_meta(name)
    inputs = _ports(names.get("inputs"), "args_%d", meta.num_inputs(), meta.input_tensor_meta)
    outputs = _ports(names.get("outputs"), "output_%d", meta.num_outputs(), meta.output_tensor_meta)
    planned = any(meta.input_tensor_meta(i).is_memory_planned() for i in range(meta.num_inputs()))
    given: List[Any] = []

    def feed(arrays: List[np.ndarray]) -> None:
        given[:] = [torch.from_numpy(array) for array in arrays]
        method.set_inputs(given)

    def invoke() -> None:
        if planned:  # they were copied to memory that the last call has overwritten
            method.set_inputs(given)
        method.execute()

    def fetch() -> List[np.ndarray]:
        return [value.numpy() for value in method.get_outputs(clone_outputs=True)]

    def placement() -> List[Dict[str, Any]]:
        with open(path, "rb") as file:
            return rows(read(file.read()), _profile(program))

    return Loaded(inputs, outputs, feed, invoke, fetch, placement, lambda: load(path, options, how))


def _names(program: Any) -> Dict[str, List[str]]:
    method = program.load_method(NAMES)
    method.execute()
    found: Dict[str, List[str]] = json.loads(method.get_outputs()[0])
    return found


def _ports(names: Optional[List[str]], otherwise: str, count: int, tensor: Callable[[int], Any]) -> List[Port]:
    found = []
    for i in range(count):
        name, told = names[i] if names else otherwise % i, tensor(i)
        kind = _TYPES.get(told.dtype(), "type %d" % told.dtype())
        found.append(Port([name], list(told.sizes()), kind, None, None))
    return found


def _profile(program: Any) -> Dict[int, List[Tuple[str, float]]]:
    """By instruction of the plan, what ran there in order: its name, and microseconds, the median over calls; nothing
    where ExecuTorch was built without its profiler."""
    if not program.has_etdump():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "profile")
        program.write_etdump_result_to_file(path)
        with open(path, "rb") as file:
            dump = read_root(schema("etdump"), file.read(), 4)  # behind its own size
    runs = [run["events"] for run in dump["run_data"] if run["name"] == "Execute"]
    found: Dict[int, List[Tuple[str, List[float]]]] = {}
    for run in runs[1:] or runs:
        seen: Dict[int, int] = {}
        for event in filter(None, (one["profile_event"] for one in run)):
            name = event["delegate_debug_id_str"] or event["name"]
            if name in ("DELEGATE_CALL", "Method::execute") or name.startswith("native_call_"):
                continue
            some, at = found.setdefault(event["instruction_id"], []), seen.get(event["instruction_id"], 0)
            if at == len(some):
                some.append((name, []))
            some[at][1].append((event["end_time"] - event["start_time"]) / 1000)
            seen[event["instruction_id"]] = at + 1
    return {i: [(name, float(np.median(times))) for name, times in some] for i, some in found.items()}


def rows(file: File, profile: Dict[int, List[Tuple[str, float]]]) -> List[Dict[str, Any]]:
    """Where each operator ran: those of XNNPACK by its own account as far as this can be told from the file's."""
    found = []
    for index, call in enumerate(file.plan["chains"][0]["instructions"]):
        events, given = profile.get(index, []), call["instr_args"]
        if call["instr_args_type"] == "KernelCall":
            operator = file.plan["operators"][given["op_index"]]
            spent = events[0][1] if events else None
            found.append(_row("", operator["name"], PORTABLE, _in_portable(file, operator["name"], given), spent))
        elif call["instr_args_type"] == "DelegateCall" and given["delegate_index"] in file.graphs:
            graph = file.graphs[given["delegate_index"]]
            found += _of_graph(file, graph, [(name.rpartition(" #")[0] or name, spent) for name, spent in events])
        elif call["instr_args_type"] == "DelegateCall":
            found.append(_row("", "delegate", file.plan["delegates"][given["delegate_index"]]["id"], None, None))
    return found


def _of_graph(file: File, graph: Dict[str, Any], events: List[Tuple[str, float]]) -> List[Dict[str, Any]]:
    """XNNPACK makes one operator of several and drops some, and says only in which order it ran what is left. Those
    with weights always stay: between two of them the others are told apart where as many ran as the file has."""
    nodes = graph["xnodes"]
    anchors = [i for i, node in enumerate(nodes) if node["xnode_union_type"] in _WEIGHTED]
    ran = [i for i, (name, _) in enumerate(events) if name.startswith(tuple(set(_WEIGHTED.values())))]
    if len(ran) != len(anchors):
        return [_of_node(file, graph, node, None) for node in nodes]
    found = []
    ends = zip([-1, *anchors], [*anchors, len(nodes)], [-1, *ran], [*ran, len(events)])
    for first, last, first_event, last_event in ends:
        between, beside = nodes[first + 1 : last], events[first_event + 1 : last_event]
        if len(between) == len(beside):
            found += [_of_node(file, graph, node, event) for node, event in zip(between, beside)]
        else:
            found += [_row("", name, "XNNPACK", None, spent) for name, spent in beside]
        if last < len(nodes):
            found.append(_of_node(file, graph, nodes[last], events[last_event]))
    return found


def _of_node(
    file: File, graph: Dict[str, Any], node: Dict[str, Any], event: Optional[Tuple[str, float]]
) -> Dict[str, Any]:
    kind, values = node["xnode_union_type"], graph["values"]
    where = "XNNPACK" if event is None else "XNNPACK " + event[0]
    integer: Optional[bool] = None
    if kind in _WEIGHTED and event is not None:
        integer = any(word in event[0] for word in _INTEGER_KERNELS)
    elif kind not in _CONVERSIONS_AND_MOVES:
        ends = [values[end]["datatype"] for end in (*inputs_of(node), *outputs_of(node)) if end in values]
        integer = all("int" in one for one in ends)
    op = kind[len("XNN") :]
    name = file.operators.get(node["debug_handle"], "")
    if name and kind in _CONVERSIONS_AND_MOVES:
        name += "/" + op  # beside the layer's own operator, or for it
    return _row(name, op, where, integer, None if event is None else event[1])


def _in_portable(file: File, operator: str, call: Dict[str, Any]) -> Optional[bool]:
    """Whether ExecuTorch's own kernel computed on integers: none of its tensors is float. None where it only moves."""
    if operator.endswith("_copy") or operator in ("aten::cat", "aten::constant_pad_nd"):
        return None
    values = [file.plan["values"][index]["val"] or {} for index in call["args"]]
    kinds = {value["scalar_type"] for value in values if "scalar_type" in value}
    return bool(kinds) and kinds.isdisjoint(_FLOATS)


def _row(name: str, op: str, where: str, integer: Optional[bool], spent: Optional[float]) -> Dict[str, Any]:
    return {"name": name or op, "op": op, "where": where, "integer": integer, "microseconds": spent}


def find() -> Tuple[Any, str]:
    first_installed("torch")  # its libraries are ExecuTorch's
    # The library itself: what is around it in Python imports PyTorch's compiler, for 5 s.
    return first_installed("executorch.extension.pybindings._C")


# Models share one pool of threads, which is made before the first one is loaded.
RUNTIME = Runtime(find, load, {"precision": ["float32"]}, by_order=True, alone=True)

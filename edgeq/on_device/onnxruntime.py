"""ONNX Runtime on a device: its own profile says which operator ran with which types."""

# ruff: noqa: B905  (zip has no `strict` before Python 3.10)

from __future__ import annotations

import json
import os
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from edgeq.on_device.decoder import Decoder, roles_of, scalars
from edgeq.on_device.worker import Loaded, Port, Runtime, Setting, WorkerError, first_installed

_TYPES = {"float": "float32", "double": "float64"}
_INTEGER_OPS = frozenset(
    {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm",
     "QAttention"}
)  # fmt: skip
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "ReorderInput", "ReorderOutput", "Reshape", "Shape",
     "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)  # fmt: skip
_UNTOLD = frozenset({"MatMulNBits", "GatherBlockQuantized"})
"""Low-bit weights with float activations: the profile does not say in which arithmetic they meet."""


def integer(op: str, inputs: Sequence[str], outputs: Sequence[str]) -> Optional[bool]:
    """Whether an operator computed on integers; None where it only moves or converts data, or the profile is silent.

    Args:
        op: the operator's type after fusion.
        inputs: element types of its inputs, as ONNX Runtime writes them (`uint8`, `float`).
        outputs: likewise.
    """
    if op in _CONVERSIONS or op in _MOVES or op in _UNTOLD or not inputs or not outputs:
        return None
    if op in _INTEGER_OPS or op.startswith("QLinear"):
        return True
    return all("int" in kind for kind in (inputs[0], *outputs))


def load(path: str, options: Dict[str, str], how: Setting) -> Loaded:
    """One session, one inter-op thread, all graph optimizations, the CPU provider."""
    session = _session(path, options, how)

    def placement() -> List[Dict[str, Any]]:
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
        calls: Dict[Any, List[Dict[str, Any]]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                # the index alone repeats inside the branches of control flow
                calls.setdefault((event["args"].get("node_index"), event["name"]), []).append(event)
        return [_row(some) for some in calls.values()]

    return loaded(session, placement)


def _session(path: str, options: Dict[str, str], how: Setting) -> Any:
    ort = find()[0]
    settings = settings_for(ort, how)
    if options.get("sums") == "exact":
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if how.profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = "profile"
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def settings_for(ort: Any, how: Setting) -> Any:
    """Of a session, whatever its provider is."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = how.threads if how.threads == 1 else how.threads * how.calls  # one pool for all
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    if how.threads > 1 and (how.others or how.calls > 1):  # whoever spins takes the cores from the next one
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def loaded(session: Any, placement: Callable[[], List[Dict[str, Any]]]) -> Loaded:
    """A session that is ready to run; every lane has inputs and outputs of its own."""
    inputs, outputs = [_port(a) for a in session.get_inputs()], [_port(a) for a in session.get_outputs()]

    def lane() -> Loaded:
        binding = session.io_binding()

        def feed(arrays: List[np.ndarray]) -> None:
            for p, array in zip(inputs, arrays):
                binding.bind_cpu_input(p.names[0], array)
            binding.clear_binding_outputs()  # the shape of an output may follow the inputs
            for p in outputs:
                binding.bind_output(p.names[0])

        def invoke() -> None:
            session.run_with_iobinding(binding)

        return Loaded(inputs, outputs, feed, invoke, binding.copy_outputs_to_cpu, placement, lane)

    return lane()


def _port(arg: Any) -> Port:
    kind = arg.type[arg.type.find("(") + 1 : -1]
    shape = [d if isinstance(d, int) else -1 for d in arg.shape]
    return Port([arg.name], shape, _TYPES.get(kind, kind), None, None)


class Cache(NamedTuple):
    """One tensor of what was read: where a step finds it, where it leaves it, and its heads and their width."""

    past: str
    present: str
    dtype: str
    heads: int
    width: int


def decoder(path: str, options: Dict[str, str], how: Setting) -> Decoder:
    """A file with inputs and outputs for the cache, `past_key_values.0.key` and `present.0.key`, as the builder of ONNX
    Runtime GenAI writes them, or as the `genai_config.json` beside the file calls them.

    The cache stays with the runtime. Where that file says that one buffer is both ends of it, it is: a step then writes
    behind what is there, and copies nothing.
    """
    ort, session, told = find()[0], _session(path, options, how), _told_beside(path)
    inputs = {a.name: _port(a) for a in session.get_inputs()}
    outputs = {a.name: _port(a) for a in session.get_outputs()}
    names = told["model"]["decoder"]
    roles = roles_of(list(inputs), names["inputs"])
    logits = names["outputs"].get("logits", "logits")
    if logits not in outputs:
        raise WorkerError("input", "this is no decoder: none of its outputs %s is logits" % list(outputs))
    caches = _caches([inputs[n] for n in roles.rest], [p for n, p in outputs.items() if n != logits], names)
    shared, words = bool(told["search"].get("past_present_share_buffer")), outputs[logits].shape[-1]
    binding = session.io_binding()
    state: Dict[str, Any] = {"read": 0, "room": 0, "cache": []}

    def empty(room: int) -> List[Any]:
        arrays = [np.zeros((1, one.heads, room, one.width), one.dtype) for one in caches]
        return [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]

    def reset(room: int) -> None:
        state["read"] = 0
        if not shared:
            state["cache"] = empty(0)
        elif room > state["room"]:
            state["cache"], state["room"] = [], 0  # before the next one is made
            state["cache"], state["room"] = empty(room), room

    def step(tokens: np.ndarray) -> np.ndarray:
        given = scalars(roles, tokens, state["read"])
        given = {name: array.astype(inputs[name].dtype, copy=False) for name, array in given.items()}
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        binding.clear_binding_outputs()
        for one, value in zip(caches, state["cache"]):
            binding.bind_ortvalue_input(one.past, value)
            if shared:
                binding.bind_ortvalue_output(one.present, value)
            else:
                binding.bind_output(one.present)
        found = np.empty((1, tokens.shape[1], max(words, 0)), outputs[logits].dtype)
        if words > 0:
            binding.bind_output(logits, "cpu", 0, found.dtype, found.shape, found.ctypes.data)
        else:
            binding.bind_output(logits)
        session.run_with_iobinding(binding)
        values = binding.get_outputs()
        if not shared:
            state["cache"] = values[:-1]
        if words < 0:
            found = values[-1].numpy()
        state["read"] += tokens.shape[1]
        answer: np.ndarray = found[0].astype(np.float32, copy=False)
        return answer

    return Decoder(reset, step, words)


def _told_beside(path: str) -> Dict[str, Any]:
    """What the file beside a model calls its ends, with the builder's own names where there is none."""
    told: Dict[str, Any] = {}
    beside = os.path.join(os.path.dirname(path), "genai_config.json")
    if os.path.exists(beside):
        with open(beside, encoding="utf-8") as file:
            told = json.load(file)
    known = told.get("model", {}).get("decoder", {})
    ends = {
        "inputs": {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
        "outputs": {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
    }
    merged = {**known, **{key: {**names, **known.get(key, {})} for key, names in ends.items()}}
    return {"model": {"decoder": merged}, "search": told.get("search", {})}


def _caches(pasts: List[Port], presents: List[Port], names: Dict[str, Any]) -> List[Cache]:
    """Which output goes on as which input: by name, or, where not one is called so, in order."""
    left = {port.names[0]: port for port in presents}
    pairs: List[Tuple[Port, Port]] = []
    for port in pasts:
        for kind in ("key", "value"):
            before, after = names["inputs"]["past_%s_names" % kind], names["outputs"]["present_%s_names" % kind]
            match = re.fullmatch(re.escape(before).replace("%d", r"(\d+)"), port.names[0])
            if match and after % int(match.group(1)) in left:
                pairs.append((port, left[after % int(match.group(1))]))
    if not pairs and len(pasts) == len(presents):
        pairs = list(zip(pasts, presents))
    if not pairs:
        raise WorkerError("input", "this decoder keeps no cache that edgeq knows; it has inputs and outputs for one")
    strange = [port.names[0] for port in pasts if port not in [past for past, _ in pairs]]
    if strange:
        raise WorkerError("input", "this decoder wants inputs that edgeq does not know: %s" % ", ".join(strange))
    return [_cache(past, present, names) for past, present in pairs]


def _cache(past: Port, present: Port, names: Dict[str, Any]) -> Cache:
    if len(past.shape) != 4 or len(present.shape) != 4 or past.dtype != present.dtype:
        message = "%r and %r are no cache, [1, heads, positions, width]"
        raise WorkerError("input", message % (past.names[0], present.names[0]))
    heads, width = (
        next((size for size in (past.shape[axis], present.shape[axis], names.get(key, -1)) if size > 0), -1)
        for axis, key in ((1, "num_key_value_heads"), (3, "head_size"))
    )
    if heads < 0 or width < 0:
        message = "neither the file nor a genai_config.json beside it says how large %r is"
        raise WorkerError("input", message % past.names[0])
    return Cache(past.names[0], present.names[0], past.dtype, heads, width)


def _row(calls: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """What the events of one operator come to; the first call is left out where there are more."""
    args, op = calls[0]["args"], calls[0]["args"]["op_name"]
    durations = [event["dur"] for event in calls]
    inputs, outputs = (
        [kind for shape in args.get(key, []) for kind in shape] for key in ("input_type_shape", "output_type_shape")
    )
    return {
        "name": calls[0]["name"][: -len("_kernel_time")] or op,
        "op": op,
        "where": args["provider"],
        "integer": integer(op, inputs, outputs),
        "microseconds": float(np.median(durations[1:] or durations)),
    }


def find() -> Any:
    return first_installed("onnxruntime")


RUNTIME = Runtime(find, load, {"precision": ["float32"], "sums": ["exact"]}, decoder=decoder)

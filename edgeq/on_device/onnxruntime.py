"""ONNX Runtime on a device: its own profile says which operator ran with which types."""

# ruff: noqa: B905  (zip has no `strict` before Python 3.10)

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from edgeq.on_device.worker import Loaded, Port, Runtime, Setting, first_installed

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
    ort = find()[0]
    settings = settings_for(ort, how)
    if options.get("sums") == "exact":
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if how.profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = "profile"
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

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

    def port(arg: Any) -> Port:
        kind = arg.type[arg.type.find("(") + 1 : -1]
        shape = [d if isinstance(d, int) else -1 for d in arg.shape]
        return Port([arg.name], shape, _TYPES.get(kind, kind), None, None)

    inputs, outputs = [port(a) for a in session.get_inputs()], [port(a) for a in session.get_outputs()]

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


RUNTIME = Runtime(find, load, {"precision": ["float32"], "sums": ["exact"]})

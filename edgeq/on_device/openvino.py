"""OpenVINO on a device: the compiled execution graph names each kernel and the precision that it runs in."""

# ruff: noqa: B905  (zip has no `strict` before Python 3.10)

from __future__ import annotations

import sys
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from edgeq.on_device.decoder import Decoder, roles_of, scalars
from edgeq.on_device.worker import Loaded, Port, Runtime, Setting, WorkerError, distribution_version, first_installed

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CACHES = {**_PRECISIONS, "uint8": "u8"}
_UNSETTLED = 5  # calls

_INTEGERS = frozenset({"u2", "i4", "u4", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"})
_WEIGHTED = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_FLOAT_KERNELS = ("_f32", "_bf16", "_f16")
_CONVERSIONS_AND_MOVES = frozenset(
    {"Broadcast", "Concatenation", "Convert", "FakeQuantize", "Gather", "Pad", "Reorder", "Reshape", "ShapeOf", "Split",
     "StridedSlice", "Tile", "Transpose", "MemoryInput", "MemoryOutput"}
)  # fmt: skip


def integer(op: str, precision: str, kernel: str, rounds: bool = False) -> Optional[bool]:
    """Whether a node computed on integers; None where it only moves or converts data, or the runtime does not say.

    Args:
        op: `layerType` of the execution graph.
        precision: its `runtimePrecision`, that of one of the node's inputs: of a product with compressed weights that
            of the weights, although the kernel is one of floats.
        kernel: its `primitiveType`, such as `brgemm_avx512_f32`.
        rounds: whether products with compressed weights round their inputs where these are float32. The kernel is then
            called as if it computed in that.
    """
    if op in _CONVERSIONS_AND_MOVES:
        return None
    if op in _WEIGHTED and kernel.endswith(_FLOAT_KERNELS):
        rounded = rounds and op == "FullyConnected" and precision in _INTEGERS and kernel.endswith("_f32")
        return None if rounded else False
    return precision in _INTEGERS


def load(path: str, options: Dict[str, str], how: Setting) -> Loaded:
    """The CPU plugin, a stream for each call. Without an option float operators run in float32, not in the CPU's
    default."""
    ov = find()[0]
    compiled = _compiled(ov, path, options, how)
    profile = Profile(compiled)
    inputs, outputs = [_port(v) for v in compiled.inputs], [_port(v) for v in compiled.outputs]

    def lane() -> Loaded:
        request = compiled.create_infer_request()

        def feed(arrays: List[np.ndarray]) -> None:
            for value, array in zip(compiled.inputs, arrays):
                request.set_tensor(value, ov.Tensor(array))

        def invoke() -> None:
            request.infer(share_outputs=True)
            if how.profile:
                profile.count()

        def fetch() -> List[np.ndarray]:
            return [np.array(request.get_tensor(v).data) for v in compiled.outputs]

        return Loaded(inputs, outputs, feed, invoke, fetch, profile.placement, lane)

    return lane()


def decoder(path: str, options: Dict[str, str], how: Setting) -> Decoder:
    """A model that keeps the cache itself, as a state. Without an option it keeps it in the precision of the
    arithmetic, not in the CPU's default, which rounds it to 8 bits."""
    ov = find()[0]
    compiled = _compiled(ov, path, options, how)
    request = compiled.create_infer_request()
    ports = {name: value for value in compiled.inputs for name in _port(value).names}
    roles = roles_of(list(ports), {})
    if roles.rest or not request.query_state():
        message = "this decoder keeps no cache itself: beside tokens it wants %s"
        raise WorkerError("input", message % (", ".join(roles.rest) or "nothing"))
    answers = [value for value in compiled.outputs if "logits" in value.get_names()] or list(compiled.outputs)
    if len(answers) != 1:
        raise WorkerError("input", "this is no decoder: none of its outputs is logits")
    read = [0]

    def reset(room: int) -> None:
        request.reset_state()
        read[0] = 0

    def step(tokens: np.ndarray) -> np.ndarray:
        for name, array in scalars(roles, tokens, read[0]).items():
            kind = ports[name].get_element_type().to_dtype()
            request.set_tensor(ports[name], ov.Tensor(array.astype(kind, copy=False)))
        request.infer(share_outputs=True)
        read[0] += tokens.shape[1]
        found: np.ndarray = request.get_tensor(answers[0]).data[0].astype(np.float32, copy=False)
        return found

    return Decoder(reset, step, _port(answers[0]).shape[-1])


def _compiled(ov: Any, path: str, options: Dict[str, str], how: Setting) -> Any:
    core, precision = ov.Core(), options.get("precision", "float32")
    wanted = {"bfloat16": "BF16", "float16": "FP16"}.get(precision)
    if wanted and wanted not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise WorkerError("runtime", "this CPU has no %s arithmetic that OpenVINO uses" % precision)
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": how.calls,
        "INFERENCE_NUM_THREADS": how.threads * how.calls,
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "PERF_COUNT": how.profile,
        "KV_CACHE_PRECISION": _CACHES[options.get("cache", precision)],
    }
    compiled = core.compile_model(path, "CPU", config)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if taken != _PRECISIONS[precision]:
        raise WorkerError("runtime", "asked for %s, OpenVINO took %s" % (precision, taken))
    return compiled


def _port(value: Any) -> Port:
    names = sorted(value.get_names()) or [value.get_node().get_friendly_name()]
    shape = [d.get_length() if d.is_static else -1 for d in value.get_partial_shape()]
    return Port(names, shape, value.get_element_type().to_dtype().name, None, None)


class Profile:
    """The execution graph of a compiled model. Its times are means over all calls; the first ones are taken out."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._rounds = int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) > 0
        self._calls = 0
        self._first_means: Dict[str, float] = {}  # by operator, microseconds of the first calls

    def count(self) -> None:
        """Another call was made."""
        self._calls += 1
        if self._calls == _UNSETTLED:
            times = [(node.get_friendly_name(), info["execTimeMcs"]) for node, info in self._rows()]
            self._first_means = {name: float(spent) for name, spent in times if spent != "not_executed"}

    def placement(self) -> List[Dict[str, Any]]:
        return [
            {
                "name": node.get_friendly_name(),
                "op": info["layerType"],
                "where": "CPU " + info["primitiveType"],
                "integer": integer(info["layerType"], info["runtimePrecision"], info["primitiveType"], self._rounds),
                "microseconds": self._settled(node.get_friendly_name(), info["execTimeMcs"]),
            }
            for node, info in self._rows()
            if info["layerType"] not in ("Input", "Const", "Output")
        ]

    def _rows(self) -> List[Tuple[Any, Dict[str, str]]]:
        nodes = self._compiled.get_runtime_model().get_ordered_ops()
        return [(node, {key: rt_text(value) for key, value in node.get_rt_info().items()}) for node in nodes]

    def _settled(self, name: str, spent: str) -> Optional[float]:
        if spent == "not_executed":
            return None
        if name not in self._first_means:
            return float(spent)
        return mean_of_later(float(spent), self._calls, self._first_means[name], _UNSETTLED)


def mean_of_later(mean: float, calls: int, first_mean: float, first_calls: int) -> float:
    """Mean of the calls after the first ones, which take up to twice as long, from the means of all and of the first.

    OpenVINO cuts a mean to whole microseconds: half of one is what the cut takes away on average.
    """
    if calls <= first_calls:
        return mean
    return max(0.0, (calls * (mean + 0.5) - first_calls * (first_mean + 0.5)) / (calls - first_calls))


def rt_text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def find() -> Tuple[Any, str]:
    # What converts other frameworks' models is imported along unless it is missing. It takes longer than all the rest,
    # and reports each import to its makers, with an id that it keeps in the user's home.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    found = first_installed("openvino")
    # Its table of NumPy types is made when the first one is asked for; threads that ask at the same time wait for one
    # another for ever, one with the interpreter's lock and one with that of the table.
    found[0].Type.f32.to_dtype()
    return found


def environment() -> Dict[str, str]:
    ov = find()[0]
    has = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {
        "runtime_version": distribution_version("openvino"),
        "build": ov.get_version(),
        "capabilities": " ".join(has),
    }


RUNTIME = Runtime(
    find, load, {"precision": sorted(_PRECISIONS), "cache": sorted(_CACHES)}, environment, decoder=decoder
)

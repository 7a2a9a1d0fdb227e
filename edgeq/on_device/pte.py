"""What an ExecuTorch file holds: its program, and the graphs in it that XNNPACK runs. It is read by the schemas that
lie in ExecuTorch's package."""

from __future__ import annotations

import functools
import json
import os
from importlib.util import find_spec
from typing import Any, Dict, List, NamedTuple

from edgeq.on_device.flatbuffer import Schema, parse, read_root
from edgeq.on_device.worker import WorkerError

XNNPACK = "XnnpackBackend"

NAMES = "edgeq_names"
"""A method of files that edgeq writes. It gives JSON: the names of `inputs` and `outputs` in order, and of `operators`
by handle, for all of which ExecuTorch has no place."""

_SCHEMAS = {
    "program": ("schema", "scalar_type.fbs", "program.fbs"),
    "xnnpack": (os.path.join("backends", "xnnpack", "serialization"), "schema.fbs"),
    "etdump": (os.path.join("devtools", "etdump"), "scalar_type.fbs", "etdump_schema_flatcc.fbs"),
}


class File(NamedTuple):
    """An ExecuTorch file.

    Attributes:
        plan: of its first method that computes.
        operators: by the handle that a graph has for an operator, the name of its layer; empty where the file has none.
        graphs: by the index of a delegate of the plan, the graph that XNNPACK runs there; others are absent.
        places: by key, where the bytes of a constant lie in the file: start and size.
        data: all of it.
    """

    plan: Dict[str, Any]
    operators: Dict[int, str]
    graphs: Dict[int, Dict[str, Any]]
    places: Dict[str, Any]
    data: memoryview


@functools.lru_cache(maxsize=None)
def schema(name: str) -> Schema:
    """One of ExecuTorch's own.

    Raises:
        WorkerError: ExecuTorch is not installed here.
    """
    spec = find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise WorkerError("missing", "executorch is not installed")
    folder, *names = _SCHEMAS[name]
    texts = []
    for one in names:
        with open(os.path.join(next(iter(spec.submodule_search_locations)), folder, one), encoding="utf-8") as file:
            texts.append(file.read())
    return parse(*texts)


def read(data: bytes) -> File:
    """Everything but the numbers.

    Raises:
        ValueError: it is no such file.
        struct.error: it is cut off.
    """
    view = memoryview(data)
    if bytes(view[4:8]) != b"ET12":
        raise ValueError("it is no ExecuTorch program")
    base = int.from_bytes(view[24:32], "little") if bytes(view[8:12]) == b"eh00" else 0
    program = read_root(schema("program"), view)
    segments = [(base + one["offset"], one["size"]) for one in program["segments"]]
    plans = {plan["name"]: plan for plan in program["execution_plan"]}
    told = plans.pop(NAMES, None)
    names = {} if told is None else json.loads(told["values"][told["outputs"][0]]["val"]["string_val"])
    operators = {int(handle): name for handle, name in names.get("operators", {}).items()}
    plan = next(iter(plans.values()))
    graphs = {}
    for index, delegate in enumerate(plan["delegates"]):
        processed = delegate["processed"]
        if delegate["id"] == XNNPACK:
            if processed["location"] == "SEGMENT":
                start, size = segments[processed["index"]]
                payload = view[start : start + size]
            else:
                payload = program["backend_delegate_data"][processed["index"]]["data"]
            graphs[index] = _graph(payload)
    places = {one["key"]: segments[one["segment_index"]] for one in program["named_data"]}
    return File(plan, operators, graphs, places, view)


def _graph(payload: memoryview) -> Dict[str, Any]:
    if bytes(payload[4:8]) != b"XH00":
        raise ValueError("its XNNPACK graph is of another version")
    graph = read_root(schema("xnnpack"), payload, int.from_bytes(payload[10:14], "little"))
    graph["values"] = {}
    for value in graph["xvalues"]:
        held = value["xvalue_union"]
        tensor = held.get("tensor_value", held)
        quantized = {"quant_params": held.get("quant_params"), "how": held.get("quant_params_type", "")}
        graph["values"][tensor["id_out"]] = {**tensor, **quantized}
    return graph


def inputs_of(node: Dict[str, Any]) -> List[int]:
    """The ids of the values that an operator of a graph reads, weights among them."""
    ends = [(key, value) for key, value in node["xnode_union"].items() if key.endswith("_id")]
    return [value for key, value in ends if not key.startswith("output")]


def outputs_of(node: Dict[str, Any]) -> List[int]:
    """Likewise, that it writes."""
    return [value for key, value in node["xnode_union"].items() if key.startswith("output") and key.endswith("_id")]

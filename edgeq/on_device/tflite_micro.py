"""LiteRT for Microcontrollers: its interpreter with its own kernels, on the machine at hand.

They are those of a microcontroller without CMSIS-NN, which gives the same integers.
"""

from __future__ import annotations

import contextlib
import functools
import re
from typing import Any, Dict, List

import numpy as np

from edgeq.on_device.litert import captured_stderr, in_numbered_order, integer
from edgeq.on_device.worker import Loaded, Port, Runtime, Setting, WorkerError, first_installed

KERNEL = "micro kernel"


def load(path: str, options: Dict[str, str], how: Setting) -> Loaded:
    """An interpreter with an arena that is large enough. Microcontrollers are emulated, whatever this machine is."""
    if not how.emulated:
        raise WorkerError("device", "this machine is no microcontroller; its emulation is the device micro")
    module = find()[0]
    with open(path, "rb") as file:
        content = file.read()
    graph = module.convert_bytearray_to_object(content)
    # more than any model takes: all that it holds at once, at eight bytes each, and what kernels keep beside the file
    sizes = [int(np.prod(np.maximum(tensor.shape, 1))) for tensor in graph.subgraphs[0].tensors if len(tensor.shape)]
    room = 8 * sum(sizes) + 10 * len(content) + (1 << 20)
    try:
        with captured_stderr() as log:
            model = module.Interpreter.from_bytes(content, arena_size=room)
    except Exception as error:  # the reason is in what it wrote
        raise WorkerError("runtime", " ".join((log[0] or str(error)).split())) from error
    inputs, outputs = (_details(graph, model, end) for end in ("input", "output"))

    def feed(arrays: List[np.ndarray]) -> None:
        for d, array in zip(inputs, arrays):  # noqa: B905  (Python 3.8)
            model.set_input(array, d["place"])

    def invoke() -> None:
        try:
            model.invoke()
        except Exception as error:  # once more, for the reason, which it writes
            with captured_stderr() as log, contextlib.suppress(Exception):
                model.invoke()
            raise WorkerError("runtime", " ".join(log[0].split()) or str(error)) from error

    def arena() -> int:
        with captured_stderr() as log:
            model.print_allocations()
        return int(re.findall(r"Arena allocation total (\d+) bytes", log[0])[0])

    return Loaded(
        [d["port"] for d in inputs],
        [d["port"] for d in outputs],
        feed,
        invoke,
        lambda: [model.get_output(d["place"]) for d in outputs],
        functools.partial(_placement, module, graph),
        lambda: load(path, options, how),
        arena,
    )


def _details(graph: Any, model: Any, end: str) -> List[Dict[str, Any]]:
    """Inputs or outputs, as `in_numbered_order` puts them; `place` is where the file has them."""
    main = graph.subgraphs[0]
    entries = getattr(graph.signatureDefs[0], end + "s") if len(graph.signatureDefs or ()) == 1 else []
    given = {int(entry.tensorIndex): entry.name.decode() for entry in entries}
    found = []
    for place, index in enumerate(getattr(main, end + "s")):
        own = getattr(model, "get_%s_details" % end)(place)
        scales = own["quantization_parameters"]["scales"]
        zeros = own["quantization_parameters"]["zero_points"]
        quantization = (float(scales[0]), int(zeros[0])) if len(scales) else (None, None)
        names = ([given[int(index)]] if int(index) in given else []) + [main.tensors[index].name.decode()]
        port = Port(names, [int(n) for n in own["shape"]], np.dtype(own["dtype"]).name, *quantization)
        found.append({"index": int(index), "place": place, "port": port})
    return in_numbered_order(found, given)


def _placement(module: Any, graph: Any) -> List[Dict[str, Any]]:
    schema, main = module.schema_fb, graph.subgraphs[0]
    ops = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    kinds = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    rows = []
    for operator in main.operators:
        op = ops[module.get_builtin_code_from_operator_code(graph.operatorCodes[operator.opcodeIndex])]
        ends = [[kinds[main.tensors[i].type] for i in some if i >= 0] for some in (operator.inputs, operator.outputs)]
        name = main.tensors[operator.outputs[0]].name.decode()
        row = {"name": name, "op": op, "where": KERNEL, "integer": integer(op, *ends), "microseconds": None}
        rows.append(row)
    return rows


def find() -> Any:
    return first_installed("tflite_micro.python.tflite_micro.runtime")


RUNTIME = Runtime(find, load, {"precision": ["float32"]})

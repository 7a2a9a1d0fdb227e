"""A program to an ExecuTorch file, all that XNNPACK takes handed to it."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.export.executorch_program import HANDLE, names, traced
from edgeq.export.quiet import quiet
from edgeq.model.model import Model
from edgeq.on_device import pte
from edgeq.on_device.executorch import find
from edgeq.quantization.quantized import Quantized

_LOG = logging.getLogger(__name__)


def lowered(model: Model, quantized: Quantized | None = None) -> bytes:
    """A file of the model: in float, or as planned, but for biases that float32 cannot say.

    Raises:
        MissingExtraError: ExecuTorch is not installed.
        UnsupportedError: ExecuTorch refuses an operator, or its runtime has none; names it and its layer.
    """
    with quiet(_LOG):
        try:
            import executorch.exir as exir
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir.passes import MemoryPlanningPass
        except ImportError as error:
            raise MissingExtraError("executorch", "executorch") from error
        try:
            edge = exir.to_edge_transform_and_lower(
                traced(model, quantized),
                transform_passes=[_carry_handles],
                partitioner=[XnnpackPartitioner()],
                constant_methods={pte.NAMES: json.dumps(names(model), separators=(",", ":"))},
                compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
            )
            # inputs are read where the caller has them: memory that is planned for them is overwritten in every call
            planning = MemoryPlanningPass(alloc_graph_input=False)
            config = exir.ExecutorchBackendConfig(memory_planning_pass=planning)
            made = bytes(edge.to_executorch(config).buffer)
        except Exception as error:  # whatever torch or ExecuTorch raised means that it cannot take the model
            text = " ".join(str(error).split())
            raise _refused(model, text, f"{type(error).__name__}: {text[:200]}") from error
        known = set(find()[0]._get_operator_names())
    for operator in pte.read(made).plan["operators"]:
        name = ".".join(filter(None, (operator["name"], operator["overload"])))
        if name not in known:
            raise _refused(model, name, "its runtime has no kernel for it")
    return made


def _carry_handles(module: Any) -> Any:
    """What XNNPACK's graph and the runtime's profile name an operator by, in place of ExecuTorch's own numbers."""
    from torch.fx.passes.infra.pass_base import PassResult

    for node in module.graph.nodes:
        if node.op == "call_function":
            node.meta["debug_handle"] = (node.meta.get("custom") or {}).get(HANDLE, 0)
    return PassResult(module, True)


def _refused(model: Model, text: str, why: str) -> UnsupportedError:
    """The error for an operator.

    Args:
        text: names it.
    """
    named = re.search(r"aten(?:::|\.)(\w+)", text)
    operator = named[1].removesuffix("_copy") if named else ""
    layers = [g.name for g in model.groups if operator and model.nodes[g.root].target.split(".")[1:2] == [operator]]
    where = "" if not layers else f"layer {layers[0]}" if len(layers) == 1 else f"one of {', '.join(layers[:4])}"
    cause = f"ExecuTorch cannot take the operator {operator!r}" if named else "ExecuTorch cannot take the model"
    return UnsupportedError(
        f"{cause}: {why}", where=where, remedy="replace the operator, or choose another format for this model"
    )

"""ONNX Runtime with Qualcomm's execution provider: the tensor processor of a Hexagon, or Qualcomm's emulation of one.

https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html
"""

from __future__ import annotations

from typing import Any, Dict, List

from edgeq.on_device.onnxruntime import loaded, settings_for
from edgeq.on_device.worker import Loaded, Runtime, Setting, WorkerError, first_installed

PROVIDER = "QNN"

_PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def load(path: str, options: Dict[str, str], how: Setting) -> Loaded:
    """One session. What the processor does not take, the CPU does, and the placement says so."""
    ort, qnn = first_installed("onnxruntime")[0], find()[0]
    settings = settings_for(ort, how)
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings.add_provider_for_devices([processor(ort, qnn, how.emulated)], {"backend_path": qnn.get_qnn_htp_path()})
    session = ort.InferenceSession(path, settings)

    def placement() -> List[Dict[str, Any]]:
        return [
            {"name": node.name, "op": node.op_type, "where": part.ep_name, "integer": None, "microseconds": None}
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
            # within the processor, pairs say in which integers the operators between them compute
            if part.ep_name != PROVIDER or node.op_type not in _PAIRS
        ]

    return loaded(session, placement)


def processor(ort: Any, qnn: Any, emulated: bool) -> Any:
    """What the provider runs on. Where there is no such processor, its library emulates one, and calls that a CPU."""
    if PROVIDER not in {one.ep_name for one in ort.get_ep_devices()}:
        ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
    found = [one for one in ort.get_ep_devices() if one.ep_name == PROVIDER]
    real = [one for one in found if one.device.type == ort.OrtHardwareDeviceType.NPU]
    if not found or not (real or emulated):
        raise WorkerError("device", "there is no Hexagon processor here; its emulation is the device hexagon")
    return found[0] if emulated else real[0]


def find() -> Any:
    return first_installed("onnxruntime_qnn")


def environment() -> Dict[str, str]:
    return {"onnxruntime": str(first_installed("onnxruntime")[0].__version__)}


RUNTIME = Runtime(find, load, {"precision": ["float32"]}, environment)

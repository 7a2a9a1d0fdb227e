"""OpenVINO."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Lock
from typing import Any

from edgeq import on_device
from edgeq.errors import MissingExtraError
from edgeq.reading import within
from edgeq.runtimes import onnxruntime
from edgeq.runtimes.info import RuntimeInfo


def companions(path: Path) -> list[Path]:
    """The weights beside an `.xml`; OpenVINO reads ONNX files too, with their external data."""
    if path.suffix == ".xml":
        return [within(path.parent, path.with_suffix(".bin").name, str(path))]
    return onnxruntime.companions(path)


_importing = Lock()


def import_openvino() -> Any:
    """The package itself, to write and read its files with.

    When it is imported it sends its makers an event and keeps an id in the user's home, by way of a package that it
    does without where that is missing: so that is not to be found meanwhile.

    Raises:
        MissingExtraError: it is not installed.
    """
    with _importing:
        hidden = "openvino_telemetry" not in sys.modules
        if hidden:
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("openvino", "openvino") from error
        finally:
            if hidden:
                del sys.modules["openvino_telemetry"]
    return openvino


INFO = RuntimeInfo(
    name="openvino",
    distribution="openvino",
    modules=("openvino",),
    extra="openvino",
    suffixes=(".xml", ".onnx"),
    on_device=on_device.FOLDER / "openvino.py",
    companions=companions,
    precisions={"float32": "", "bfloat16": "BF16", "float16": "FP16"},
)

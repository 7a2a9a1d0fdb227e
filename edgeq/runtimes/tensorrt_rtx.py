"""NVIDIA's own parser and compiler, in TensorRT for RTX: they take a file without a GPU, and run nothing.

It is another product than the TensorRT of data centres and Jetsons. Its ONNX parser is the same, and refuses what that
one refuses; what it compiles is for GeForce and RTX cards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from edgeq.runtimes.rules import Compiled

DISTRIBUTION = "tensorrt-rtx-cu13-libs"
CAPABILITY = "8.6"
"""What is compiled for: the one of those that it knows which is nearest to Jetson Orin's 8.7."""
TIMEOUT = 600.0


def compile_file(path: Path) -> Compiled | None:
    """Parses and compiles an ONNX file, in a process of its own: on some broken files the compiler crashes.

    Returns:
        None where it is not installed.
    """
    try:
        by = f"TensorRT for RTX {metadata.version(DISTRIBUTION)}, for compute capability {CAPABILITY}"
    except metadata.PackageNotFoundError:
        return None
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(path.resolve())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    except subprocess.TimeoutExpired:
        return Compiled(by, "", f"it was not done after {TIMEOUT:g} s")
    try:
        node, refused = json.loads(ran.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = (ran.stderr.strip().splitlines() or [f"status {ran.returncode}"])[-1]
        return Compiled(by, "", f"it crashed on the file: {said[:300]}")
    return Compiled(by, str(node), str(refused))


def _told(path: str) -> tuple[str, str]:
    """The node that was refused, and why: in the process that compiles."""
    import tensorrt_rtx_bindings as trt

    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(" ".join(text.split())[:300])

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):
        if not parser.num_errors:
            return "", "it does not parse the file"
        first = parser.get_error(0)
        return first.node_name(), f"{first.node_operator()}: {' '.join(first.desc().split())[:300]}".removeprefix(": ")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{CAPABILITY.replace('.', '')}"), 0)
    shapes = builder.create_optimization_profile()
    for given in (network.get_input(i) for i in range(network.num_inputs)):
        shapes.set_shape(given.name, *[[max(1, size) for size in given.shape]] * 3)  # a free size is 1
    config.add_optimization_profile(shapes)
    built = builder.build_serialized_network(network, config)
    return ("", (errors or ["it compiles to nothing"])[0]) if built is None else ("", "")


if __name__ == "__main__":
    print(json.dumps(_told(sys.argv[1])))

"""What Qualcomm's library compiles of an artefact for one Hexagon processor, which loads it without compiling.

https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html, QNN context binary
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edgeq.errors import UnsupportedError
from edgeq.export.emitters import Proven

TIMEOUT = 1800.0


def emit(proven: Proven) -> list[Path]:
    """Writes `model_ctx.onnx`, which holds the compiled network, beside the file.

    Raises:
        UnsupportedError: the library cannot compile the network for it; says what it said.
    """
    assert proven.profile is not None and proven.profile.qnn is not None, "the registry has seen to that"
    system = proven.profile.qnn
    to = proven.path.with_name(f"{proven.path.stem}_ctx{proven.path.suffix}")
    partial = to.with_name(f".{to.name}")
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(proven.path), str(partial)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        # a process of its own: the library stays in whatever registered it
        ran = subprocess.run(
            [*command, system.soc_model, system.htp_arch],
            capture_output=True, text=True, timeout=TIMEOUT, env=environment,
        )  # fmt: skip
        if ran.returncode or not partial.is_file():
            said = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
            raise _refused(said[-1] if said else f"status {ran.returncode}")
        partial.replace(to)
    except subprocess.TimeoutExpired as error:
        raise _refused(f"it was not done after {TIMEOUT:g} s") from error
    finally:
        partial.unlink(missing_ok=True)
    return [to]


def _refused(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"Qualcomm's library makes no context of the file: {why[:300]}",
        where="--emit context",
        remedy="leave --emit away: the device compiles model.onnx itself",
    )


def _compile(path: str, to: str, soc_model: str, htp_arch: str) -> None:
    import onnxruntime
    import onnxruntime_qnn

    from edgeq.on_device.onnxruntime_qnn import processor

    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("ep.context_enable", "1")
    settings.add_session_config_entry("ep.context_file_path", to)
    settings.add_session_config_entry("ep.context_embed_mode", "1")
    given = {"soc_model": soc_model, "htp_arch": htp_arch, "backend_path": onnxruntime_qnn.get_qnn_htp_path()}
    settings.add_provider_for_devices([processor(onnxruntime, onnxruntime_qnn, True)], given)
    onnxruntime.InferenceSession(path, settings)


if __name__ == "__main__":
    _compile(*sys.argv[1:])

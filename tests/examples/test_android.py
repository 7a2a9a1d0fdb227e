"""The Gradle script of the Android example, in a build without the Android plugin."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgeq.devices import qemu

ROOT = Path(__file__).parent.parent.parent
ANDROID = ROOT / "examples" / "android"

if shutil.which("gradle") is None:
    pytest.skip("there is no gradle: apt-get install gradle", allow_module_level=True)


@pytest.fixture
def app(project: Path) -> Path:
    """A Gradle build with the script, the settings of the example, and a user's model."""
    for name in ("edgeq.gradle", "gradle.properties"):
        shutil.copy(ANDROID / name, project)
    (project / "build.gradle").write_text("apply from: 'edgeq.gradle'\n")
    return project


def gradle(app: Path, environment: Mapping[str, str], *options: str) -> tuple[dict[str, str], str]:
    """What became of each task, and all that was said."""
    command = ["gradle", "--offline", "--no-daemon", "--console=plain", "--gradle-user-home", str(app / "home")]
    done = subprocess.run(
        [*command, *options, "edgeqAssets"], cwd=app, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return dict(re.findall(r"^(?:> Task )?:(edgeq\w+)(?: (UP-TO-DATE|FAILED))?", done.stdout, re.M)), done.stdout


def test_the_model_is_deployed_into_the_assets_and_again_for_what_changed(
    app: Path, environment: dict[str, str]
) -> None:
    if qemu.read_machine(qemu.devices_folder() / "arm64") is None:
        pytest.skip("the emulated machine is not set up: edgeq device setup arm64")
    asset = app / "build" / "generated" / "edgeq" / "model.tflite"
    became, told = gradle(app, environment)
    assert became == {"edgeqDeploy": "", "edgeqAssets": ""} and "PASSED" in told, told
    assert asset.read_bytes() == (app / "build" / "edgeq" / "model.tflite").read_bytes()

    bare = {**environment, "PATH": "/usr/bin:/bin"}
    became, told = gradle(app, bare)
    assert became == {"edgeqDeploy": "UP-TO-DATE", "edgeqAssets": "UP-TO-DATE"}, told

    shutil.copy(app / "eval.npz", app / "calib.npz")
    became, told = gradle(app, bare)
    assert became == {"edgeqDeploy": "FAILED"} and "edgeq was not found" in told, told
    assert "-Pedgeq=/path/to/venv/bin/edgeq" in told


def test_a_missed_limit_ends_the_build(app: Path, environment: dict[str, str]) -> None:
    program = app / "program"
    program.write_text(f'#!/bin/sh\necho "$@" > {app}/told\nexit 3\n')
    program.chmod(0o755)
    became, told = gradle(app, environment, f"-Pedgeq={program}", "-Pedgeq.options=--max-size 1kB")
    assert became == {"edgeqDeploy": "FAILED"} and "exit value 3" in told, told
    words = (app / "told").read_text().split()
    assert words[:2] == ["deploy", str(app / "model.pt")]
    assert words[-6:] == ["--target", "arm-neon", "--format", "tflite", "--max-size", "1kB"]

"""The steps of the example workflow do on a small model what they say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from edgeq.devices import qemu

ROOT = Path(__file__).parent.parent.parent

WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "github" / "deploy.yml").read_text(encoding="utf-8"))
JOB: dict[str, Any] = WORKFLOW["jobs"]["deploy"]
MATRIX: list[dict[str, str]] = JOB["strategy"]["matrix"]["include"]
SHELL = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]  # what GitHub runs for `shell: bash`


def filled(text: str, matrix: dict[str, str]) -> str:
    """With the values of the matrix in place."""
    return re.sub(r"\$\{\{ matrix\.([\w-]+) \}\}", lambda found: matrix[found[1]], text)


def wanted(step: dict[str, Any], matrix: dict[str, str], failed: bool) -> bool:
    """Whether a step runs, after one that failed or after none."""
    condition = step.get("if")
    if condition is None or condition == "always()":
        return condition is not None or not failed
    found = re.fullmatch(r"matrix\.([\w-]+) == '([^']*)'", condition)
    assert found is not None, condition
    return not failed and matrix[found[1]] == found[2]


def run(matrix: dict[str, str], folder: Path, environment: dict[str, str], **changed: str) -> dict[str, int]:
    """Runs the steps as GitHub does, but for the installation; gives their exit codes, and prints what they say."""
    variables = {
        **environment,
        **WORKFLOW["env"],
        **changed,
        "EDGEQ_CACHE": environment["EDGEQ_CACHE"],
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "CI": "true",
    }
    codes: dict[str, int] = {}
    for step in JOB["steps"]:
        if "run" not in step or step["name"] == "Install edgeq" or not wanted(step, matrix, any(codes.values())):
            continue
        command = filled(step["run"], matrix)
        assert "${{" not in command
        done = subprocess.run([*SHELL, command], cwd=folder, env=variables, capture_output=True, text=True)
        print(command, done.stdout, done.stderr, sep="\n")
        codes[step["name"]] = done.returncode
    return codes


@pytest.mark.parametrize("matrix", MATRIX, ids=lambda matrix: matrix["target"])
def test_every_step_of_a_target_runs(matrix: dict[str, str], project: Path, environment: dict[str, str]) -> None:
    if matrix["device"] == "arm64" and qemu.read_machine(qemu.devices_folder() / "arm64") is None:
        pytest.skip("the emulated machine is not set up: edgeq device setup arm64")
    setup = ["Set up the emulated Arm machine"] if matrix["target"] == "arm-neon" else []
    names = [*setup, "Deploy", "Validate", "Verify", "Show the report"]
    assert run(matrix, project, environment) == dict.fromkeys(names, 0)
    assert "PASSED" in (project / "summary.md").read_text()
    assert (project / "build" / "model.onnx").exists()
    suites = ET.parse(project / "build" / "validate.junit.xml").getroot()
    assert len(suites.findall(".//testcase")) >= 2 and not suites.findall(".//failure")


def test_a_missed_limit_ends_the_job_and_is_shown(project: Path, environment: dict[str, str]) -> None:
    codes = run(MATRIX[0], project, environment, LIMITS="--max-size 1kB --allow-slower")
    assert codes == {"Deploy": 3, "Show the report": 0}
    assert "FAILED" in (project / "summary.md").read_text()


def test_expressions_are_of_the_matrix_whose_rows_have_the_same_fields() -> None:
    named = set(re.findall(r"\$\{\{ (.*?) \}\}", str(WORKFLOW)))
    assert {name for name in named if not name.startswith("matrix.")} == {"github.sha"}
    assert all(set(matrix) == set(MATRIX[0]) for matrix in MATRIX)

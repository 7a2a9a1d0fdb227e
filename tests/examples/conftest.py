"""What tests of examples share: the programs that a user has, and a model with its data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trained_model

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which `edgeq` is this checkout's; what one example computed, the next one takes from there."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "EDGEQ_CACHE": str(shared / "cache of examples"),
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder with `model.pt`, `calib.npz` and `eval.npz`."""
    trained_model.make(tmp_path)
    (tmp_path / "model.pt2").rename(tmp_path / "model.pt")
    return tmp_path

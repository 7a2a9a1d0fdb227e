"""What every writer of a file format has to do, whichever it is: the same networks.

A format takes part by being in `FORMATS`, with a runtime of the target x86-avx512 that reads it.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch

from edgeq.devices import Candidate, open_device
from edgeq.export.artifact import Exporter, artifact_files, read_artifact, write_artifact
from edgeq.export.audit import AuditError, audit
from edgeq.formats import FORMATS
from edgeq.methods.quantize import quantize_model
from edgeq.model.ops import WEIGHTED
from edgeq.numerics import sqnr_db
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime
from edgeq.runtimes import runtime as info

NETS = ["residual", "token-mlp", "two-outputs"]
HERE = open_device("local")


@pytest.fixture(params=FORMATS)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found = next(r for r in load_target("x86-avx512").runtimes if r.format == request.param)
    if not info(found.name).available():
        pytest.skip(f"{found.name} is not installed")
    return small.exact_here(found)


@pytest.mark.parametrize("name", NETS)
def test_the_float_file_gives_the_models_answers(name: str, runtime: Runtime) -> None:
    files = small.exporter(name).float_model(runtime.format)
    assert files == artifact_files(runtime.format, files[0].parent) and all(file.is_file() for file in files)
    inputs = small.arrays(name, 4)
    wanted = small.model(name).run([[torch.from_numpy(x) for x in inputs.values()]])[0]
    for got, want in zip(HERE.outputs(Candidate(files[0], runtime.name), inputs), wanted, strict=True):
        np.testing.assert_allclose(got.reshape(want.shape), want.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_an_artefact_holds_the_plan_and_computes_it(name: str, runtime: Runtime, tmp_path: Path) -> None:
    model, quantized = small.model(name), small.quantized(name, runtime)
    conversion = small.exporter(name).conversion(runtime.format)
    files = write_artifact(model, quantized, conversion, tmp_path)
    stored = read_artifact(model, quantized, conversion, files[0])
    assert audit(model, quantized, stored).tensors_checked >= 2 * len(quantized.weights)
    assert set(stored.weights) == set(quantized.weights)
    inputs = small.arrays(name, 16)
    wanted = model.run([[torch.from_numpy(x) for x in inputs.values()]])[0]
    for got, want in zip(HERE.outputs(Candidate(files[0], runtime.name), inputs), wanted, strict=True):
        assert sqnr_db(want.numpy(), got.reshape(want.shape)) > 20


@pytest.mark.parametrize("name", NETS)
def test_a_file_of_other_weights_is_refused(name: str, runtime: Runtime, tmp_path: Path) -> None:
    model, quantized = small.model(name), small.quantized(name, runtime)
    conversion = small.exporter(name).conversion(runtime.format)
    first = next(iter(quantized.weights))
    weight = quantized.weights[first].integers
    changed = weight.copy()
    changed.reshape(-1)[0] += 1 if changed.reshape(-1)[0] < 1 else -1
    other = quantize_model(model, runtime, small.calibration(name))
    other.weights[first] = type(other.weights[first])(changed, other.weights[first].q)
    files = write_artifact(model, other, conversion, tmp_path)
    with pytest.raises(AuditError, match="other weights") as error:
        audit(model, quantized, read_artifact(model, quantized, conversion, files[0]))
    assert error.value.where == f"layer {first}"


def test_the_same_plan_gives_the_same_bytes_here_and_in_another_process(runtime: Runtime, tmp_path: Path) -> None:
    name = NETS[0]
    model, quantized = small.model(name), small.quantized(name, runtime)
    kept = Exporter(model, tmp_path).conversion(runtime.format)
    written = []
    for number, conversion in enumerate((kept, pickle.loads(pickle.dumps(kept)))):
        folder = tmp_path / str(number)
        folder.mkdir()
        written.append([file.read_bytes() for file in write_artifact(model, quantized, conversion, folder)])
    assert written[0] == written[1]


@pytest.mark.parametrize("name", NETS)
def test_operators_carry_the_names_of_their_layers(name: str, runtime: Runtime) -> None:
    model = small.model(name)
    labels = small.exporter(name).labels(runtime.format)
    layers = {group.name for group in model.groups}
    assert set(labels.values()) <= layers
    assert {group.name for group in model.groups if group.op in WEIGHTED} <= set(labels.values())

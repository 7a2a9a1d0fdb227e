"""A case is loaded and calibrated once, whatever it is aimed at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trained_model

from edgeq.cache import Cache
from edgeq.case import Case
from edgeq.data.dataset import make_dataset
from edgeq.devices import Device
from edgeq.devices.link import Exit
from edgeq.errors import DeviceError, UsageError
from edgeq.evaluation.emulated import EMULATED_SAMPLES
from edgeq.export import onnx_format, tflite_format
from edgeq.frontends.load import load
from edgeq.limits import Limits
from edgeq.lowering.assign import assign
from edgeq.planning.sensitivity.losses import arithmetic
from edgeq.prepare import Aim, answered, prepare, take_aim
from edgeq.progress import Clock, Silent
from edgeq.registry.load import load_target


class Stages(Silent):
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.notes: list[str] = []

    def start(self, stage: str) -> None:
        self.seen.append(stage)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = trained_model.make(tmp_path_factory.mktemp("case"))
    return Case(folder / "model.pt2", calibration=folder / "calib.npz", evaluation=folder / "eval.npz")


def refuses(*_: object) -> DeviceError:
    return DeviceError("nothing runs here")


def emulated() -> Device:
    def nothing_runs(*_: object) -> Exit:
        raise refuses()

    return Device(name="slow", emulated=True, link=nothing_runs, missing=refuses)


def test_aims_share_what_does_not_depend_on_them(case: Case) -> None:
    stages = Stages()
    aims = [take_aim(load_target("x86-avx512")), take_aim(load_target("npu-intel"), limits=Limits(max_size=9))]
    first, second = prepare(case, aims, Clock(stages))
    assert stages.seen == ["load", "calibrate", "float model"]
    assert first.calibration is second.calibration and first.impact is second.impact and first.model is second.model
    assert (first.limits, second.limits) == (Limits(), Limits(max_size=9))
    assert (
        second.device is None
        and second.no_device_because
        and second.reference is first.reference
        and len(first.reference) == 1
    )
    (away,) = prepare(case, aims[1:], Clock(stages))
    assert away.reference == []
    assert np.array_equal(answered(away).reference[0], first.reference[0])
    first.warnings.append("of the first")
    assert "of the first" not in second.warnings


def test_calibration_for_several_targets_is_that_for_each(case: Case) -> None:
    names = ("x86-avx512", "x86-avx2", "arm-neon")
    aims = [Aim(t, t.runtimes, None, None, 1, Limits(), "not here") for t in map(load_target, names)]
    together = prepare(case, aims, Clock(Silent()))
    for aim, job in zip(aims, together, strict=True):
        (alone,) = prepare(case, [aim], Clock(Silent()))
        for runtime in aim.runtimes:
            tensors = assign(alone.model, runtime, alone.calibration.histograms).tensors
            assert tensors == assign(job.model, runtime, job.calibration.histograms).tensors
            for name in tensors:
                assert np.array_equal(alone.impact.gradients[name], job.impact.gradients[name])
                assert np.array_equal(alone.impact.centers[name], job.impact.centers[name])


def test_what_calibration_shows_serves_every_format_of_a_target(case: Case, tmp_path: Path) -> None:
    target, cache = load_target("x86-avx512"), Cache(tmp_path)
    for form in ("onnx", "tflite", "auto"):
        prepare(case, [take_aim(target, form)], Clock(Silent()), cache)
    for stage in ("calibration", "impact"):
        assert len(list((tmp_path / stage).glob("*"))) == 1


def test_an_emulated_device_sees_fewer_samples_and_their_own_answers(case: Case) -> None:
    stages = Stages()
    target = load_target("arm-neon")
    here = take_aim(load_target("x86-avx512")).device
    aims = [Aim(target, target.runtimes, device, None, 1, Limits()) for device in (here, emulated())]
    whole, few = prepare(case, aims, Clock(stages))
    assert whole.evaluation is not None and few.evaluation is not None
    assert (len(whole.evaluation), len(few.evaluation)) == (128, EMULATED_SAMPLES)
    assert any("slow is emulated" in text for text in few.warnings)
    assert not any("emulated" in text for text in whole.warnings)
    assert stages.seen.count("float model") == 2
    hashes = list(whole.evaluation.sample_hashes)
    kept = [hashes.index(one) for one in few.evaluation.sample_hashes]
    assert kept == sorted(set(kept)) and kept[0] == 0 and kept[-1] == 127
    assert few.reference[0] == pytest.approx(whole.reference[0][kept], abs=1e-5)


def test_wrong_aims_are_refused_before_anything_is_loaded() -> None:
    target = load_target("arm-neon")
    with pytest.raises(UsageError, match="--threads 0"):
        take_aim(target, threads=0)
    with pytest.raises(UsageError, match="no format"):
        take_aim(target, "openvino")
    with pytest.raises(UsageError, match="no device"):
        take_aim(target, device="toaster")


def test_arithmetic_is_what_is_stored_and_not_how_it_is_known() -> None:
    (here,) = [r for r in load_target("x86-avx512").runtimes if r.name == "litert"]
    (arm,) = [r for r in load_target("arm-neon").runtimes if r.name == "litert"]
    assert arithmetic(here) == arithmetic(arm)
    kernels = [k.model_copy(update={"source": "elsewhere", "accumulator": "int64"}) for k in here.kernels]
    assert arithmetic(here.model_copy(update={"kernels": kernels})) == arithmetic(here)
    narrow = [k.model_copy(update={"weight_bits": 7}) for k in here.kernels]
    for changes in ({"kernels": narrow}, {"io": "integer"}, {"shared_scale": []}, {"fixed_outputs": []}):
        assert arithmetic(here.model_copy(update=changes)) != arithmetic(here)


def test_a_prepared_model_carries_calibration_samples(case: Case) -> None:
    """Exporters compare their files with the model on them; those of other samples are not taken for the same."""
    (job,) = prepare(case, [take_aim(load_target("x86-avx512"))], Clock(Silent()))
    traced = load(case.model)
    first = job.calibration_data.first(len(traced.example[0]))
    assert [x.shape for x in job.model.example] == [x.shape for x in traced.example]
    assert all(np.array_equal(x, first[s.name]) for s, x in zip(job.model.inputs, job.model.example, strict=True))
    assert job.model.fingerprint == traced.fingerprint
    assert all(form.key(job.model) != form.key(traced) for form in (onnx_format, tflite_format))


def test_few_samples_are_repeated_for_a_larger_example(case: Case) -> None:
    traced = load(case.model)
    shape = traced.example[0].shape[1:]
    one = make_dataset(
        {traced.inputs[0].name: np.ones((1, *shape), np.float32)}, traced.inputs, labels=None, source="one"
    )
    (example,) = traced.with_samples(one).example
    assert example.shape == traced.example[0].shape and np.all(example == 1)

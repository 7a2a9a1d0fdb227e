"""From a model and a plan to a file of the trained network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from edgeq.cache import open_cache
from edgeq.case import Case, check_classes, load_model
from edgeq.data.dataset import Dataset, make_dataset
from edgeq.data.load import load_data
from edgeq.errors import UnsupportedError, UsageError
from edgeq.files import refuse_unwritable
from edgeq.limits import Limits
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.plans.follow import followed, runtime_of
from edgeq.plans.plan import Plan
from edgeq.prepare import Aim, prepare
from edgeq.progress import Clock, Progress, Silent
from edgeq.quantization.quantized import Quantized
from edgeq.registry.load import load_target
from edgeq.request import takes_fields_of
from edgeq.training.augment import augment_of
from edgeq.training.checkpoint import place_of, read_checkpoint, write_checkpoint
from edgeq.training.gradients import BITS, Gradients, hook
from edgeq.training.loop import AUTOCAST, Data, Epoch, Steps, Task, train
from edgeq.training.objective import Aims, ends_of_blocks
from edgeq.training.projected import PROJECTED
from edgeq.training.ranges import RANGES
from edgeq.training.together import Team, team
from edgeq.training.view import View
from edgeq.training.write import write_trained

CALIBRATION = 512
"""Of the training samples, evenly spread, ranges start from so many."""

HELD_OUT = 20
"""One training sample in so many judges what is learned from the others."""

VERSION = 2
"""To be raised whenever the same request trains another network."""


@dataclass(frozen=True)
class TrainRequest:
    """What a training is made of.

    Attributes:
        model: a file, a module or a loaded model: the float network.
        train: samples to learn from (see `edgeq.data.load_data`).
        plan: which grid each layer has.
        out: the file to write, a program of `torch.export`.
        target: the plan's target, where that is a file of the user's.
        labels: learn the classes that the samples are labelled with.
        distill: learn what the float model gives.
        features: learn, beside the outputs, what it gives between its blocks.
        ranges: how ranges are set (see `edgeq.training.ranges`).
        augment: samples changed at random: a name in `edgeq.training.augment`, or `package.module:function`.
        steps: how long is trained, and how fast.
        preprocess, inputs, arch, trust_pickle: see `edgeq.case.Case`.
        gradients: what they are sent as, where torchrun started several processes: a name in
            `edgeq.training.gradients.BITS`.
        overwrite: replace a file that lies at `out`.
        progress: hears of stages and steps.
    """

    model: str | Path | torch.nn.Module | Model
    _: KW_ONLY
    train: str | Path | Dataset
    plan: Plan
    out: str | Path
    target: str | None = None
    labels: bool = False
    distill: bool = False
    features: bool = False
    ranges: str = next(iter(RANGES))
    augment: str | None = None
    gradients: str = "float32"
    steps: Steps = field(default_factory=Steps)
    preprocess: str | None = None
    inputs: Sequence[str] = ()
    arch: str | None = None
    trust_pickle: bool = False
    overwrite: bool = False
    progress: Progress = field(default_factory=Silent)


class Trained(NamedTuple):
    """
    Attributes:
        out: the file.
        epochs: what was seen after each, and before the first.
        best: the number of the one that was written.
        sent: bytes of gradients that this process sent to others; None where they were not counted.
        float32: bytes that they would have been in float32.
    """

    out: Path
    epochs: list[Epoch]
    best: int
    sent: int | None = None
    float32: int | None = None


@takes_fields_of(TrainRequest)
def train_model(request: TrainRequest) -> Trained:
    """Trains a network on the grids of a plan, and writes it with its integers. `edgeq.deploy` takes the file.

    Where an earlier run was interrupted, it is gone on with, to the same numbers. Processes that torchrun started train
    together, each on its part of every step, and the first one writes.

    Raises:
        UsageError: wrong arguments or data, or the loss is not finite any more.
        UnsupportedError: the model cannot be handled, or not be trained.
    """
    _refuse(request, Path(request.out))
    with team() as us:
        return _trained(request if us.leads else replace(request, progress=Silent()), us)


def _trained(request: TrainRequest, us: Team) -> Trained:
    out, clock = Path(request.out), Clock(request.progress)
    if request.gradients != "float32" and us.size == 1:
        remedy = "start it by torchrun --nproc-per-node 2 -m edgeq.cli train ..., or leave --gradients away"
        raise UsageError("there is one process, which sends gradients to none", remedy=remedy)
    cache = open_cache(clock.progress.note)
    case = Case(
        request.model,
        calibration="",
        inputs=request.inputs,
        arch=request.arch,
        trust_pickle=request.trust_pickle,
        rewrites=request.plan.rewrites,
    )
    with clock.stage("read"):
        net = load_model(case, cache)
        data = _samples(request, net)
    _refuse_data(request, net, data)
    model, start = _start(replace(case, model=net, calibration=_spread(data)), request, clock)
    aims = Aims(request.labels, request.distill or request.features, ends_of_blocks(model) if request.features else ())
    torch.manual_seed(request.steps.seed)
    view = View(model, start, request.ranges, aims.features)
    checkpoint, key = place_of(out), _key(request, model, data)
    state = us.same(lambda: read_checkpoint(checkpoint, key))
    if state is not None:
        clock.progress.note(f"goes on from {checkpoint.name}, {state.step} steps")
    if request.steps.autocast is not None and not torch.cpu._is_amx_tile_supported():
        clock.progress.note("this CPU has no matrix unit for 16 bits: without --autocast, steps take less time")
    held, learned = _apart(data)
    keep = partial(write_checkpoint, checkpoint, key)
    module, sent = _connected(view, request.gradients, us)
    with clock.stage("train") as progress:
        task = Task(
            view,
            aims,
            learned,
            held,
            request.steps,
            None if request.augment is None else augment_of(request.augment),
            keep,
            lambda done, total, loss: progress.step(done, total),
            progress.note,
            us,
        )
        epochs = train(task, state, module)
    with clock.stage("write"):
        if us.leads:
            write_trained(out, *view.found())
            checkpoint.unlink(missing_ok=True)
        us.same(lambda: None)  # nobody ends before the file is there
    best = min(range(len(epochs)), key=lambda i: epochs[i].held_out)
    return Trained(out, epochs, best, *((sent.sent, sent.float32) if sent is not None else ()))


def _connected(view: View, kind: str, us: Team) -> tuple[torch.nn.Module, Gradients | None]:
    """What runs the view, and counts what its gradients take on their way."""
    if us.size == 1:
        return view, None
    module = DistributedDataParallel(view, find_unused_parameters=True, forward_sync_buffers=view.rule.follows)
    if kind == "float32":
        return module, None
    sent = Gradients(BITS[kind], us)
    module.register_comm_hook(sent, hook)
    return module, sent


def _samples(request: TrainRequest, model: Model) -> Dataset:
    if isinstance(request.train, Dataset):
        return request.train
    return load_data(request.train, model.inputs, preprocess=request.preprocess, role="evaluation")


def _refuse(request: TrainRequest, out: Path) -> None:
    if not (request.labels or request.distill or request.features):
        raise UsageError(
            "nothing says what to learn",
            remedy="--labels for the classes of the samples, --distill for what the float model gives, or both",
        )
    if request.augment is not None:
        augment_of(request.augment)
    if request.gradients not in BITS:
        raise UsageError(f"gradients cannot be sent as {request.gradients!r}", remedy=f"one of {', '.join(BITS)}")
    if request.steps.autocast not in (None, *AUTOCAST):
        raise UsageError(f"there is no autocast to {request.steps.autocast!r}", remedy=f"one of {', '.join(AUTOCAST)}")
    if request.steps.epochs < 1 or request.steps.batch < 1:
        raise UsageError("less than one epoch, or one sample a step", remedy="give --epochs and --batch of 1 or more")
    if out.is_dir():
        raise UsageError("is a folder", where=str(out), remedy="name the file to write, such as model.qat.pt")
    if out.exists() and not request.overwrite:
        raise UsageError("is there already", where=str(out), remedy="add --overwrite, or name another file")
    refuse_unwritable(out)


def _refuse_data(request: TrainRequest, model: Model, data: Dataset) -> None:
    if model.grids is not None:
        raise UsageError("the model has integers already", remedy="give the float model that it was made from")
    if len(data) < 2 * HELD_OUT:
        raise UsageError(f"{len(data)} samples are too few to learn from", remedy=f"give {2 * HELD_OUT} or more")
    if request.labels:
        if data.labels is None:
            raise UsageError("the samples have no labels", remedy="give samples with labels, or --distill")
        if data.labels.dtype.kind not in "iu":
            raise UsageError("the labels are no classes", remedy="--distill learns without labels")
        check_classes(model, data)
    if not model.batchable:
        raise UnsupportedError(
            "its graph takes one batch size alone, and no two samples side by side",
            remedy="export it with a free batch: dynamic_shapes with torch.export.Dim for the first axis",
        )


def _start(case: Case, request: TrainRequest, clock: Clock) -> tuple[Model, Quantized]:
    """The model, rewritten as the plan says, and what it is quantized to before anything is learned."""
    target = load_target(request.target or request.plan.target)
    runtime = runtime_of(request.plan, target)
    (job,) = prepare(case, [Aim(target, [runtime], None, None, 1, Limits(), "nothing is run")], clock)
    sha256 = request.plan.data_hash  # that ranges start from other samples goes without saying
    choices, notes = followed(request.plan, job.model, job.calibration, sha256, runtime)
    for note in notes:
        clock.progress.note(note)
    methods = {layer: name for layer, name in request.plan.methods.items() if name in PROJECTED}
    with clock.stage("quantize"):
        start = quantize_model(job.model, runtime, job.calibration, job.impact, choices=choices, methods=methods)
    if not start.weights and not start.activations:
        raise UsageError("the plan leaves everything in float", remedy="give a plan with integers in it")
    return job.model, start


def _spread(data: Dataset) -> Dataset:
    places = np.unique(np.linspace(0, len(data) - 1, CALIBRATION).round().astype(int))
    few = {name: array[places] for name, array in data.inputs.items()}
    return make_dataset(few, data.specs, labels=None, source=data.source)


def _apart(data: Dataset) -> tuple[Data, Data]:
    """Samples that are held out, and all others."""
    inputs = tuple(torch.from_numpy(np.array(array)) for array in data.inputs.values())
    labels = None if data.labels is None else torch.from_numpy(np.array(data.labels, np.int64))
    every, whole = torch.arange(len(data)), Data(inputs, labels)
    return whole.at(every[::HELD_OUT]), whole.at(every[every % HELD_OUT != 0])


def _key(request: TrainRequest, model: Model, data: Dataset) -> str:
    """Hash of all that decides how a training goes."""
    told = {
        "version": VERSION,
        "torch": torch.__version__,
        "model": model.fingerprint,
        "data": data.sha256,
        "plan": request.plan.stored,
        "asked": [
            getattr(request, name) for name in ("labels", "distill", "features", "ranges", "augment", "gradients")
        ],
        "steps": asdict(request.steps),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

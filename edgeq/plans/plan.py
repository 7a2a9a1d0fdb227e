"""The plan: for each layer, how its weights and activations are represented, and why. A file to read and review."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edgeq.errors import UsageError
from edgeq.limits import Measured
from edgeq.methods.effort import DEFAULT, EffortName
from edgeq.numerics.scheme import DType, Granularity, Levels, Symmetry
from edgeq.plans.rules import Rule
from edgeq.reading import read_json
from edgeq.records.strict import Strict, validated
from edgeq.registry.schema import Format, RuntimeName

FloatPrecision = Literal["float32", "bfloat16", "float16"]


class TensorPlan(Strict):
    """An activation tensor: its type and the range that calibration gave it."""

    dtype: DType
    symmetry: Symmetry
    scale: float
    zero_point: int
    low: float
    high: float
    estimator: str
    """Which range estimator set it, or `fixed` (the runtime prescribes it) or `shared` (see `tied_to`)."""
    tied_to: str | None = None
    reason: str


class WeightPlan(Strict):
    """A weight tensor: its type, and the hash of what the artefact must store."""

    dtype: DType
    symmetry: Symmetry
    granularity: Granularity
    levels: Levels | None = None
    """Which there are, where they are not evenly spaced."""
    axis: int
    algorithm: str
    method: str = "nearest"
    """How it is rounded: a name in `edgeq.methods`."""
    sha256: str
    """Over the int values in PyTorch's layout, then the float32 levels where there are any, then the float32 scales."""
    bias: Literal["int32", "int64", "float32"] | None = None


class LayerPlan(Strict):
    """One fusion group: what runs as one kernel."""

    name: str
    op: str
    members: list[str]
    macs: int
    parameters: int
    choice: str
    """The name of the kernel that it runs in, such as `w8a8`, or `float32`."""
    reason: str
    alternatives: dict[str, dict[str, float]] = {}
    """By choice, what it is expected to cost: `latency` in seconds, `size` in bytes, `loss` (see `Planned`)."""
    weight: WeightPlan | None = None
    output: TensorPlan | None = None
    reads_again: dict[str, TensorPlan] = {}
    """By graph node, what it reads in another type of integers than that is written in."""


class Conversion(Strict):
    """What it costs to convert a tensor between float and integers, or between two types of those: paid once if the
    layer that writes it takes one of `leaves` and a layer that reads it one of the choices that `readers` gives for
    it."""

    producer: str | None
    leaves: list[str]
    readers: dict[str, list[str]]
    costs: dict[str, float]


class Condition(Strict):
    """A layer may take one of `choices` only if one of the layers in `any_of` takes one of those beside it."""

    layer: str
    choices: list[str]
    any_of: dict[str, list[str]]


class Proof(Strict):
    """What was measured on a build of the plan, in its own runtime."""

    latency: float | None
    """Median seconds; None where the device has no clock, and for a build that lost too much and was not kept."""
    latency_of: dict[str, float] = {}
    """Median seconds of what took turns with it: the float baselines, and the preferred kernels everywhere."""
    size: int
    """Bytes of all files."""
    metric: str
    unit: str
    score: float | None
    float_score: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    loss: float | None = None
    """What its outputs lose on the evaluation samples, in the unit of predicted losses (see `Planned`); None if it was
    not run to the end."""
    at_least: bool = False
    """Whether the drop may be larger: no further sample was run once it was certain that it is over its limit."""
    unrecognizable: str = ""
    """Why what it gives is beyond recognition; empty if it is not, or if it was not run to the end."""
    held: bool
    """Whether every limit held."""

    @property
    def measured(self) -> Measured:
        """What limits are held against."""
        return Measured(self.drop, self.unit, self.float_score, self.latency, self.size, self.unrecognizable)


class Attempt(Strict):
    """One round of the search."""

    loss_limit: float
    predicted: dict[str, float]
    changed: int
    """Layers that another choice than the preferred kernel was taken for."""
    proof: Proof | None
    """None where nothing can be run: what was built was only counted."""


class ModelledBy(Strict):
    """What computed the latencies or energies that nothing here measured."""

    by: str
    """Such as `a roofline` or `Vela 5.2.0`."""
    profile: str
    figures: list[str]
    """What went into it, each with where it comes from."""


class Compiled(Strict):
    """What the compiler of a device says of the plan's own file: its estimate, never a measurement."""

    by: str
    seconds: float
    """Of one inference, without what is left to the CPU."""
    sram: int
    """Bytes."""
    flash: int
    """Bytes outside of the SRAM."""
    left_to_cpu: list[str]
    """Operators, by their name in the file."""


class AloneLoss(Strict):
    """What one layer loses with one choice where all others stay in float: `predicted` by the Gauss-Newton pass,
    `simulated` with fake quantization. Squared movement of the outputs over their own power."""

    layer: str
    choice: str
    predicted: float
    simulated: float


class Planned(Strict):
    """How a plan was found. Costs are sums over its layers and conversions.

    `loss` is the expected squared movement of the outputs over their own power, by one Gauss-Newton pass. `latency` is
    fitted to the runtime's profile of a few builds (`latency_from` says so, or says that it is modelled). `energy`, in
    joules, is always modelled.
    """

    minimize: str
    limits: dict[str, float]
    """What the last round was solved under."""
    predicted: dict[str, float]
    latency_from: Literal["measured", "modelled"] | None
    latency_by: ModelledBy | None = None
    """What modelled the latencies; None where they are measured, or where there are none."""
    energy_by: ModelledBy | None = None
    """What modelled the energies; None where there are none."""
    losses_alone: list[AloneLoss]
    """Losses that were simulated, and that the search used; the others are predicted."""
    rank_correlation: float | None
    """Spearman's, of the predicted and the simulated losses in `losses_alone`."""
    method: Literal["optimal", "time limit", "greedy", "given"]
    """How the choices were found; `given` if they were not solved for, such as the preferred kernels everywhere."""
    gap: float | None
    """How far what was minimized may be from the best possible by prediction, relative to it."""
    fixed: dict[str, float]
    """Costs of every plan."""
    attempts: list[Attempt]
    proof: Proof | None
    """None where nothing could be run; then `size` alone is known, and no limit but that on it was proved."""
    size: int | None = None
    """Bytes of all files of the plan's build, counted."""
    held: bool | None = None
    """Whether every limit held that could be judged here; `unvalidated` has the others."""
    peak_memory: int | None = None
    """Most bytes of activations that are alive at once for one sample: computed from the order of execution and the
    plan's types, not measured."""
    compiled: Compiled | None = None
    unvalidated: list[str] = []
    """Limits that were solved for and that no device judged, and why."""
    notes: list[str] = []
    conditions: list[Condition]
    conversions: list[Conversion]


class Given(Strict):
    """What the plan was made from, as it was given: `edgeq deploy --plan` takes from here what it is not told."""

    calibration: str
    evaluation: str | None = None
    preprocess: str | None = None
    metric: str | None = None
    device: str | None = None
    """Where it was proved, if not where the target says."""


class Plan(Strict):
    """What is to be built for one runtime of one target."""

    schema_version: Literal[4] = 4
    model_hash: str
    data_hash: str
    target: str
    runtime: RuntimeName
    format: Format
    inputs: dict[str, TensorPlan]
    float_precision: FloatPrecision = "float32"
    """What the runtime is to compute in where layers are left in float: a setting of the runtime, not of the file."""
    rewrites: dict[str, dict[str, float]] = {}
    """What was done to the float model before anything was rounded: by rewrite, the parameter of each value that it
    changed, by graph node (see `edgeq.rewrites`)."""
    effort: EffortName = DEFAULT
    """How long methods learn that do."""
    layers: list[LayerPlan]
    rules: list[Rule] = []
    """Written by a person: they overrule the choices above."""
    given: Given | None = None
    planned: Planned | None = None
    """None where every layer simply has the runtime's preferred kernel."""

    @property
    def methods(self) -> dict[str, str]:
        """By layer, how its weights are rounded."""
        return {layer.name: layer.weight.method for layer in self.layers if layer.weight is not None}

    @property
    def named(self) -> set[str]:
        """Every choice that the plan takes or weighs for a layer."""
        return {choice for layer in self.layers for choice in (layer.choice, *layer.alternatives)}

    @property
    def stored(self) -> dict[str, Any]:
        """What its artefact holds: equal for plans of one artefact, whatever led to them."""
        grid = {"dtype", "scale", "zero_point"}
        layer = {"choice": True, "weight": True, "output": grid, "reads_again": {"__all__": grid}}
        held: Any = {"format": True, "float_precision": True, "inputs": {"__all__": grid}, "layers": {"__all__": layer}}
        return self.model_dump(mode="json", include=held)


def run_options(precision: FloatPrecision) -> dict[str, str]:
    """How a runtime is told (see `Candidate`)."""
    return {} if precision == "float32" else {"precision": precision}


def read_plan(path: Path) -> Plan:
    """A plan from its file.

    Raises:
        UsageError: the file is missing, is no plan, or was edited into something else; names the place.
    """
    content = read_json(path, "a plan", "see edgeq plan")
    if isinstance(content, dict) and content.get("kind") == "edgeq.fleet":
        raise UsageError("is a fleet, not a plan", where=str(path), remedy="give one of the plans that stand beside it")
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version == 3:  # which knew one rewrite
        version = content["schema_version"] = 4
        content["rewrites"] = {"smooth_quant": content.pop("smooth_quant", {})}
    if version != Plan.model_fields["schema_version"].default:
        raise UsageError(
            "is not a plan of this version" if version else "is not a plan",
            where=str(path),
            remedy="make it with edgeq plan",
        )
    plan = validated(Plan, content, path)
    names = [layer.name for layer in plan.layers]
    twice = next((name for name in dict.fromkeys(names) if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"the layer {twice!r} is listed twice", where=str(path), remedy="leave one of them")
    return plan


def refuse_other(plan: Plan, *, model_hash: str, layers: Sequence[str]) -> None:
    """Refuses a plan that was made for another model.

    Raises:
        UsageError: says what differs.
    """
    if plan.model_hash == model_hash:
        return
    own, there = set(layers), {layer.name for layer in plan.layers}
    differs = sorted(own ^ there)
    what = (
        f"{len(differs)} of its layers are not the same, such as {differs[0]}"
        if differs
        else "the layers have the same names, the weights are others"
    )
    raise UsageError(f"the plan was made for another model: {what}", remedy="plan this model with edgeq plan")

"""The report: what was measured on an exported artefact in its real runtime. `report.json` is this, versioned."""

from __future__ import annotations

from typing import Literal

from edgeq.records.strict import Strict


class Interval(Strict):
    """A point estimate with its two-sided 95 % interval."""

    value: float
    low: float
    high: float
    method: str
    known: bool = True
    """False where no interval could be formed: low and high then repeat the value, and the method says why."""


OutputKind = Literal["classes", "scores", "numbers", "scores or numbers"]


class Output(Strict):
    """One output of the artefact against the float model's."""

    name: str
    kind: OutputKind
    """Classes are their own answers; of scores, the largest value is the answer; numbers have none."""
    kind_because: str
    """What told the kind."""
    shape: list[int]
    """Of one sample."""
    agreement: Interval | None
    """Answers that are the same, in percent, averaged over the positions of a sample; None for numbers."""
    sqnr_db: float | None
    """None for classes. Masked values that are masked in both are left out."""
    judged_by: Literal["agreement", "sqnr"]
    least: float
    """Of what it is judged by, in percent or dB, that it can be recognized."""
    unrecognizable: str
    """Why it is beyond recognition; empty if it is not."""


class Accuracy(Strict):
    """The artefact against the float model, on the same samples. Percentages are of samples."""

    metric: str
    unit: str
    higher_is_better: bool
    samples: int
    float_score: float | None
    score: float | None
    drop: Interval | None
    """Loss in units of the metric, positive when the artefact is worse; None without labels and metric."""
    agreement: Interval | None
    """Answers of the first output that are the same, in percent; None where it holds numbers."""
    sqnr_db: float | None
    """Of the worst output; None where all of them hold classes."""
    tied_percent: float | None
    """Samples whose first place is shared by several outputs; of positions where the output is dense."""
    saturated_percent: float | None
    """Samples with an output value at the end of its quantized range."""
    outputs: list[Output] = []
    """Every output, in the model's order; empty in reports that were written before there were any."""


class Latency(Strict):
    """Seconds a call, of single-sample inference, from runs interleaved with the float baseline."""

    p50: float
    p90: float
    p99: float
    runs: int
    quantiles: list[float] = []
    """Seconds at 0, 5, ... 100 % of the runs, for drawing; empty where they were not kept."""


class Baseline(Strict):
    """One float variant of the same runtime."""

    name: str
    latency: Latency
    ratio: float
    """Median of the artefact over the median of this baseline."""
    size_bytes: int
    ratio_interval: Interval | None = None


class Speed(Strict):
    """Latency of the artefact beside every float baseline, with the threads that were used."""

    threads: int
    artifact: Latency
    baselines: list[Baseline]
    best: str
    """Name of the fastest baseline."""


class Window(Strict):
    """A part of a long run: how many calls, their median in seconds, and the warmest sensor after it in degrees."""

    seconds: float
    calls: int
    median: float
    celsius: float | None


class Sustained(Strict):
    """The artefact called without a rest, alone and with the threads of `speed`."""

    windows: list[Window]
    throttled: float
    """The median of the last tenth of the windows over that of the first one: above 1, the device slowed down."""
    joules: dict[str, float]
    """Of one call, by the counter or sensor that it was read from: all that the device used meanwhile. Empty where the
    device has none."""
    megahertz: list[float]
    """Clocks at the end, of each core."""
    governors: list[str]


class Placement(Strict):
    """One operator as the runtime says it ran it."""

    name: str
    op: str
    where: str
    integer: bool | None
    microseconds: float | None


class FloatOperator(Strict):
    """An operator that stayed in float, and why."""

    layer: str
    op: str
    macs: int
    reason: str


COMPILES = "compiles"
"""What is told as a rule where a compiler refused the file."""


class Breach(Strict):
    """A place where a file breaks a documented rule of its runtime."""

    rule: str
    node: str
    cause: str
    text: str
    """The rule, in words."""
    remedy: str
    source: str
    refused: bool
    """Whether the runtime refuses such a file, or computes something else; else it runs it, slower than it might."""


class Conformance(Strict):
    """A file against the documented rules of a runtime that is not run here."""

    rulebook: str
    rules: int
    breaches: list[Breach]
    compiled_by: str = ""
    """What took the file as the runtime would, and for which device; empty where nothing here does, or it refused."""

    @property
    def refusals(self) -> list[Breach]:
        """Those for which the runtime would refuse the file, or compute something else."""
        return [breach for breach in self.breaches if breach.refused]


class Audit(Strict):
    """The written file against the plan."""

    tensors_checked: int
    bytes_checked: int
    integer_mac_percent: float
    float_operators: list[FloatOperator]
    conformance: Conformance | None = None
    """None for a runtime without documented rules, which is run."""


class Layer(Strict):
    """One row of the per-layer table."""

    name: str
    op: str
    precision: str
    weights: str
    activations: str
    macs: int
    parameters: int
    simulated_sqnr_db: float | None
    """From the simulation, not from the device: it shows where error arises, and is no result."""


class Gate(Strict):
    """One limit, of the user's or one that always counts, and whether it held."""

    name: str
    limit: str
    measured: str
    passed: bool
    reason: str
    limit_value: float | None = None
    """The limit as a number: seconds, bytes, times, or the unit of the metric (percent for disagreement)."""
    measured_value: float | None = None
    """What was measured, in the same unit; None where the gate could not be judged."""


class Modelled(Strict):
    """A figure that was computed from a model of the device, never measured: labelled so wherever it is shown."""

    name: str
    value: str
    """With its unit."""
    source: str


class LeftToCpu(Strict):
    """An operator of a file that its compiler leaves to the CPU beside the NPU, and why, in the compiler's words."""

    name: str
    op: str
    reason: str


class OnNpu(Strict):
    """What a compiler made of an artefact for an NPU, and what it estimates of that: nothing of it is measured."""

    file: str
    """What goes to the device in place of the artefact, and is compiled from it."""
    by: str
    """The compiler, with its version."""
    system: str
    """What it was compiled for, in the compiler's names."""
    mac_percent: float
    """The share of the multiply-accumulates that the NPU does."""
    operators: int
    """Of the artefact, that the NPU runs, as the compiler counts: what only reshapes is none."""
    left_to_cpu: list[LeftToCpu]
    seconds: float
    """Of one inference, without what the CPU runs; so are the cycles."""
    cycles: int
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int


class Decoding(Strict):
    """A language model in turns with its float model: seconds of a step, with the threads of `speed`."""

    prompt: int
    """Tokens that were read in one call until the first one was written."""
    context: int
    """Tokens in the cache before those that were timed one by one."""
    first_token: Latency
    """From the prompt to the first token."""
    token: Latency
    """Of each token behind."""
    float_first_token: Latency
    float_token: Latency
    float_peak_memory_bytes: int | None


class Build(Strict):
    """One artefact in one format, and everything measured on it."""

    format: str
    runtime: str
    runtime_version: str
    precision: str = "float32"
    """What the runtime was told to compute in where layers are in float; it has to be told so on the device as well."""
    device: str
    emulated: bool
    files: dict[str, int]
    """Bytes of each file of the artefact, by name relative to the output folder."""
    size_bytes: int
    """Of what goes to the device: of all files, or of the one that was compiled from them."""
    validated: bool
    not_validated_because: str | None
    remark: str = ""
    """What has to be said of all that was measured, such as that the file was run before it was compiled."""
    accuracy: Accuracy | None
    speed: Speed | None
    no_speed_because: str | None
    decoding: Decoding | None = None
    """Of language models, whose `speed` is that of a token; None where that was not timed."""
    sustained: Sustained | None = None
    """None where that was not asked for, or the device is emulated."""
    seconds_in_turns: float | None = None
    """Of one inference, where several formats took turns; `speed` has what took turns with its own float model."""
    peak_memory_bytes: int | None
    cold_start_seconds: float | None
    arena_bytes: int | None = None
    """What one inference used of the arena of a runtime that has one; pointers in it are as wide as here."""
    placements: list[Placement]
    fallen_back: list[str] | None = None
    """Operators that the CPU runs instead of the accelerator, by name; None where there is none, or nothing was run or
    compiled for it."""
    audit: Audit | None
    """None for an artefact that edgeq did not write: there is no plan to hold it against."""
    layers: list[Layer]
    gates: list[Gate]
    sources: dict[str, int] = {}
    """Bytes of what was emitted beside the artefact, by name."""
    npu: OnNpu | None = None
    """None where there is no compiler for the device here."""
    modelled: list[Modelled] = []
    float_size_bytes: int | None = None
    """The unquantized model in the same format; None where it was not written."""
    error: str | None = None


class Report(Strict):
    """The whole run."""

    schema_version: Literal[1] = 1
    edgeq: str
    model: str
    model_hash: str
    model_kind: str
    parameters: int
    macs: int
    target: str
    profile: str | None
    verdict: Literal["passed", "failed", "not validated"]
    verdict_text: str
    chosen: str
    """Format that was kept as the best one."""
    chosen_because: str
    builds: list[Build]
    warnings: list[str]
    data: dict[str, str | int]
    """Calibration and evaluation: samples, hashes, source, preprocessing."""
    environment: dict[str, str]
    seconds: dict[str, float]
    """Where the time went, by stage."""

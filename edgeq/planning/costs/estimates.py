"""The model of a device that cannot be timed here, and what it is: what Vela estimates where it compiles for the
device, a roofline over the figures of its profile elsewhere, or nothing where the profile knows too little. Nothing of
it is measured, and whatever shows a number of it says so.

Bytes are those of the weights as they are stored, of what the layer reads and of what it writes; a conversion between
float and integers reads one form and writes the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeq.errors import EdgeqError, UnsupportedError
from edgeq.export.onnx_names import layer_of
from edgeq.export.vela import estimate, in_words, version
from edgeq.lowering.assign import FLOAT, writes_integers
from edgeq.lowering.boundaries import Edge, Kind, elements
from edgeq.lowering.form import dynamic, on_integers
from edgeq.lowering.space import Space
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.planning.costs.builds import Built
from edgeq.planning.costs.size import stored_bytes
from edgeq.planning.costs.source import Bench, Latencies
from edgeq.planning.costs.timing import Timing, attribute
from edgeq.plans.plan import FloatPrecision, ModelledBy
from edgeq.registry.roofline import ENERGY, LATENCY, WIDTHS, Energies, Roofline, Work, energies, roofline, used_figures
from edgeq.registry.schema import Profile, Runtime, VelaSystem

Tables = dict[FloatPrecision, Timing]
"""By the precision of what stays in float; empty where the profile knows too little."""


def modelled_energy(
    space: Space, profile: Profile | None, wanted: Iterable[FloatPrecision]
) -> tuple[Tables, ModelledBy | None]:
    """Joules, and what computed them."""
    by = None if profile is None else energies(profile)
    if profile is None or by is None:
        return {}, None
    figures = used_figures(profile, ENERGY)
    told = ModelledBy(by="operations and bytes moved", profile=profile.name, figures=figures)
    return {p: table(space, by, p) for p in wanted}, told


def by_vela(bench: Bench) -> Latencies | str | None:
    """What Vela estimates, where it compiles for the device."""
    profile, space = bench.job.profile, bench.space
    if profile is None or profile.vela is None or space.runtime.name != "vela":
        return None
    system = profile.vela
    try:
        with bench.job.clock.stage(f"model of {profile.name}"):
            layers = _by_vela(space.model, bench.built, bench.labels, system)
    except EdgeqError as error:
        return f"there is no estimate of Vela's: {error.cause}; {error.remedy}"
    roof = roofline(profile, bench.job.threads)
    # conversions are the CPU's: they take no time where nothing is known of it
    between = conversions(space, roof if isinstance(roof, Roofline) else None, "float32")
    by = ModelledBy(by=f"Vela {version()}", profile=profile.name, figures=[in_words(system)])
    return Latencies({"float32": Timing(layers, between)}, by)


def by_roofline(bench: Bench) -> Latencies | str | None:
    """What a roofline over the figures of a profile gives. An emulated device computes in float32."""
    job, profile = bench.job, bench.job.profile
    if profile is None:
        return "the target has no profile to model a latency from: --profile names a device"
    roof = roofline(profile, job.threads)
    if isinstance(roof, str):
        return f"latency cannot be modelled for {profile.name}: its profile does not give {roof}"
    wanted: list[FloatPrecision] = ["float32", *(bench.space.runtime.float_alternatives if job.device is None else ())]
    known: list[FloatPrecision] = [p for p in wanted if p in roof.rates] or ["float32"]
    told = ModelledBy(by="a roofline", profile=profile.name, figures=used_figures(profile, LATENCY))
    return Latencies({p: table(bench.space, roof, p) for p in known}, told)


def asked_of_vela(runtime: Runtime, profile: Profile | None) -> str | None:
    """The version of Vela that estimates for this runtime; None where another model does."""
    return version() if runtime.name == "vela" and profile is not None and profile.vela is not None else None


def _by_vela(
    model: Model, built: Mapping[str, Built], labels: Mapping[str, str], system: VelaSystem
) -> dict[str, dict[str, float]]:
    """Seconds by group and kernel, from the builds in which no neighbours differ. What is in float is the CPU's, whose
    time is not known.

    Raises:
        UnsupportedError, MissingExtraError: see `estimate`.
    """
    uniform = {"preferred", *(choice for one in built.values() for choice in one.choices.values())} - {FLOAT}
    found: dict[str, dict[str, float]] = {}
    for one in (one for name, one in built.items() if name in uniform):
        said = estimate(one.candidate.path, system)
        seconds = attribute(model, said.rows, labels, one.choices, said.seconds).seconds
        by_npu, by_cpu = ({layer_of(r.name, labels) for r in said.rows if r.where == where} for where in ("NPU", "CPU"))
        for group, choice in one.choices.items():
            if choice != FLOAT and group not in by_cpu - by_npu:
                found.setdefault(group, {}).setdefault(choice, seconds[group])
    if not found:
        raise UnsupportedError("it leaves every operator to the CPU", remedy="see vela --supported-ops-report")
    return found


def work_of(model: Model, runtime: Runtime, group: Group, choice: str, precision: FloatPrecision) -> Work:
    """What a layer has to do with a choice.

    Args:
        precision: what stays in float is computed and kept in this.
    """
    # weights alone are expanded when the file is loaded, unless they are read by blocks: what runs is a float layer
    chosen = runtime.kernel(group.op, choice)
    kernel = chosen if on_integers(choice) or dynamic(choice) else None
    kept = chosen if runtime.dequantizes_blocks and chosen is not None and chosen.weight_group is not None else kernel
    dtype = precision if kernel is None else kernel.activations.removeprefix("u")
    read = WIDTHS[precision if dynamic(choice) else dtype]
    if kernel is not None and kernel.weights is not None and kernel.weights.removeprefix("u") != dtype:
        dtype = f"{dtype}_{kernel.weights.removeprefix('u')}"
    as_read = kernel is None or kernel.float_ends or writes_integers(model, runtime, group)
    written = read if as_read else WIDTHS[precision]
    weights = WIDTHS[precision] * group.parameters if kept is None else stored_bytes(model, group, kept)
    values = read * sum(elements(model, name) for name in group.inputs) + written * elements(model, group.output)
    if group.op == "reshape" or model.nodes[group.root].target == "operator.getitem":
        values = 0.0  # another view of the same numbers
    return Work(group.macs, dtype, weights, values)


def conversions(
    space: Space, by: Roofline | Energies | None, precision: FloatPrecision
) -> dict[str, dict[Kind, float]]:
    """By tensor and kind, seconds or joules of reading one form and writing the other; 0 where nothing is known."""
    price, runtime = 0.0 if by is None else by.of_byte, space.runtime
    widths = [WIDTHS[k.activations.removeprefix("u")] for k in runtime.kernels if not k.float_ends] or [0.0]
    both = WIDTHS[precision] + widths[0]
    bytes_of: dict[Kind, float] = {"quantize": both, "dequantize": both, "requantize": min(widths) + max(widths)}

    def priced(edge: Edge) -> dict[Kind, float]:
        given = edge.producer is None and runtime.io == "integer"  # a model whose ends are integers is given them
        return {kind: 0.0 if given else edge.elements * moved * price for kind, moved in bytes_of.items()}

    return {edge.tensor: priced(edge) for edge in space.edges}


def table(space: Space, by: Roofline | Energies, precision: FloatPrecision) -> Timing:
    """Everything that a plan can consist of, in seconds or joules; choices that the profile has no figure for are
    absent."""
    model, layers = space.model, dict[str, dict[str, float]]()
    for group in model.groups:
        offered = space.options[group.name]
        priced = {c: by.price(work_of(model, space.runtime, group, c, precision)) for c in offered}
        layers[group.name] = {choice: value for choice, value in priced.items() if value is not None}
    return Timing(layers, conversions(space, by, precision))

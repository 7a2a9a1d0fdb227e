"""Which groups run on integers in a runtime, which tensors that quantizes, and which of them share a scale."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache

from edgeq.calibration.histogram import HALF, Histogram
from edgeq.lowering.float_ends import float_ends_refusal
from edgeq.model.branches import closes_branch, in_branch
from edgeq.model.graph import Node, Program
from edgeq.model.groups import Group, find_groups, only_moves
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, by_axis, conv_groups, is_float, op_class, shape_of
from edgeq.model.shuffled import shuffle_of
from edgeq.registry.schema import Kernel, Runtime

FLOAT = "float32"
"""The choice of a group that is not quantized."""

WIDEST_SHARE = 4.0
"""A tensor joins a shared scale only if that is at most so many times coarser than its own would be."""

MASKING = 1e3
"""What a mask adds to values that are not to count is at least so large: -10000, or the least float there is."""

APART = 64
"""A range that holds the values beside a mask is at most so large a part of one that holds both: what is searched
for ranges ends far above that."""

_TWO_TENSORS = frozenset({"add", "sub", "mul", "matmul"})
_ARITHMETIC = frozenset({"add", "sub", "mul"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "depthwise_conv2d"})
_LAYOUT = frozenset({"reshape", "transpose", "slice"})

Version = tuple[str, str]
"""A graph node, and a type of integers that its value is rounded to."""


@dataclass(frozen=True)
class Assignment:
    """The precision of each group, and what follows for the tensors.

    Attributes:
        kernels: by group name, the integer kernel; groups that read and write float are absent.
        weight_only: by group name, what stores integer weights of a group that stays in float.
        dynamic: by group name, what computes on integers between floats.
        reasons: by group name, why it got what it got.
        tensors: graph nodes whose values are quantized, each with its share, which is named after one of its versions:
            all of them carry one scale and zero point.
        again: the same of what is rounded anew for layers that read another type than the layer before them writes.
        also_float: those of the tensors that are computed in float and that operators in float read as well, as they
            are: only integer groups read them rounded. The sum behind a normalisation loses nothing that way.
        schemes: by share, the kernel that decides its scheme.
    """

    kernels: dict[str, Kernel]
    reasons: dict[str, str]
    tensors: dict[str, Version]
    again: dict[Version, Version]
    also_float: frozenset[str]
    schemes: dict[Version, Kernel]
    weight_only: dict[str, Kernel]
    dynamic: dict[str, Kernel] = field(default_factory=dict)

    def kernel(self, group: str) -> Kernel | None:
        """What a group was given, of any kind; None where it stays in float with its weights."""
        return self.kernels.get(group) or self.weight_only.get(group) or self.dynamic.get(group)

    def choice(self, group: str) -> str:
        """The name of that."""
        kernel = self.kernel(group)
        return FLOAT if kernel is None else kernel.name


def assign(
    model: Model, runtime: Runtime, histograms: dict[str, Histogram], choices: Mapping[str, str] | None = None
) -> Assignment:
    """Gives every group the kernel that was chosen for it, or else the runtime's preferred integer kernel where it has
    one and where integers pay.

    Groups stay in float if the runtime has no integer kernel for them; if they only rearrange or reshape values on
    the way to a float output of the model (an integer there costs accuracy and saves nothing); or if nothing
    in front of them runs on integers. Groups that only move values take the kernel for integers that they are given,
    whichever was chosen.

    Args:
        choices: by group name, the name of a kernel of the runtime, or `float32`.

    A kernel that is only for weights leaves its group in float, and one that is dynamic what is around it.
    """
    choices = choices or {}
    kernels: dict[str, Kernel] = {}
    weight_only: dict[str, Kernel] = {}
    dynamic: dict[str, Kernel] = {}
    reasons: dict[str, str] = {}
    found: dict[str, str | None] = dict.fromkeys(model.input_nodes)  # the type of integers; any at an input
    trailing = model.trailing if runtime.io == "float" else frozenset()
    read = read_by_integers(model, runtime)
    for group in model.groups:
        chosen = choices.get(group.name)
        kernel = runtime.kernel(group.op, chosen)
        if kernel is not None and kernel.float_ends:
            reasons[group.name] = float_ends_refusal(model, group, runtime, kernel)
            if not reasons[group.name]:
                reasons[group.name] = f"the plan chose {kernel.name}: {_between_floats(runtime, kernel)}"
                (weight_only if kernel.weight_only else dynamic)[group.name] = kernel
            continue
        asked = kernel
        if asked is not None:
            kernel = _moving(model, group, runtime, asked, found)
        refusal = _refusal(model, group, runtime, kernel, found.keys(), trailing, histograms)
        if not refusal and _idle(group, read):
            refusal = "nothing behind it runs on integers"
        if chosen == FLOAT:
            refusal = "the plan leaves it in float"
        if refusal or kernel is None:
            reasons[group.name] = refusal
            continue
        kernels[group.name] = kernel
        whole = _activation_kernel(group, runtime, trailing) != "float"
        why = f"the plan chose {kernel.name}" if chosen else f"{runtime.name} has an integer kernel for {group.op}"
        why = why if kernel is asked else f"it moves {kernel.activations} values"
        reasons[group.name] = why + ("" if whole else f"; its {group.activation_op} stays in float")
        found[group.output if whole else group.root] = kernel.activations
    types, schemes, written = _versions(model, runtime, kernels, trailing)
    shares = _shares(model, runtime, kernels, schemes.keys())
    schemes |= {s: schemes[v] for v, s in shares.items() if schemes[v].activation_symmetry == "symmetric"}
    tensors = {node: shares[node, types[node]] for node in sorted(types)}
    again = {version: share for version, share in shares.items() if types[version[0]] != version[1]}
    also_float = _read_in_float(model, kernels, types.keys() - written)
    return Assignment(kernels, reasons, tensors, again, also_float, schemes, weight_only, dynamic)


def _read_in_float(model: Model, kernels: Mapping[str, Kernel], names: Set[str]) -> frozenset[str]:
    """Those values that something else than an integer group reads, and not only their size."""
    by_integers = {(g.root, name) for g in model.groups if g.name in kernels for name in g.inputs}
    return frozenset(
        name
        for name in names
        for user in model.nodes[name].users
        if (user.name, name) not in by_integers and not user.target.startswith("aten.sym_")
    )


def _between_floats(runtime: Runtime, kernel: Kernel) -> str:
    """What a kernel does that reads and writes float, in words."""
    levels = "" if kernel.weight_levels is None else f" among {kernel.weight_levels} levels"
    text = f"{kernel.weights} weights{levels}, "
    text += "computed in float" if kernel.weight_only else "its input rounded in every call"
    if kernel.expanded_at_load:
        text += f"; {runtime.name} expands them when it loads the file, so that they take the time of float weights"
    return text


def _moving(
    model: Model, group: Group, runtime: Runtime, kernel: Kernel, types: Mapping[str, str | None]
) -> Kernel | None:
    """For a group that only moves integers, the kernel for those that it is given; None where the runtime has none."""
    given = {types[name] for name in group.inputs if name in types}
    if not given or None in given or kernel.activations in given or not only_moves(group, model.nodes[group.root]):
        return kernel
    return next((k for k in runtime.kernels if group.op in k.ops and k.activations in given), None)


def writes_integers(model: Model, runtime: Runtime, group: Group) -> bool:
    """Whether an integer kernel of this group would leave integers behind, and not write float at its end."""
    trailing = model.trailing if runtime.io == "float" else frozenset()
    if _writes_float(model, group, runtime, trailing):
        return False
    return _activation_kernel(group, runtime, trailing) != "float"


def _refusal(
    model: Model,
    group: Group,
    runtime: Runtime,
    kernel: Kernel | None,
    integer_nodes: Set[str],
    trailing: Set[str],
    histograms: dict[str, Histogram],
) -> str:
    if kernel is None:
        return f"{runtime.name} has no integer kernel for {group.op}"
    if never := never_on_integers(group, {member: model.nodes[member] for member in group.members}):
        return never
    if group.op == "conv_transpose2d" and runtime.shuffles_transposed and not shuffle_of(model.nodes[group.root]):
        return "its strides differ, or it is dilated: no convolution whose values are shuffled gives the same"
    if computed_wrong(model, group, runtime):
        return f"{runtime.name} gives wrong values for such a convolution on CPUs with AMX"
    if group.op not in WEIGHTED:
        if group.output in trailing:
            return "it only shapes a float output of the model"
        if not any(name in integer_nodes for name in group.inputs):
            return "nothing in front of it runs on integers"
        if any(is_masked(histograms[n]) for n in (*group.inputs, group.output) if n in histograms):
            return "it masks values: no scale holds them and what it adds"
        if group.op == "concat" and group.op in runtime.shared_scale:
            if any(_prescribed(model, name, runtime) for name in group.inputs):
                return "the runtime prescribes the scale of one of its inputs"
            if not _compatible([histograms[n] for n in group.inputs if n in histograms]):
                return "its inputs differ too much in range to share a scale"
    return ""


def computed_wrong(model: Model, group: Group, runtime: Runtime) -> bool:
    """Whether oneDNN's integer kernels for AMX compute a convolution of few channels wrong: one whose kernel has rows
    of a multiple of 64 bytes, or one of groups with strides (see `targets/x86-avx512.toml`)."""
    if not runtime.wrong_convolutions or group.op not in _CONVOLUTIONS:
        return False
    root = model.nodes[group.root]
    outputs, channels, *kernel = shape_of(root.args[1])
    strides, dilations = (by_axis(root, position, 1, len(kernel)) for position in (3, 5))
    row, groups = channels * kernel[-1], conv_groups(root)
    dense = strides[-1] == dilations[-1] == 1 and channels % 4 == 0 and row > 64 and row % 64 == 0
    strided = groups > 1 and max(strides) > 1 and outputs // groups > 32
    return channels < 32 and (dense or strided)


def never_on_integers(group: Group, nodes: Mapping[str, Node]) -> str:
    """Why no runtime computes a group on integers; empty if one might.

    Args:
        nodes: the graph's, by name.
    """
    root = nodes[group.root]
    if group.op in WEIGHTED and group.weight is None:
        return "its weight is computed, not constant"
    if in_branch(root) or closes_branch(root):
        return "a rewrite keeps it in float"
    if group.op == "conv_transpose2d" and conv_groups(root) > 1:
        return "its groups share the scales of their output channels"
    if not is_float(nodes[group.output]) and group.op != "slice":
        return "its values are no float tensor"
    if group.op in _TWO_TENSORS and len(root.all_input_nodes) != len(group.inputs):
        return "one side is a constant"
    if group.op in _TWO_TENSORS - {"mul"} and not all(is_float(side) for side in root.args[:2]):
        return "one side is a constant"
    return "" if group.inputs else "it reads no float tensor"


def is_masked(histogram: Histogram) -> bool:
    """Whether values end in a mask: some are infinite, or all but those at an extreme lie near zero, and nothing in
    between."""
    if histogram.endless:
        return True
    reach = max(-histogram.low, histogram.high)
    if reach < MASKING:
        return False
    bins = min(HALF, int(reach / histogram.width) + 1)
    near = max(1, bins // APART)
    between = slice(near, max(near, bins - near))
    below, above = histogram.counts[:HALF][::-1], histogram.counts[HALF:]
    return not below[between].any() and not above[between].any()


def read_by_integers(model: Model, runtime: Runtime) -> frozenset[str]:
    """Graph nodes whose values a group may read as integers, whatever a plan chooses. What nobody does is better left
    in float: an addition in front of a normalisation gains nothing from integers, and where a few channels are much
    larger than all others, as in transformers, one scale for all of them costs most of the accuracy."""
    able = frozenset(op for kernel in runtime.kernels if not kernel.float_ends for op in kernel.ops)
    return _read_by_integers(model.program, able, frozenset(runtime.fused_activations), runtime.io == "integer")


@lru_cache(maxsize=32)
def _read_by_integers(
    program: Program, able: frozenset[str], fused: frozenset[str], integer_ends: bool
) -> frozenset[str]:
    nodes = {node.name: node for node in program.nodes}
    found = set(program.outputs) if integer_ends else set()
    for group in reversed(find_groups(program)):
        if group.op in able and not never_on_integers(group, nodes) and not _idle(group, found):
            found.update(group.inputs)
        if group.activation_op is not None and group.activation_op in able - fused:
            found.add(group.root)
    return frozenset(found)


def _idle(group: Group, read: Set[str]) -> bool:
    """Whether integers would only be a detour for it: see `read_by_integers`."""
    return group.op in _ARITHMETIC | _LAYOUT and read.isdisjoint(group.members)


def _activation_kernel(group: Group, runtime: Runtime, trailing: Set[str]) -> str:
    """How a group's activation runs: in the `fused` kernel, in an integer kernel of its `own`, or in `float`."""
    if group.activation_op is None or group.activation_op in runtime.fused_activations:
        return "fused"
    own = runtime.kernel(group.activation_op) is not None and group.activation not in trailing
    return "own" if own else "float"


def _prescribed(model: Model, name: str, runtime: Runtime) -> bool:
    node = model.nodes[name]
    return node.op == "call_function" and op_class(node) in {fixed.op for fixed in runtime.fixed_outputs}


def _versions(
    model: Model, runtime: Runtime, kernels: dict[str, Kernel], trailing: Set[str]
) -> tuple[dict[str, str], dict[Version, Kernel], frozenset[str]]:
    """By quantized node, the type that its value has first, and every version of it with the kernel that wants it so:
    what integer groups read and write, and the model's ends where those are integers. Then the nodes that are integers
    as soon as they are there, and not only where they are read.

    A value has the type that its layer writes; one that is computed in float is rounded to the widest type that is
    read. Whoever reads another type, reads it from that. Where one of its readers needs it symmetric, it is.
    """
    written: dict[str, Kernel] = {}
    read: dict[str, dict[str, Kernel]] = {}
    for group in model.groups:
        kernel = kernels.get(group.name)
        if kernel is None:
            continue
        for name in group.inputs:
            others = read.setdefault(name, {})
            if kernel.activations not in others or kernel.activation_symmetry == "symmetric":
                others[kernel.activations] = kernel
        if _writes_float(model, group, runtime, trailing):
            continue
        activation = _activation_kernel(group, runtime, trailing)
        if activation == "own" or (activation == "float" and group.op not in runtime.float_outputs):
            written[group.root] = kernel
        if activation != "float":
            written[group.output] = kernel
    if runtime.io == "integer":  # also where a float operator reads the input or writes the output
        first = runtime.kernels[0]
        for name in (n for n in (*model.input_nodes, *model.output_nodes) if is_float(model.nodes[n])):
            if name not in written and name not in model.program.lifted:  # no constant
                written[name] = _widest(read.get(name, {})) or first
    types: dict[str, str] = {}
    schemes: dict[Version, Kernel] = {}
    for name in dict.fromkeys([*written, *read]):
        readers = read.get(name, {})
        own = written.get(name) or _widest(readers)
        assert own is not None
        types[name] = own.activations
        for kernel in (own, *readers.values()):
            if kernel.activation_symmetry == "symmetric" or (name, kernel.activations) not in schemes:
                schemes[name, kernel.activations] = kernel
    return types, schemes, frozenset(written)


def _widest(readers: Mapping[str, Kernel]) -> Kernel | None:
    return max(readers.values(), key=lambda k: k.activation_scheme.stored_bits, default=None)


def _writes_float(model: Model, group: Group, runtime: Runtime, trailing: Set[str]) -> bool:
    """An integer kernel may write float itself, without a rounding step: the last one before a float output, and one
    whose value is only read in float."""
    if group.op not in runtime.float_outputs or runtime.io != "float":
        return False
    node, read = model.nodes[group.output], read_by_integers(model, runtime)
    return group.output not in read or all(u.op == "output" or u.name in trailing for u in node.users)


def _shares(
    model: Model, runtime: Runtime, kernels: dict[str, Kernel], versions: Collection[Version]
) -> dict[Version, Version]:
    parent = {version: version for version in versions}

    def root(version: Version) -> Version:
        while parent[version] != version:
            version = parent[version]
        return version

    for group in model.groups:
        if group.name not in kernels or group.op not in runtime.shared_scale:
            continue
        dtype = kernels[group.name].activations
        tied = [v for n in (*group.inputs, group.output) if (v := (n, dtype)) in parent]
        for other in tied[1:]:
            a, b = root(tied[0]), root(other)
            parent[max(a, b)] = min(a, b)
    return {version: root(version) for version in sorted(versions)}


def _compatible(histograms: Iterable[Histogram]) -> bool:
    spans = [max(h.high, 0.0) - min(h.low, 0.0) for h in histograms]
    low = [min(h.low, 0.0) for h in histograms]
    high = [max(h.high, 0.0) for h in histograms]
    joint = max(high) - min(low) if spans else 0.0
    return all(joint <= WIDEST_SHARE * max(span, 1e-30) for span in spans)

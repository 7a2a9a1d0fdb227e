"""Brings a program into the one form that later stages read.

After `normalise`: no batch norm behind a convolution or linear, no dropout, no copies, no in-place operators,
no assertions; every convolution and linear has a bias.
"""

from __future__ import annotations

import copy
import operator
import re
from dataclasses import replace

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import Graph, Node

aten = torch.ops.aten

_BATCH_NORM = aten._native_batch_norm_legit_no_training.default
_CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding)
_FOLDABLE = (*_CONVS, aten.conv_transpose2d.input, aten.linear.default)
_IDENTITIES = (aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
               aten.lift_fresh_copy.default, aten.dropout.default)  # fmt: skip
_NO_IDENTIFIER = re.compile(r"\W")
_ASSERTIONS = ("_assert_tensor_metadata", "sym_constrain_range", "_assert_scalar", "_assert_async")


def normalise(program: ExportedProgram) -> ExportedProgram:
    """Functionalizes, folds batch norms, removes what inference does not need.

    Args:
        program: as `torch.export` made it, in evaluation mode.

    Returns:
        A program with the same inputs, outputs and answers (to rounding).
    """
    program = program.run_decompositions({})
    graph = program.graph
    state = dict(program.state_dict)
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}
    editor = _Editor(program, state, targets)

    for node in list(graph.nodes):
        if any(name in str(node.target) for name in _ASSERTIONS):
            graph.erase_node(node)
        elif node.target in _IDENTITIES or _casts_to_itself(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            # without the copies, a view's source need not be contiguous any more
            node.target = aten.reshape.default
    for node in list(graph.nodes):
        if node.target is operator.getitem:
            _slice_instead_of_split(graph, node)
        elif node.target is aten.convolution.default:
            _name_convolution(node)
    editor.own_constants()
    for node in list(graph.nodes):
        if node.target is _BATCH_NORM:
            editor.fold_batch_norm(node)
    for node in list(graph.nodes):
        if node.target in _FOLDABLE:
            editor.give_bias(node)
    graph.eliminate_dead_code()
    return editor.finish()


def _casts_to_itself(node: Node) -> bool:
    if node.target not in (aten.to.dtype, aten._to_copy.default, aten.type_as.default):
        return False
    source = node.args[0]
    same = isinstance(source, Node) and source.meta["val"].dtype == node.meta["val"].dtype
    return same and source.meta["val"].device == node.meta["val"].device  # type: ignore[union-attr]


def _name_convolution(node: Node) -> None:
    """The general convolution becomes the one that it is: 1-d, 2-d or transposed."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
    rank = weight.meta["val"].dim()  # type: ignore[union-attr]
    if transposed and rank == 4:
        node.target = aten.conv_transpose2d.input
        node.args = (x, weight, bias, stride, padding, output_padding, groups, dilation)
    elif not transposed and rank in (3, 4):
        node.target = aten.conv1d.default if rank == 3 else aten.conv2d.default
        node.args = (x, weight, bias, stride, padding, dilation, groups)


def _slice_instead_of_split(graph: Graph, item: Node) -> None:
    """One piece of a split becomes a slice, one of an unbind a select: every node is then a single tensor."""
    source, index = item.args
    if not isinstance(source, Node) or not isinstance(index, int):
        return
    dim = source.args[2] if len(source.args) > 2 else 0
    if source.target in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        sizes = [piece.shape[dim] for piece in source.meta["val"]]
        if not all(isinstance(size, int) for size in sizes):
            return
        start = sum(sizes[:index])
        with graph.inserting_before(item):
            new = graph.call_function(aten.slice.Tensor, (source.args[0], dim, start, start + sizes[index]))
    elif source.target is aten.unbind.int:
        dim = source.args[1] if len(source.args) > 1 else 0
        with graph.inserting_before(item):
            new = graph.call_function(aten.select.int, (source.args[0], dim, index))
    else:
        return
    new.meta = copy.copy(item.meta)
    item.replace_all_uses_with(new)
    graph.erase_node(item)


class _Editor:
    """A program's graph, weights and signature, kept in step while it is edited."""

    def __init__(self, program: ExportedProgram, state: dict[str, torch.Tensor], targets: dict[str, str]) -> None:
        self.program, self.state, self.targets = program, state, targets
        self.specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}

    def value(self, node: object) -> torch.Tensor | None:
        """The constant behind a placeholder, None where the argument is absent or computed."""
        if not isinstance(node, Node) or node.op != "placeholder" or node.name not in self.targets:
            return None
        name = self.targets[node.name]
        held = self.state.get(name)
        constant = self.program.constants.get(name) if held is None else held
        return constant if isinstance(constant, torch.Tensor) else None

    def store(self, name: str, value: torch.Tensor, before: Node) -> Node:
        """Adds a parameter and its placeholder in front of all others."""
        graph = self.program.graph
        first = next(n for n in graph.nodes if n.op == "placeholder")
        with graph.inserting_before(first):
            node: Node = graph.placeholder(f"p_{_NO_IDENTIFIER.sub('_', name)}_folded")
        # in small letters, as its name is: a program that is written to a file comes back with names alone
        node.target = node.name
        fake_mode = before.meta["val"].fake_mode
        node.meta["val"] = fake_mode.from_tensor(value, static_shapes=True)
        node.meta["tensor_meta"] = None
        self.state[name] = torch.nn.Parameter(value, requires_grad=False)
        self.targets[node.name] = name
        self.specs[node.name] = InputSpec(InputKind.PARAMETER, TensorArgument(node.name), name, None)
        return node

    def own_constants(self) -> None:
        """Layers that share a weight or a bias get one each: what is folded into them differs, and so do the scales
        of their inputs, on which their integers depend. Of layers alone the first keeps what they shared."""
        for constant in [n for n in self.program.graph.nodes if n.op == "placeholder" and self.value(n) is not None]:
            layers = [user for user in constant.users if user.target in _FOLDABLE]
            kept = 1 if len(layers) == len(constant.users) else 0
            for count, layer in enumerate(layers[kept:], 2):
                owner, dot, last = self.targets[constant.name].rpartition(".")
                value = self.value(constant)
                assert value is not None
                own = self.store(f"{owner}#{count}.{last}" if dot else f"{last}#{count}", value, layer)
                layer.args = (layer.args[0], *(own if a is constant else a for a in layer.args[1:]))

    def fold_batch_norm(self, norm: Node) -> None:
        """conv -> batch norm becomes conv: w * g / sqrt(v + e) and (b - m) * g / sqrt(v + e) + beta.

        A batch norm that follows nothing foldable, or whose channels are not the layer's (a linear layer on three
        dimensions has its channels last), becomes a multiplication and an addition.
        """
        source, gamma, beta, mean, variance, _, epsilon = norm.args
        m, v = self.value(mean), self.value(variance)
        if m is None or v is None or not isinstance(source, Node):
            return
        g, b = self.value(gamma), self.value(beta)
        factor = (torch.ones_like(v) if g is None else g.detach().double()) / torch.sqrt(v.double() + float(epsilon))  # type: ignore[arg-type]
        shift = (torch.zeros_like(m) if b is None else b.detach().double()) - m.double() * factor
        result = next((u for u in norm.users if u.target is operator.getitem and u.args[1] == 0), None)
        if result is None:
            return
        weight = self.value(source.args[1]) if source.target in _FOLDABLE else None
        if weight is None or len(source.users) != 1 or source.meta["val"].dim() != weight.dim():
            self._spell_out(norm, result, factor.float(), shift.float())
            return
        prefix = self.targets[source.all_input_nodes[1].name].removesuffix(".weight")
        if source.target is aten.conv_transpose2d.input:
            # [inputs, outputs of a group, ...]: each group of inputs has outputs of its own
            groups = _groups(source)
            by_channel = factor.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)
        else:
            by_channel = factor
        old_bias = self.value(source.args[2]) if len(source.args) > 2 else None
        shape = [*by_channel.shape, *[1] * (weight.dim() - by_channel.dim())]
        folded = (weight.double() * by_channel.reshape(shape)).float()
        bias = ((old_bias.double() * factor if old_bias is not None else 0) + shift).float()
        args = list(source.args) + [None] * max(0, 3 - len(source.args))
        args[1] = self.store(f"{prefix}.weight", folded, source)
        args[2] = self.store(f"{prefix}.bias", bias, source)
        source.args = tuple(args)
        result.replace_all_uses_with(source)
        self.program.graph.erase_node(result)
        for user in list(norm.users):
            self.program.graph.erase_node(user)
        self.program.graph.erase_node(norm)

    def give_bias(self, node: Node) -> None:
        """Every weighted operator has a bias: the correction of quantization errors needs a place to go."""
        weight = self.value(node.args[1])
        if weight is None or (len(node.args) > 2 and node.args[2] is not None):
            return
        transposed = node.target is aten.conv_transpose2d.input
        channels = weight.shape[1] * _groups(node) if transposed else weight.shape[0]
        prefix = self.targets[node.all_input_nodes[1].name].removesuffix(".weight")
        name = f"{prefix}.bias" if f"{prefix}.bias" not in self.state else f"{node.name}.bias"
        args = list(node.args) + [None] * max(0, 3 - len(node.args))
        args[2] = self.store(name, torch.zeros(channels), node)
        node.args = tuple(args)

    def _spell_out(self, norm: Node, result: Node, factor: torch.Tensor, shift: torch.Tensor) -> None:
        source = norm.args[0]
        assert isinstance(source, Node)
        shape = [1, -1] + [1] * (source.meta["val"].dim() - 2)
        scale = self.store(f"{norm.name}.scale", factor.reshape(shape), source)
        offset = self.store(f"{norm.name}.offset", shift.reshape(shape), source)
        graph = self.program.graph
        with graph.inserting_before(norm):
            product = graph.call_function(aten.mul.Tensor, (source, scale))
            total = graph.call_function(aten.add.Tensor, (product, offset))
        for new in (product, total):
            new.meta = copy.copy(result.meta)
        result.replace_all_uses_with(total)

    def finish(self) -> ExportedProgram:
        """Drops what nothing uses any more and puts the program together again."""
        graph = self.program.graph
        kept: list[InputSpec] = []
        for node in [n for n in graph.nodes if n.op == "placeholder"]:
            spec = self.specs[node.name]
            if not node.users and spec.kind is not InputKind.USER_INPUT:
                graph.erase_node(node)
            else:
                kept.append(spec)
        used = {spec.target for spec in kept}
        # an output that was folded away goes by the name of what took its place
        (leaving,) = next(n for n in graph.nodes if n.op == "output").args
        outputs = [
            replace(spec, arg=TensorArgument(node.name)) if isinstance(node, Node) else spec
            for node, spec in zip(leaving, self.program.graph_signature.output_specs, strict=True)
        ]
        signature = ExportGraphSignature(kept, outputs)
        graph.lint()
        self.program.graph_module.recompile()
        return ExportedProgram(
            root=self.program.graph_module,
            graph=graph,
            graph_signature=signature,
            state_dict={k: v for k, v in self.state.items() if k in used},
            range_constraints=self.program.range_constraints,
            module_call_graph=self.program.module_call_graph,
            example_inputs=self.program.example_inputs,
            constants={k: v for k, v in self.program.constants.items() if k in used},
            verifiers=[self.program.verifier],
        )


def _groups(convolution: Node) -> int:
    return int(convolution.args[6]) if len(convolution.args) > 6 else 1  # type: ignore[arg-type]

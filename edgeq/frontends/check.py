"""What a program must be to be taken: the trained float32 network at inference, a function of tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.fx import Node

from edgeq.errors import UnsupportedError, UsageError
from edgeq.frontends.examples import DTYPES
from edgeq.frontends.precision import OTHERS
from edgeq.model.passes.state import check_state

_CONTROL_FLOW = {"cond", "while_loop", "scan", "map_impl", "associative_scan"}
# Operators with a flag that says training, and its position among the arguments.
_TRAINING_FLAG = {
    "batch_norm": 5, "native_batch_norm": 5, "_native_batch_norm_legit": 5, "_native_batch_norm_legit_functional": 5,
    "dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "native_dropout": 2,
}  # fmt: skip


def check_program(program: ExportedProgram, where: str) -> None:
    """Refuse what would silently be something else than the trained float32 network at inference.

    Raises:
        UnsupportedError: training mode, state, control flow, inputs or outputs that are no tensors, quantized weights.
        UsageError: a weight is not finite.
    """
    for node in _behind_inputs(program):
        _check_operator(program, node, where)
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.CUSTOM_OBJ:
            raise UnsupportedError(f"it uses a custom object ({spec.target})", remedy="use tensors only", where=where)
        if spec.kind == InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument):
            raise UnsupportedError(
                f"the input {spec.arg.name!r} is not a tensor",
                remedy="wrap the model so that it takes tensors only, and export that",
                where=where,
            )
    check_outputs(program, where)
    check_state(program, where)
    if not program.graph_signature.user_inputs:
        raise UnsupportedError("the network takes no inputs", remedy="export a module that takes tensors", where=where)
    check_weights(program.state_dict, where)
    check_weights(program.constants, where)
    wanted = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            _check_input_type(node.name, node.meta["val"], where)


def check_outputs(program: ExportedProgram, where: str) -> None:
    """Refuse a network that returns sizes or other plain values, or nothing; None counts as nothing.

    Raises:
        UnsupportedError: it does.
    """
    remedy = "return tensors only: wrap the model so that it leaves all else out, and export that"
    given = [spec.arg for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    some = [one for one in given if not (isinstance(one, ConstantArgument) and one.value is None)]
    for number, one in enumerate(some):
        if not isinstance(one, TensorArgument):
            what = repr(one.value) if isinstance(one, ConstantArgument) else f"a size or another number ({one.name})"
            raise UnsupportedError(f"output {number} is {what}, not a tensor", remedy=remedy, where=where)
    if not some:
        raise UnsupportedError("the network returns no tensors", remedy=remedy, where=where)


def check_weights(weights: Mapping[str, Any], where: str) -> None:
    """Refuse weights that are no plain numbers, and those of a training that diverged.

    Raises:
        UnsupportedError: one is quantized, complex, without values, not dense, or no tensor.
        UsageError: one contains NaN or infinity.
    """
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise UnsupportedError(f"{name!r} is a {type(tensor).__name__}", remedy="use tensors only", where=where)
        _check_held(name, tensor, where)
        other_float = tensor.dtype.is_floating_point and tensor.dtype not in (torch.float32, *OTHERS)
        if tensor.is_quantized or tensor.dtype.is_complex or other_float:
            raise UnsupportedError(
                f"the weight {name!r} is {str(tensor.dtype).removeprefix('torch.')}, and the float32 network is wanted",
                remedy="give the network as it was trained, in float32: model.float() before saving",
                where=where,
            )
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()) and not _is_mask(tensor):
            raise UsageError(
                f"the weight {name!r} contains NaN or infinity",
                remedy="give a checkpoint from before the training diverged, or copy the file again",
                where=where,
            )


def _check_held(name: str, tensor: torch.Tensor, where: str) -> None:
    if tensor.is_meta:
        raise UnsupportedError(
            f"the weight {name!r} has no values (it is on the device meta)",
            remedy="load the weights before saving the network",
            where=where,
        )
    if tensor.layout != torch.strided or tensor.is_nested:
        raise UnsupportedError(
            f"the weight {name!r} is not dense ({str(tensor.layout).removeprefix('torch.')})",
            remedy="save it as a dense tensor: weight.to_dense()",
            where=where,
        )


def _check_operator(program: ExportedProgram, node: Node, where: str) -> None:
    if _needs_batch_statistics(node):
        layer = _layer(program, node)
        raise UnsupportedError(
            f"{layer!r} normalises by the batch's own statistics, which cannot be folded or quantized",
            remedy="train and export it with track_running_stats=True",
            where=where,
        )
    if _is_training(node):
        raise UnsupportedError(
            f"the program was exported in training mode ({node.name})",
            remedy="call model.eval() before torch.export.export",
            where=where,
        )
    if str(node.target) in _CONTROL_FLOW:
        raise UnsupportedError(
            f"what the network computes depends on values (torch.{node.target})",
            remedy="export a network whose steps are the same for every input",
            where=where,
        )


def _behind_inputs(program: ExportedProgram) -> list[Node]:
    """The operators whose values hang on an input: what is computed from weights alone is the same in every run,
    also where it is a norm over a batch (standardised weights are written so)."""
    reached = {node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs}
    for node in program.graph.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    return [node for node in program.graph.nodes if node in reached and node.op == "call_function"]


def _operator(node: Node) -> str:
    """The name of an ATen operator, without its overload; empty for what is none."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.removeprefix("aten::").rstrip("_") if schema is not None else ""


def _needs_batch_statistics(node: Node) -> bool:
    """Whether this is a batch norm without running statistics, in its own form or the one after decompositions.

    After decompositions an instance norm is written the same way, over one sample: that one is no different at
    inference.
    """
    if node.target is torch.ops.aten._native_batch_norm_legit.no_stats:
        value = node.args[0].meta["val"]  # type: ignore[union-attr]
        return not (isinstance(value.shape[0], int) and value.shape[0] == 1)
    return _operator(node) in ("batch_norm", "native_batch_norm") and node.args[3] is None


def _is_training(node: Node) -> bool:
    at = _TRAINING_FLAG.get(_operator(node))
    return at is not None and len(node.args) > at and node.args[at] is True


def _layer(program: ExportedProgram, node: Node) -> str:
    """The module path of an operator: where it was traced, or whose weight it has; its own name if neither says."""
    path, _ = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", None))
    weights = {spec.arg.name: spec.target or "" for spec in program.graph_signature.input_specs}
    owners = [weights.get(source.name, "").rpartition(".")[0] for source in node.all_input_nodes]
    return path or next(filter(None, owners), node.name)


def _is_mask(tensor: torch.Tensor) -> bool:
    """Attention masks are constants of 0 and minus infinity."""
    return bool(((tensor == 0) | (tensor == -torch.inf)).all())


def _check_input_type(name: str, value: Any, where: str) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype not in DTYPES.values():
        kind = str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else type(value).__name__
        raise UnsupportedError(
            f"the input {name!r} is {kind}", remedy=f"use one of {', '.join(DTYPES)} for inputs", where=where
        )

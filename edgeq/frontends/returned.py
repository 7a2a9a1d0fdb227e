"""What a program returns: None among it is nothing that an artefact could give, and is left out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, ExportGraphSignature, OutputKind, OutputSpec
from torch.utils import _pytree as pytree


def without_none(program: ExportedProgram) -> ExportedProgram:
    """The program without those outputs that are None. The caller's own is left as it was."""
    specs = program.graph_signature.output_specs
    if not any(map(_is_none, specs)):
        return program
    module = copy.deepcopy(program.graph_module)
    leaving = next(node for node in module.graph.nodes if node.op == "output")
    leaving.args = (tuple(v for v, spec in zip(leaving.args[0], specs, strict=True) if not _is_none(spec)),)
    if "val" in leaving.meta:
        leaving.meta["val"] = tuple(value for value in leaving.meta["val"] if value is not None)
    module.recompile()
    whole, *parts = program.module_call_graph
    if whole.signature is not None and whole.signature.out_spec is not None:
        of_user = [spec for spec in specs if spec.kind is OutputKind.USER_OUTPUT]
        whole = replace(whole, signature=replace(whole.signature, out_spec=_kept(whole.signature.out_spec, of_user)))
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(
            program.graph_signature.input_specs, [spec for spec in specs if not _is_none(spec)]
        ),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=[whole, *parts],
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=[program.verifier],
    )


def _is_none(spec: OutputSpec) -> bool:
    return isinstance(spec.arg, ConstantArgument) and spec.arg.value is None


def _kept(container: pytree.TreeSpec, specs: list[OutputSpec]) -> pytree.TreeSpec:
    """How what is left lies in containers: under the same keys."""

    def without(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {key: without(one) for key, one in tree.items() if one is not None}
        if isinstance(tree, list | tuple):
            return tuple(without(one) for one in tree if one is not None)
        return tree if isinstance(tree, int) else without(pytree.tree_leaves(tree))

    places = [None if _is_none(spec) else place for place, spec in enumerate(specs)]
    return pytree.tree_structure(without(pytree.tree_unflatten(places, container)))

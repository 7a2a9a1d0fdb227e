"""Refuses SavedModels that would do more than compute while they are loaded.

A SavedModel is a program: loading it runs its initializers, and its operators can touch files or call Python. Of those
that keep state those are taken that every such folder has, for its variables, its training and its random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_VARIABLES = frozenset({
    "VarHandleOp", "ReadVariableOp", "AssignVariableOp", "VarIsInitializedOp", "VariableV2", "Variable", "Assign",
    "RestoreV2", "Placeholder", "StatefulPartitionedCall", "PartitionedCall", "NoOp", "DisableCopyOnRead", "If",
    "While", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceGather", "ResourceScatterAdd", "RandomUniform",
    "RandomStandardNormal", "RandomUniformInt", "RandomShuffle", "TruncatedNormal", "Multinomial",
})  # fmt: skip

_WRITING = frozenset({"SaveV2", "MergeV2Checkpoints", "ShardedFilename"})
"""For checkpoints. Every such folder has them; nothing calls them here, unless they run when it is loaded."""

_TOUCHING = frozenset({"ReadFile", "MatchingFiles", "PyFuncStateless", "LoadAllLayersFromFile"})
"""What TensorFlow holds for stateless, and is more than arithmetic."""


def refusal(folder: Path) -> str:
    """What a SavedModel would do; empty where it only computes.

    Raises:
        google.protobuf.message.DecodeError: it is damaged.
    """
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    for meta in model.meta_graphs:
        functions = {one.signature.name for one in meta.graph_def.library.function}
        for node in _nodes(meta.graph_def):
            known = op_def_registry.get(node.op)
            if node.op in functions or node.op in _VARIABLES | _WRITING or node.op.startswith("ResourceApply"):
                continue
            if known is None or known.is_stateful or node.op in _TOUCHING:
                return f"the operator {node.op} ({node.name})"
        written = _WRITING.intersection(_run_at_loading(meta))
        if written:
            return f"{min(written)}, which runs when it is loaded"
        if any(one.HasField("resource") for one in meta.object_graph_def.nodes):
            return "tables or other resources that are filled when it is loaded"
    return ""


def _run_at_loading(meta: Any) -> set[str]:
    """The operators behind what runs then, also within the functions that it calls."""
    keys = ("saved_model_main_op", "legacy_init_op")
    names = [name for key in keys if key in meta.collection_def for name in meta.collection_def[key].node_list.value]
    init = meta.signature_def.get("__saved_model_init_op")
    names += [end.name for end in init.outputs.values()] if init is not None else []
    nodes = {node.name: node for node in meta.graph_def.node}
    functions = {one.signature.name: one.node_def for one in meta.graph_def.library.function}
    pending = [nodes[name] for name in map(_owner, names) if name in nodes]
    found: set[str] = set()
    seen: set[str] = set()
    while pending:
        node = pending.pop()
        found.add(node.op)
        for source in map(_owner, node.input):
            if source in nodes and source not in seen:
                seen.add(source)
                pending.append(nodes[source])
        for name in [node.op, *(value.func.name for value in node.attr.values())]:
            if name in functions and name not in seen:
                seen.add(name)
                pending += functions[name]
    return found


def _owner(name: str) -> str:
    """The node that an input names."""
    return name.removeprefix("^").split(":")[0]


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def

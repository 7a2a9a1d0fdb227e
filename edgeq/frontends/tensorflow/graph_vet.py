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
    "SaveV2", "MergeV2Checkpoints", "ShardedFilename",
})  # fmt: skip
"""The last three write checkpoints, which nothing does here but an initializer: those are refused."""

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
            if node.op in functions or node.op in _VARIABLES or node.op.startswith("ResourceApply"):
                continue
            if known is None or known.is_stateful or node.op in _TOUCHING:
                return f"the operator {node.op} ({node.name})"
        if any(meta.collection_def[key].node_list.value for key in ("saved_model_main_op", "legacy_init_op")
               if key in meta.collection_def):  # fmt: skip
            return "operators that run when it is loaded"
        ends = [end.name for key, one in meta.signature_def.items() if key == "__saved_model_init_op"
                for end in one.outputs.values()]  # fmt: skip
        nodes = {node.name: node for node in meta.graph_def.node}
        for end in ends:
            node = nodes.get(end.split(":")[0])
            if node is None or node.op != "NoOp" or any(name for name in node.input):
                return "operators that run when it is loaded"
        if any(one.HasField("resource") for one in meta.object_graph_def.nodes):
            return "tables or other resources that are filled when it is loaded"
    return ""


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def

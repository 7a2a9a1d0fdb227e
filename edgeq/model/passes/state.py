"""What a network writes to while it runs: no artefact can. It is seen once the program is functional: until then a
write is an operator like any other."""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from edgeq.errors import UnsupportedError
from edgeq.model.passes.editor import Editor

_WRITES = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION, OutputKind.USER_INPUT_MUTATION)


def check_state(program: ExportedProgram, where: str) -> list[str]:
    """What is written to and does not matter: no output depends on what an earlier call left there.

    Raises:
        UnsupportedError: an output does, or an input is written to.
    """
    signature = program.graph_signature
    names = {spec.target: spec.arg.name for spec in signature.input_specs if spec.target}
    read = _read(program)
    forgotten = []
    for spec in signature.output_specs:
        if spec.kind not in _WRITES:
            continue
        if spec.kind is OutputKind.USER_INPUT_MUTATION:
            raise UnsupportedError(
                f"the network writes to its input {spec.target!r}",
                remedy="write to a copy, or give what is written as an output",
                where=where,
            )
        if names.get(spec.target) in read:
            raise UnsupportedError(
                f"the network keeps state between calls (it writes to {spec.target!r})",
                remedy="make the state an input and an output of the model",
                where=where,
            )
        forgotten.append(str(spec.target))
    return forgotten


def leave_out_writes(editor: Editor, where: str) -> tuple[str, ...]:
    """Takes what is written for nobody out of the outputs, and says so.

    Raises:
        UnsupportedError: what is written is read.
    """
    forgotten = check_state(editor.program, where)
    if not forgotten:
        return ()
    leaving = next(node for node in editor.graph.nodes if node.op == "output")
    (values,) = leaving.args
    kept = [pair for pair in zip(values, editor.outputs, strict=True) if pair[1].kind not in _WRITES]
    leaving.args = (tuple(value for value, _ in kept),)
    editor.outputs = [spec for _, spec in kept]
    editor.graph.eliminate_dead_code()
    listed = ", ".join(map(repr, forgotten[:3])) + (f" and {len(forgotten) - 3} more" if len(forgotten) > 3 else "")
    return (f"the network writes to {listed}, on which no output depends: that is left out",)


def _read(program: ExportedProgram) -> set[str]:
    """The inputs, parameters and buffers that an output for the user depends on."""
    leaving = next(node for node in program.graph.nodes if node.op == "output")
    specs = program.graph_signature.output_specs
    pending = [
        value
        for value, spec in zip(leaving.args[0], specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(value, Node)
    ]
    seen: set[Node] = set(pending)
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return {node.name for node in seen}

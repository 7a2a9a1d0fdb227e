"""Brings a program into the one form that later stages read.

After `normalise`: nothing is computed from constants alone, no batch norm behind a convolution or linear, no dropout,
no copies, no in-place operators, no assertions, nothing that is computed twice, nothing that rounds; a product with a
constant matrix is a linear layer; every convolution and linear has a bias.
"""

from __future__ import annotations

from torch.export import ExportedProgram

from edgeq.errors import UnsupportedError
from edgeq.model.grids import Grids
from edgeq.model.passes.attention import give_heads
from edgeq.model.passes.batch_norm import fold_batch_norms
from edgeq.model.passes.constants import fold_constants
from edgeq.model.passes.convolutions import name_convolutions
from edgeq.model.passes.editor import Editor
from edgeq.model.passes.einsum import spell_out_einsum
from edgeq.model.passes.grids import take_grids, take_weights
from edgeq.model.passes.layers import give_biases, own_constants
from edgeq.model.passes.pieces import slice_pieces
from edgeq.model.passes.products import name_linears
from edgeq.model.passes.repeated import merge_repeated
from edgeq.model.passes.state import leave_out_writes
from edgeq.model.passes.tidy import tidy
from edgeq.model.refusals import gist


def normalise(program: ExportedProgram, where: str = "") -> tuple[ExportedProgram, tuple[str, ...], Grids | None]:
    """Functionalizes, computes what is constant, folds batch norms, removes what inference does not need.

    Args:
        program: as `torch.export` made it, in evaluation mode.
        where: the model, for messages.

    Returns:
        A program with the same inputs, outputs and answers (to rounding), notes on what was left out, and the grids
        that it was rounded to; None if it was not.

    Raises:
        UnsupportedError: it keeps state between calls, writes to its inputs, or has sizes that depend on values.
    """
    editor = Editor(_functional(program, where))
    notes = leave_out_writes(editor, where)
    tidy(editor)
    weights = take_weights(editor)
    for step in (
        slice_pieces,
        name_convolutions,
        give_heads,
        name_linears,
        fold_constants,
        merge_repeated,
        own_constants,
        fold_batch_norms,
        give_biases,
    ):
        step(editor)
    grids = take_grids(editor, weights, where)
    return editor.finish(), notes, grids


def _functional(program: ExportedProgram, where: str) -> ExportedProgram:
    try:
        functional: ExportedProgram = program.run_decompositions(spell_out_einsum())
    except Exception as error:
        raise UnsupportedError(
            f"the program cannot be brought into functional form ({gist(error)})",
            remedy="make its sizes and its steps the same for every input",
            where=where,
        ) from error
    return functional

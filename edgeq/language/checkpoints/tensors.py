"""The tensors of a checkpoint, one at a time, held against what its format says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import torch

REMEDY = "copy the checkpoint's files from their origin again"


class Tensors:
    """All tensors of safetensors files, by name. None is read before it is asked for.

    Raises:
        UsageError: a file is damaged.
        MissingExtraError: safetensors is not installed.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise MissingExtraError("safetensors", "language") from error
        self._of: dict[str, Any] = {}
        for file in files:
            try:
                opened: Any = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UsageError(f"it cannot be read ({error})", where=str(file), remedy=REMEDY) from error
            self._of |= dict.fromkeys(opened.keys(), opened)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._of)

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def tensor(self, name: str) -> torch.Tensor:
        """As the file has it.

        Raises:
            UsageError: it is not there.
        """
        if name not in self._of:
            raise UsageError("this tensor is missing", where=name, remedy=REMEDY)
        found: torch.Tensor = self._of[name].get_tensor(name)
        return found

    def integers(self, name: str, kind: str, rank: int | None = None) -> NDArray[Any]:
        """A tensor of whole numbers.

        Args:
            kind: their type, such as `int32`.

        Raises:
            UsageError: it is not there, of another type, or of another rank.
        """
        found = self.tensor(name)
        if str(found.dtype) != f"torch.{kind}" or (rank is not None and found.ndim != rank):
            cause = f"it is {found.dtype} {list(found.shape)}, where {kind} of rank {rank} is due".replace("torch.", "")
            raise UsageError(cause, where=name, remedy=REMEDY)
        return found.numpy()

    def floats(self, name: str, rank: int | None = None) -> NDArray[np.float32]:
        """A tensor of real numbers, in float32.

        Raises:
            UsageError: it is not there, of another kind or rank, or holds what is not finite.
        """
        found = self.tensor(name)
        if not found.is_floating_point() or (rank is not None and found.ndim != rank):
            cause = f"it is {found.dtype} {list(found.shape)}, where floats are due".replace("torch.", "")
            raise UsageError(cause, where=name, remedy=REMEDY)
        wide = found.float().numpy()
        if not np.isfinite(wide).all():
            raise UsageError("a value is not finite", where=name, remedy=REMEDY)
        return wide


def same_shape(name: str, found: Sequence[int], due: Sequence[int]) -> None:
    """Holds a shape against what the other tensors of a layer say.

    Raises:
        UsageError: it is another one.
    """
    if tuple(found) != tuple(due):
        raise UsageError(f"it is {list(found)}, where {list(due)} is due", where=name, remedy=REMEDY)


def from_words(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Numbers of a few bits out of words of 32, the first in the lowest bits, along the first axis.

    Args:
        words: [words, columns].

    Returns:
        uint8 [words * 32 // bits, columns].
    """
    plain = np.ascontiguousarray(words).view(np.uint32)
    if 32 % bits == 0:
        places = np.arange(0, 32, bits, dtype=np.uint32)[None, :, None]
        found = (plain[:, None, :] >> places) & np.uint32((1 << bits) - 1)
        return np.asarray(found, np.uint8).reshape(-1, plain.shape[1])
    # some lie across two words
    stream = np.unpackbits(np.ascontiguousarray(plain.T).view(np.uint8), axis=1, bitorder="little")
    count = stream.shape[1] // bits
    each = stream[:, : count * bits].reshape(len(stream), count, bits)
    numbers = (each << np.arange(bits, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)
    return np.ascontiguousarray(numbers.T)

"""What was made of a file is held against the file itself, in its own runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.child import last_words, run_module
from edgeq.errors import UnsupportedError
from edgeq.files import scratch_folder
from edgeq.frontends.interpreted import Network

NEAR = 1e-3
"""How far answers may lie apart, in parts of the largest of them: float32 in another order."""

NEAR_ROUNDED = 0.5
"""The same where values are rounded on their way: root mean square, in parts of the answers'. Ties fall otherwise in
integer arithmetic, and add up from layer to layer; the answers of another network are one part away or more."""

_SECONDS = 600


class Original(NamedTuple):
    """A runtime that answers for a file, in a process of its own, since a damaged file may crash it.

    Attributes:
        name: for people.
        module: of this package: run with a file, an `.npz` of inputs `RUN/PLACE`, and where its outputs `RUN/PLACE` go.
    """

    name: str
    module: str


def compare(
    original: Original, path: Path, network: Network, tensors: tuple[torch.Tensor, ...], *, rounds: bool
) -> None:
    """Two draws of noise through both, as large as the inputs given, or around 1 where these are zeros.

    Integers stay what they are, since they may be indices. Zeros tell little: a norm of them is rounding alone.

    Args:
        tensors: inputs of the sizes and types that it takes.
        rounds: whether the file rounds what flows.

    Raises:
        UnsupportedError: the runtime cannot run the file, or answers otherwise.
    """
    generator = np.random.default_rng(0)
    runs = [
        [
            np.asarray(generator.standard_normal(one.shape, np.float32) * np.float32(float(one.abs().max()) or 1))
            if one.dtype == torch.float32
            else one.numpy()
            for one in tensors
        ]
        for _ in range(2)
    ]
    wanted = _asked(original, path, runs)
    for number, run in enumerate(runs):
        with torch.no_grad():
            found = network(*(torch.from_numpy(value) for value in run))
        for place, one in enumerate(found):
            if not _alike(one.numpy(), wanted[f"{number}/{place}"], rounds):
                raise UnsupportedError(
                    f"what was made of it answers otherwise than {original.name} does on the file "
                    f"(output number {place})",
                    where=path.name,
                    remedy="give the program of torch.export, and tell edgeq's developers about this file",
                )


def _asked(original: Original, path: Path, runs: list[list[NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    with scratch_folder() as folder:
        fed = {f"{number}/{place}": value for number, run in enumerate(runs) for place, value in enumerate(run)}
        np.savez(folder / "inputs.npz", allow_pickle=False, **fed)
        files = str(path.resolve()), str(folder / "inputs.npz"), str(folder / "outputs.npz")
        done = run_module(original.module, *files, timeout=_SECONDS)
        if done.returncode:
            raise UnsupportedError(
                f"{original.name} cannot run it ({last_words(done)})", where=path.name, remedy="check the file with it"
            )
        with np.load(folder / "outputs.npz") as data:
            return {key: data[key] for key in data.files}


def _alike(found: NDArray[Any], wanted: NDArray[Any], rounds: bool) -> bool:
    if found.shape != wanted.shape:
        return False
    if not wanted.size:
        return True
    if wanted.dtype.kind != "f":
        return float((found != wanted).mean()) <= (0.05 if rounds else 0.01)
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    apart, size = np.abs(a - b)[finite], np.abs(b)[finite]
    if not apart.size:
        return True
    if rounds:
        return bool(np.sqrt((apart**2).mean()) <= NEAR_ROUNDED * np.sqrt((size**2).mean()) + 1e-6)
    return bool(apart.max() <= NEAR * size.max() + 1e-5)

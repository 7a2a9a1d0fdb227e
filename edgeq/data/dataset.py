"""Samples as a model takes them: stacked arrays with their labels, hashes and origin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from edgeq.data.place import Place
from edgeq.data.unread import Unread
from edgeq.visible import whole


def overlap(a: Dataset, b: Dataset) -> int:
    """How many samples of `b` are, byte for byte, also in `a`."""
    known = set(a.sample_hashes)
    return sum(digest in known for digest in b.sample_hashes)


def make_dataset(
    inputs: Mapping[str, np.ndarray],
    specs: Sequence[InputSpec],
    *,
    labels: np.ndarray | None,
    source: str,
    notes: Sequence[str] = (),
    places: Mapping[str, Place] | None = None,
    recipe: str = "",
    group: int = 1,
) -> Dataset:
    """Hash checked arrays and put them together. Arrays are stacked `[N, ...]`, one for each of `specs`.

    Args:
        places: by input name, the file that holds just this array.
        recipe: how edgeq made them itself.
        group: so many in a row belong together.
    """
    places = dict(places or {})
    digest = hashlib.sha256()
    for spec in specs:
        array = inputs[spec.name]
        digest.update(f"{spec.name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(places[spec.name].sha256 if spec.name in places else _digest(array))
    if labels is not None:
        digest.update(b"labels\0" + np.ascontiguousarray(labels).tobytes())
    if group > 1:
        digest.update(f"group\0{group}".encode())
    return Dataset(
        inputs={spec.name: inputs[spec.name] for spec in specs},
        labels=labels,
        source=whole(source),
        sha256=digest.hexdigest(),
        specs=tuple(specs),
        notes=tuple(notes),
        places=places,
        recipe=recipe,
        group=group,
    )


def show_shape(shape: Sequence[int | None]) -> str:
    """A shape for people: `[N, 3, 224, 224]` where the first axis is free, `?` for other free axes."""
    free = ["N", *["?"] * len(shape)]
    return "[" + ", ".join(free[i] if size is None else str(size) for i, size in enumerate(shape)) + "]"


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).data).digest()


def _sample_digests(arrays: Sequence[np.ndarray]) -> tuple[bytes, ...]:
    digests = []
    for index in range(len(arrays[0])):
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array[index]).data)
        digests.append(digest.digest())
    return tuple(digests)


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: the name of the argument.
        shape: the shape of one call; None where any size goes.
        dtype: numpy's name of the element type, such as `float32` or `int64`.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    @property
    def batched(self) -> bool:
        """Whether the first axis counts samples: it is free, or 1. Otherwise a sample is a whole input."""
        return bool(self.shape) and self.shape[0] in (None, 1)

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        """The shape of one sample, without the batch axis."""
        return self.shape[1:] if self.batched else self.shape

    def __str__(self) -> str:
        return f"{self.name} {show_shape(self.shape)} {self.dtype}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Checked samples, ready to be fed to the model.

    Attributes:
        inputs: for each input of the model, in its order, an array `[N, ...]` of the model's type; the trailing axes
            are `InputSpec.sample_shape`. It may be read from its file when it is asked for.
        labels: class indices `[N]`, int64; boxes (see `edgeq.data.boxes`); what a metric takes, `[N, ...]`; or None.
        source: where the samples came from, for people.
        sha256: over names, types, shapes, values and labels; the file format does not enter.
        specs: the inputs that the arrays were checked against.
        notes: what was assumed or converted, for the caller to show.
        places: by input name, the file that holds just this array, where there is one.
        recipe: how edgeq made the samples itself, and can again; empty for samples that were given.
        group: so many samples in a row are judged together, as the two texts of a pair; all of them are taken, or none.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    source: str
    sha256: str
    specs: tuple[InputSpec, ...]
    notes: tuple[str, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict)
    recipe: str = ""
    group: int = 1

    def __len__(self) -> int:
        name = self.specs[0].name
        return self.places[name].shape[0] if name in self.places else len(self.inputs[name])

    def first(self, count: int) -> dict[str, np.ndarray]:
        """So many samples of each input, `[count, ...]`; no others are read."""
        if isinstance(self.inputs, Unread):
            return {name: self.inputs.first(name, count) for name in self.inputs}
        return {name: array[:count] for name, array in self.inputs.items()}

    @cached_property
    def sample_hashes(self) -> tuple[bytes, ...]:
        """One SHA-256 digest a sample, over the values of all inputs."""
        return _sample_digests([self.inputs[spec.name] for spec in self.specs])

    def sample(self, index: int) -> tuple[np.ndarray, ...]:
        """One call's inputs, in the model's order, each with a batch axis of 1 where the model has one."""
        return tuple(
            self.inputs[spec.name][index : index + 1] if spec.batched else self.inputs[spec.name][index]
            for spec in self.specs
        )

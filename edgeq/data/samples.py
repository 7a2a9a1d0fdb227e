"""Samples from a Python function of the user's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from edgeq.data.check import fit, fit_labels
from edgeq.data.dataset import Dataset, InputSpec, make_dataset
from edgeq.data.function import call, failed
from edgeq.errors import UsageError


def load_samples(
    reference: str,
    specs: Sequence[InputSpec],
    *,
    role: Literal["calibration", "evaluation"],
    limit: int | None,
    notes: list[str],
) -> Dataset:
    """Call `package.module:function`, with `limit` if it takes that, and collect the samples that it yields.

    A sample is an array (one input), a tuple of arrays in the model's order, or a dict by input name; or any of these
    with an integer label, `(inputs, label)`. Tensors go where arrays go. A sample may carry a batch axis of 1.

    Raises:
        UsageError: the function cannot be found, fails, or yields what does not fit the model.
    """
    produced = call(reference, reference, limit=limit)
    if not isinstance(produced, Iterable):
        raise UsageError(
            f"it returned a {type(produced).__name__}, which yields no samples",
            remedy="return a list or a generator of samples",
            where=reference,
        )
    columns = [_Column(limit) for _ in specs]
    labels: list[int | None] = []
    iterator = enumerate(itertools.islice(produced, limit))
    while True:
        try:
            index, sample = next(iterator)
        except StopIteration:
            break
        except Exception as error:
            raise failed(reference, reference, error) from error
        where = f"{reference}, sample {index}"
        values, label = _split(sample, specs, where)
        labels.append(label)
        for column, spec, value in zip(columns, specs, values, strict=True):
            column.append(_one(value, spec, where), spec.name, where)
    if not labels:
        raise UsageError("it yielded no samples", remedy="yield at least one sample", where=reference)
    arrays = {spec.name: column.stacked() for spec, column in zip(specs, columns, strict=True)}
    fitted, _ = fit(arrays, specs, limit=None, where=reference, notes=notes)
    return make_dataset(fitted, specs, labels=_labels(labels, role, reference), source=reference, notes=notes)


def _split(sample: Any, specs: Sequence[InputSpec], where: str) -> tuple[list[np.ndarray], int | None]:
    label = None
    pair = isinstance(sample, (tuple, list)) and len(sample) == 2 and _is_label(sample[1])
    # Where the model takes two inputs, (a, 3) may be both of them: a label then comes after a tuple or a dict.
    if pair and (len(specs) == 1 or isinstance(sample[0], (tuple, list, Mapping))):
        sample, label = sample[0], int(sample[1])
    names = [spec.name for spec in specs]
    if isinstance(sample, Mapping):
        missing = [name for name in names if name not in sample]
        if missing:
            raise UsageError(
                f"no input {missing[0]!r}; the model takes {', '.join(names)}, it has {', '.join(map(str, sample))}",
                remedy="use the model's names as keys",
                where=where,
            )
        values = [sample[name] for name in names]
    elif isinstance(sample, (tuple, list)):
        values = list(sample)
    else:
        values = [sample]
    if len(values) != len(names):
        raise UsageError(
            f"{len(values)} arrays, and the model takes {len(names)} ({', '.join(names)})",
            remedy="yield one array for each input",
            where=where,
        )
    arrays = [np.asarray(value.detach().cpu()) if hasattr(value, "detach") else value for value in values]
    for name, value in zip(names, arrays, strict=True):
        if not isinstance(value, np.ndarray):
            raise UsageError(
                f"{name!r} is a {type(value).__name__}, not an array",
                remedy="yield NumPy arrays or tensors",
                where=where,
            )
    return arrays, label


def _is_label(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, np.integer)):
        return True
    return getattr(value, "ndim", None) == 0 and np.asarray(value).dtype.kind in "iu"


def _one(value: np.ndarray, spec: InputSpec, where: str) -> np.ndarray:
    """A sample without its batch axis."""
    if spec.batched and value.ndim == len(spec.shape):
        if len(value) != 1:
            raise UsageError(
                f"{spec.name!r} is a batch of {len(value)}", remedy="yield one sample at a time", where=where
            )
        return np.asarray(value[0])
    return value


def _labels(labels: list[int | None], role: str, where: str) -> np.ndarray | None:
    if role != "evaluation" or all(label is None for label in labels):
        return None
    if None in labels:
        raise UsageError(
            f"sample {labels.index(None)} has no label and others have",
            remedy="yield (inputs, label) for every sample, or for none",
            where=where,
        )
    return fit_labels(np.array(labels), len(labels), where=where)


class _Column:
    """A stack of equal samples that grows by doubling: no list of arrays beside the final array."""

    def __init__(self, expected: int | None) -> None:
        self._room = expected or 64
        self._array: np.ndarray | None = None
        self._count = 0

    def append(self, value: np.ndarray, name: str, where: str) -> None:
        if self._array is None:
            self._array = np.empty((self._room, *value.shape), value.dtype)
        if value.shape != self._array.shape[1:] or value.dtype != self._array.dtype:
            raise UsageError(
                f"{name!r} is {list(value.shape)} {value.dtype}, and in the samples before "
                f"{list(self._array.shape[1:])} {self._array.dtype}",
                remedy="yield samples of one shape and type",
                where=where,
            )
        if self._count == len(self._array):
            larger = np.empty((2 * self._count, *value.shape), value.dtype)
            larger[: self._count] = self._array
            self._array = larger
        self._array[self._count] = value
        self._count += 1

    def stacked(self) -> np.ndarray:
        assert self._array is not None
        return self._array[: self._count]

"""Whether arrays fit a model: names, shapes, types, finite values, labels. Every refusal says where and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeq.data.dataset import InputSpec, show_shape
from edgeq.errors import UsageError

_BLOCK = 64  # samples looked at in one go: keeps temporaries small beside arrays of hundreds of megabytes


def fit(
    arrays: Mapping[str, np.ndarray],
    specs: Sequence[InputSpec],
    *,
    limit: int | None,
    where: str,
    notes: list[str],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Check stacked arrays against the model's inputs and convert them where that loses nothing.

    Args:
        arrays: by input name, `[N, ...]`; exactly the inputs in `specs`.
        specs: what the model takes.
        limit: keep so many samples, evenly spread over the file, since files are often sorted by class.
        where: the file or folder, for messages.
        notes: receives a line for each conversion.

    Returns:
        The arrays, and the indices of the samples that were kept.

    Raises:
        UsageError: an array does not fit; the message names it, and the sample where one is to blame.
    """
    shaped = {spec.name: _fit_shape(arrays[spec.name], spec, f"{where}: {spec.name!r}", notes) for spec in specs}
    counts = {name: len(array) for name, array in shaped.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise UsageError(
            f"the inputs have different numbers of samples ({listed})",
            remedy="give every input the same number of samples along its first axis",
            where=where,
        )
    total = next(iter(counts.values()))
    if not total:
        raise UsageError("it holds no samples", remedy="give at least one sample", where=where)
    kept = spread(total, limit)
    fitted = {}
    for spec in specs:
        at = f"{where}: {spec.name!r}"
        array = shaped[spec.name] if len(kept) == total else shaped[spec.name][kept]
        array = _fit_dtype(array, spec, at, kept, notes)
        _check_finite(array, at, kept)
        fitted[spec.name] = np.ascontiguousarray(array)
    return fitted, kept


def spread(total: int, limit: int | None) -> np.ndarray:
    """Indices of at most `limit` of `total` samples, evenly spread and in order."""
    if limit is None or limit >= total:
        return np.arange(total)
    return np.arange(limit) * total // limit


def fit_labels(labels: np.ndarray, count: int, *, where: str) -> np.ndarray:
    """Numbers, [count, ...]; integers as int64. What they have to be is up to what judges by them: class indices where
    that is top-1 (see `edgeq.evaluation.accuracy.check_labels`).

    Raises:
        UsageError: not one entry for each sample, or no numbers.
    """
    remedy = f"give one class index for each sample, an integer array of shape [{count}], or what your metric takes"
    if labels.dtype.kind not in "iuf":
        raise UsageError(f"labels are {labels.dtype}, not numbers", remedy=remedy, where=where)
    if labels.ndim == 0 or len(labels) != count:
        raise UsageError(
            f"labels have shape {show_shape(labels.shape)} for {count} samples", remedy=remedy, where=where
        )
    return labels if labels.dtype.kind == "f" else labels.astype(np.int64)


def _fit_shape(array: np.ndarray, spec: InputSpec, at: str, notes: list[str]) -> np.ndarray:
    wanted = spec.sample_shape
    if array.ndim == len(wanted) + 1 and _matches(array.shape[1:], wanted):
        return array
    if spec.batched and array.ndim == len(wanted) + 2 and array.shape[1] == 1 and _matches(array.shape[2:], wanted):
        notes.append(f"{at}: the batch axis of length 1 in each sample was dropped")
        return array[:, 0]
    raise UsageError(
        f"shape {show_shape(array.shape)} does not fit the model's {show_shape((None, *wanted))} (N samples)",
        remedy=_shape_remedy(array, wanted),
        where=at,
    )


def _shape_remedy(array: np.ndarray, wanted: tuple[int | None, ...]) -> str:
    if _matches(array.shape, wanted):
        return "this is one sample: add a leading axis, array[None]"
    got = array.shape[1:]
    if len(got) == 3 and len(wanted) == 3:
        if _matches((got[2], got[0], got[1]), wanted):
            return "the channels are last and the model wants them first: array.transpose(0, 3, 1, 2)"
        if _matches((got[1], got[2], got[0]), wanted):
            return "the channels are first and the model wants them last: array.transpose(0, 2, 3, 1)"
    if len(wanted) == 3 and wanted[0] == 1 and _matches(got, wanted[1:]):
        return "the channel axis is missing: array[:, None]"
    if len(got) == len(wanted):
        return "prepare the samples at the model's size, or export the model at theirs"
    return "stack the samples along a new first axis: np.stack(samples)"


def _fit_dtype(array: np.ndarray, spec: InputSpec, at: str, kept: np.ndarray, notes: list[str]) -> np.ndarray:
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    kinds = array.dtype.kind, wanted.kind
    if kinds == ("f", "f"):
        return _fit_float(array, wanted, at, kept, notes)
    if kinds[0] in "iu" and kinds[1] in "iu":
        return _fit_integer(array, wanted, at, notes)
    if array.dtype == np.uint8 and wanted.kind == "f":
        remedy = (
            "these look like raw pixels: normalise them as in training, or give a folder of images and --preprocess"
        )
    elif wanted.kind == "f":
        remedy = f"prepare the values as in training and save them as {wanted}"
    else:
        remedy = f"save the values as {wanted}"
    raise UsageError(f"the values are {array.dtype} and the model takes {wanted}", remedy=remedy, where=at)


def _fit_float(array: np.ndarray, wanted: np.dtype, at: str, kept: np.ndarray, notes: list[str]) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    lost = _first_not_finite(cast)
    if lost is not None and np.isfinite(array[lost]).all():
        raise UsageError(
            f"sample {kept[lost]} has {array.dtype} values beyond the range of {wanted}",
            remedy=f"scale the values and save them as {wanted}",
            where=at,
        )
    notes.append(f"{at}: converted from {array.dtype} to {wanted}")
    return cast


def _fit_integer(array: np.ndarray, wanted: np.dtype, at: str, notes: list[str]) -> np.ndarray:
    limits = np.iinfo(wanted)
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise UsageError(
            f"values from {array.min()} to {array.max()} do not fit the model's {wanted}",
            remedy=f"save values that fit {wanted}",
            where=at,
        )
    notes.append(f"{at}: converted from {array.dtype} to {wanted}")
    return array.astype(wanted)


def _check_finite(array: np.ndarray, at: str, kept: np.ndarray) -> None:
    bad = _first_not_finite(array) if array.dtype.kind == "f" else None
    if bad is not None:
        kind = "NaN" if np.isnan(array[bad]).any() else "infinity"
        raise UsageError(
            f"sample {kept[bad]} contains {kind}", remedy="remove the sample, or mend the step that made it", where=at
        )


def _first_not_finite(array: np.ndarray) -> int | None:
    for start in range(0, len(array), _BLOCK):
        block = array[start : start + _BLOCK]
        if not np.isfinite(block).all():
            return start + next(i for i, sample in enumerate(block) if not np.isfinite(sample).all())
    return None


def _matches(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True))

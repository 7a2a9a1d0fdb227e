"""COCO's mean average precision, by pycocotools."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.data.function import resolve
from edgeq.data.load import names_function
from edgeq.errors import MissingExtraError, UsageError
from edgeq.evaluation.detection.detector import read_detector
from edgeq.evaluation.detection.suppression import MOST_BOXES, Found
from edgeq.evaluation.metric import Metric

Array = NDArray[Any]
_OVERLAPS = {"mAP": np.linspace(0.5, 0.95, 10), "mAP50": np.array([0.5])}
_ANY_AREA = [0.0, 1e10]
_FARTHEST = 2.0
"""Of a number of a box: beyond it, it is in pixels."""


def coco(spec: str) -> Metric:
    """The mean average precision of a detector, in percent.

    Args:
        spec: the TOML file that says how its outputs become boxes (see `edgeq.evaluation.detection.detector`); or
            `package.module:function` that does it: from the outputs for one image to rows [K, 6], left, top, right,
            bottom in parts of the image, score and class. It may carry the attribute `score`, `mAP` or `mAP50`.

    Raises:
        UsageError: there is no such file or function.
        MissingExtraError: pycocotools is not installed.
    """
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pycocotools", "coco") from error
    if names_function(spec):
        function = resolve(spec, "--metric")
        settings = ""
        with contextlib.suppress(TypeError, OSError):  # some callables have no source
            settings = hashlib.sha256(Path(inspect.getsourcefile(function) or "").read_bytes()).hexdigest()
        return _metric(partial(_by_function, function), str(getattr(function, "score", "mAP")), settings)
    if not spec:
        raise UsageError(
            "nothing says how the outputs become boxes",
            remedy="write --metric coco:detector.toml, or coco:package.module:function; see docs/metrics.md",
            where="--metric coco",
        )
    path = Path(spec)
    detector, settings = read_detector(path)
    return _metric(partial(detector.detect, folder=path.parent), detector.score, settings)


def _metric(detect: Callable[[Sequence[Array]], Found], score: str, settings: str) -> Metric:
    if score not in _OVERLAPS:
        raise UsageError(f"{score!r} is no score of detectors", remedy=f"one of {', '.join(_OVERLAPS)}")
    return Metric(
        score,
        average_precision,
        unit="%",
        prepare=partial(_matched, detect, _OVERLAPS[score]),
        check=_boxes,
        nothing=0.0,
        settings=settings,
    )


def _by_function(function: Callable[..., Any], outputs: Sequence[Array]) -> Found:
    rows = np.asarray(function(*outputs), np.float64)
    if rows.size and (rows.ndim != 2 or rows.shape[1] != 6):
        raise ValueError(f"the function gave an array {list(rows.shape)}, and has to give [K, 6]")
    rows = rows.reshape(-1, 6)
    return Found(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))


def _matched(
    detect: Callable[[Sequence[Array]], Found], overlaps: Array, outputs: Sequence[Any], labels: Array | None
) -> list[list[Any]]:
    """For each image, what pycocotools says of each class that is labelled anywhere: which boxes were right."""
    truth = _boxes(labels)
    if len(truth) != len(outputs):
        raise UsageError(f"there are labels of {len(truth)} images, and {len(outputs)} images", where="--eval")
    found = [_detected(detect, place, one if isinstance(one, tuple) else (one,)) for place, one in enumerate(outputs)]
    kinds = next((one.kinds for one in found if one.kinds is not None), None)
    classes = sorted({int(label) for boxes in truth for label in boxes[:, 0]})
    if kinds is not None and classes[-1] >= kinds:
        raise UsageError(
            f"the labels name a class {classes[-1]}, and the head has {kinds} classes, from 0",
            remedy="number the classes as the network does, or correct the head",
            where="--eval",
        )
    wanted = [_annotation(i, *_row(box)) for i, boxes in enumerate(truth) for box in boxes]
    given = [
        _annotation(i, label, [*corners[:2], *(corners[2:] - corners[:2])], 0, score)
        for i, boxes in enumerate(found)
        for corners, score, label in zip(boxes.corners, boxes.scores, boxes.classes, strict=True)
        if np.isfinite(corners).all()
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        run = _evaluator(classes, len(outputs), overlaps, _index(wanted, classes, len(outputs)))
        run.cocoDt = _index(given, classes, len(outputs))
        run.evaluate()
    rows = np.array(run.evalImgs, object).reshape(len(classes), len(outputs))
    return [list(rows[:, i]) for i in range(len(outputs))]


def _detected(detect: Callable[[Sequence[Array]], Found], place: int, outputs: Sequence[Array]) -> Found:
    try:
        return detect(outputs)
    except (ValueError, IndexError, TypeError, AttributeError, OSError) as error:
        raise UsageError(
            f"the outputs for image {place} are not those of this head: {error}",
            where="--metric coco",
            remedy=f"they are {', '.join(str(list(one.shape)) for one in outputs)}; docs/metrics.md lists the heads",
        ) from error


def average_precision(matched: Sequence[Sequence[Any]], labels: Array | None) -> float:
    """Mean average precision in percent, over classes and over the overlaps that images were matched at.

    Source: Lin et al. 2014, Microsoft COCO, and its evaluation: 101 points of recall, 100 boxes an image, all areas.
    """
    count = len(matched[0])
    overlaps = next((one["dtMatches"].shape[0] for image in matched for one in image if one is not None), 0)
    with contextlib.redirect_stdout(io.StringIO()):
        run = _evaluator(list(range(count)), len(matched), np.zeros(overlaps), None)
        run._paramsEval = run.params
        run.evalImgs = [image[place] for place in range(count) for image in matched]
        run.accumulate()
    precision = run.eval["precision"]
    known = precision[precision > -1]
    if not known.size:
        raise UsageError("no box is labelled but crowds", remedy="give evaluation data with boxes")
    return 100 * float(known.mean())


def _evaluator(classes: list[int], images: int, overlaps: Array, truth: Any) -> Any:
    from pycocotools.cocoeval import COCOeval

    run = COCOeval(iouType="bbox")
    run.cocoGt = truth
    run.params.imgIds, run.params.catIds, run.params.iouThrs = list(range(images)), classes, overlaps
    run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [_ANY_AREA], ["all"], [MOST_BOXES]
    return run


def _index(annotations: list[dict[str, Any]], classes: list[int], images: int) -> Any:
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": label} for label in classes],
        "annotations": [{"id": place, **one} for place, one in enumerate(annotations, 1)],
    }
    index.createIndex()
    return index


def _annotation(image: int, label: Any, box: Sequence[float], crowd: int, score: float = 1.0) -> dict[str, Any]:
    area = float(box[2] * box[3])
    return {
        **{"image_id": image, "category_id": int(label), "bbox": [float(value) for value in box], "area": area},
        **{"iscrowd": crowd, "score": float(score)},
    }


def _row(box: Array) -> tuple[int, list[float], int]:
    """Class, left, top, width, height of a labelled box, and whether it is a crowd."""
    label, x, y, width, height = box[:5]
    return int(label), [x - width / 2, y - height / 2, width, height], int(len(box) > 5 and box[5] > 0)


def _boxes(labels: Array | None) -> list[Array]:
    """Of each image the boxes that it has.

    Raises:
        UsageError: the labels are no boxes.
    """
    if labels is None or labels.ndim != 3 or labels.shape[2] not in (5, 6):
        shape = "none" if labels is None else f"an array {list(labels.shape)}"
        raise UsageError(
            f"the labels are {shape}, and boxes are [N, M, 5]: class, centre x, centre y, width, height in parts of "
            "the image, filled up with the class -1",
            remedy="give a folder of images with annotations.json or labels/*.txt, or such an array; see docs/data.md",
            where="--eval",
        )
    found = [boxes[boxes[:, 0] >= 0] for boxes in labels]
    for place, boxes in enumerate(found):
        if not np.isfinite(boxes).all() or (np.abs(boxes[:, 1:5]) > _FARTHEST).any():
            raise UsageError(
                f"a box of image {place} is not within it",
                remedy="give centre and size in parts of the image, from 0 to 1",
                where="--eval",
            )
    if not any(len(boxes) for boxes in found):
        raise UsageError("no image has a labelled box", where="--eval", remedy="give evaluation data with boxes")
    return found

"""Detectors: heads give back the boxes that were put into them, and average precision is what plain counting gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeq.cli.app import run
from edgeq.data.boxes import stack
from edgeq.errors import UsageError
from edgeq.evaluation.accuracy import compare
from edgeq.evaluation.detection.detector import Detector, read_detector
from edgeq.evaluation.detection.suppression import Found, overlaps, suppress
from edgeq.evaluation.metric import load_metric

pytest.importorskip("pycocotools", reason="pip install 'edgeq[coco]'")

HEIGHT, WIDTH, CLASSES = 64, 96, 3
BOXES = np.array([[0.10, 0.20, 0.35, 0.60], [0.52, 0.30, 0.92, 0.88], [0.60, 0.05, 0.80, 0.25]])
"""Left, top, right, bottom in parts of the image: each in cells of its own, whatever the stride."""
LABELS = [2, 0, 1]
CENTRES, SIZES = (BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]
PIXELS = np.array([WIDTH, HEIGHT])


def logit(p: np.ndarray | float) -> np.ndarray:
    return np.log(np.asarray(p) / (1 - np.asarray(p)))


def cells(stride: int) -> list[tuple[int, int, np.ndarray]]:
    """Of each box the row and the column of its cell, and where in the cell its centre is."""
    at = CENTRES * PIXELS / stride
    return [(int(y), int(x), np.array([x, y]) % 1) for x, y in at]


def fastestdet() -> list[np.ndarray]:
    grid = np.full((5 + CLASSES, HEIGHT // 16, WIDTH // 16), 0.001)
    for (row, column, rest), size, label in zip(cells(16), SIZES, LABELS, strict=True):
        grid[:5, row, column] = 0.9, *np.arctanh(rest), *logit(size)
        grid[5 + label, row, column] = 0.8
    return [grid]


def yolo(objectness: bool) -> list[np.ndarray]:
    rows = np.zeros((40, 4 + objectness + CLASSES))
    rows[:3, :4] = np.concatenate([CENTRES * PIXELS, SIZES * PIXELS], 1)
    for row, label in zip(rows, LABELS, strict=False):
        row[4 + objectness + label] = 0.9
        row[4] = 0.9 if objectness else row[4]
    return [rows if objectness else rows.T]


def anchored(form: str) -> list[np.ndarray]:
    """Two strides of two anchors each; the first has nothing."""
    empty, grid = (np.full((2 * (5 + CLASSES), HEIGHT // s, WIDTH // s), -9.0) for s in (8, 16))
    anchor = np.array([30.0, 20.0])
    for (row, column, rest), size, label in zip(cells(16), SIZES * PIXELS, LABELS, strict=True):
        of_second = grid[5 + CLASSES :, row, column]
        of_second[:2] = logit(rest) if form == "v3" else logit((rest + 0.5) / 2)
        of_second[2:4] = np.log(size / anchor) if form == "v3" else logit(np.sqrt(size / anchor) / 2)
        of_second[4], of_second[5 + label] = 5.0, 5.0
    return [empty, grid]


def distances(apart: bool) -> list[np.ndarray]:
    """Distances in cells lie between two bins: the distribution has both."""
    grid = np.full((4 * 16 + CLASSES, HEIGHT // 8, WIDTH // 8), -9.0)
    for (row, column, _), box, label in zip(cells(8), BOXES * [*PIXELS, *PIXELS] / 8, LABELS, strict=True):
        middle = np.array([column + 0.5, row + 0.5])
        for side, away in enumerate([*(middle - box[:2]), *(box[2:] - middle)]):
            low = int(away)
            chances = np.full(16, 1e-9)
            chances[low], chances[low + 1] = 1 - away % 1, away % 1 + 1e-9
            grid[16 * side : 16 * side + 16, row, column] = np.log(chances)
        grid[64 + label, row, column] = 4.0
    return [grid[:64], grid[64:]] if apart else [grid]


def yolox() -> list[np.ndarray]:
    parts = []
    for stride in (8, 16, 32):
        grid = np.zeros((HEIGHT // stride, WIDTH // stride, 5 + CLASSES))
        if stride == 16:
            for (row, column, rest), size, label in zip(cells(16), SIZES * PIXELS, LABELS, strict=True):
                grid[row, column, :5] = *rest, *np.log(size / 16), 0.9
                grid[row, column, 5 + label] = 0.9
        parts.append(grid.reshape(-1, 5 + CLASSES))
    return [np.concatenate(parts)]


def ssd(priors: np.ndarray | None, first: bool) -> list[np.ndarray]:
    scores = np.zeros((5, 1 + CLASSES))
    scores[:, 0] = 1
    for row, label in zip(scores, LABELS, strict=False):
        row[:] = 0.01
        row[1 + label] = 0.9
    boxes = np.zeros((5, 4))
    boxes[:3] = BOXES
    if priors is not None:
        boxes[:3, :2] = (CENTRES - priors[:3, :2]) / priors[:3, 2:] / 0.1
        boxes[:3, 2:] = np.log(SIZES / priors[:3, 2:]) / 0.2
    return [scores, boxes] if first else [boxes, scores]


PRIORS = np.random.default_rng(0).uniform(0.2, 0.8, (5, 4))
SIDES = f"size = [{HEIGHT}, {WIDTH}]"
HEADS: dict[str, Callable[[], list[np.ndarray]]] = {
    'kind = "fastestdet"': fastestdet,
    f'kind = "yolo"\n{SIDES}': lambda: yolo(False),
    f'kind = "yolo"\nobjectness = true\n{SIDES}': lambda: yolo(True),
    f'kind = "yolo-anchors"\n{SIDES}\nanchors = [[[4, 4], [9, 9]], [[50, 9], [30, 20]]]': lambda: anchored("v5"),
    f'kind = "yolo-anchors"\nform = "v3"\n{SIDES}\nanchors = [[[4, 4], [9, 9]], [[50, 9], [30, 20]]]': lambda: anchored(
        "v3"
    ),
    'kind = "yolo-distances"': lambda: distances(False),
    'kind = "yolo-distances"\nbins = 16': lambda: distances(True),
    f'kind = "yolox"\n{SIDES}': yolox,
    'kind = "ssd"': lambda: ssd(None, False),
    'kind = "ssd"\nscores_first = true\npriors = "priors.npy"': lambda: ssd(PRIORS, True),
}


@pytest.mark.parametrize("told", HEADS, ids=lambda told: told.replace("\n", " ")[:40])
def test_a_head_gives_back_the_boxes_that_were_put_in(told: str, tmp_path: Path) -> None:
    np.save(tmp_path / "priors.npy", PRIORS)
    (tmp_path / "d.toml").write_text(f"threshold = 0.3\n[head]\n{told}\n")
    detector, _ = read_detector(tmp_path / "d.toml")
    found = detector.detect(HEADS[told](), tmp_path)
    order = np.argsort(found.corners[:, 0])
    assert found.classes[order].tolist() == LABELS
    np.testing.assert_allclose(found.corners[order], BOXES, atol=1e-6)


def test_suppression_is_that_of_plain_loops() -> None:
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 0.5, (80, 2))
    found = Found(
        np.concatenate([low, low + rng.uniform(0.1, 0.5, (80, 2))], 1), rng.random(80), rng.integers(0, 3, 80)
    )
    kept: list[int] = []
    for i in np.argsort(-found.scores):
        rivals = [j for j in kept if found.classes[j] == found.classes[i]]
        if found.scores[i] > 0.2 and all(
            overlaps(found.corners[j], found.corners[i : i + 1])[0] <= 0.4 for j in rivals
        ):
            kept.append(int(i))
    best = suppress(found, 0.2, 0.4)
    np.testing.assert_array_equal(best.corners, found.corners[kept])
    np.testing.assert_array_equal(best.classes, found.classes[kept])


def rows(*boxes: tuple[float, ...]) -> np.ndarray:
    return np.array(boxes).reshape(-1, 6)


def write_detector(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A function whose boxes are the outputs themselves: left, top, right, bottom, score, class; zeros for none."""
    monkeypatch.chdir(folder)
    Path(f"{name}.py").write_text(
        "def found(table):\n    return table[table[:, 4] > 0]\n\n\nfound.score = 'mAP50'\n"
        "\n\ndef many(table):\n    return table[table[:, 4] > 0]\n"
    )


def test_average_precision_is_what_counting_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_detector(tmp_path, monkeypatch, "counted")
    metric = load_metric("coco:counted:found")
    square = (0, 0.25, 0.25, 0.5, 0.5, 0)  # class, centre, size, crowd
    labels = stack([rows(square, (0, 0.75, 0.75, 0.5, 0.5, 0)), rows((1, 0.5, 0.5, 0.2, 0.2, 0)), rows()])
    right, other = (0, 0, 0.5, 0.5, 0.9, 0), (0.5, 0.5, 1, 1, 0.8, 0)
    second = (0.4, 0.4, 0.6, 0.6, 0.7, 1)
    table = lambda *boxes: np.concatenate([rows(*boxes), np.zeros((3 - len(boxes), 6))])  # noqa: E731

    assert (metric.name, metric.unit) == ("mAP50", "%")
    assert metric.score([table(right, other), table(second), table()], labels) == pytest.approx(100)
    # class 0 finds the first of two at once: precision 1 up to a recall of 0.5, that is at 51 of 101 points
    assert metric.score([table(right), table(second), table()], labels) == pytest.approx(100 * (51 / 101 + 1) / 2)
    # a better wrong box before it halves the precision there
    wrong = (0.5, 0, 1, 0.4, 0.95, 0)
    assert metric.score([table(wrong, right), table(second), table()], labels) == pytest.approx(
        100 * (51 / 202 + 1) / 2
    )
    # the same box twice counts once, and what overlaps by less than half is wrong
    half = (0, 0, 0.5, 0.24, 0.9, 0)
    assert metric.score([table(half), table(second, second), table()], labels) == pytest.approx(50)
    # in a crowd nothing is wrong
    crowd = stack([rows(square, (0, 0.75, 0.2, 0.5, 0.4, 1)), rows((1, 0.5, 0.5, 0.2, 0.2, 0)), rows()])
    assert metric.score([table(wrong, right), table(second), table()], crowd) == pytest.approx(100)
    # at 0.50 to 0.95, a box of 0.72 overlap counts at five of ten
    loose = load_metric("coco:counted:many")
    near = (0, 0, 0.5, 0.36, 0.9, 0)
    assert loose.score([table(near), table(second), table()], labels[:, :1]) == pytest.approx(100 * (0.5 + 1) / 2)


def test_samples_drawn_again_score_as_if_they_were_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_detector(tmp_path, monkeypatch, "drawn")
    metric, rng = load_metric("coco:drawn:found"), np.random.default_rng(5)
    labels = np.concatenate(
        [rng.integers(-1, 3, (20, 4, 1)), rng.uniform(0.3, 0.7, (20, 4, 4)), np.zeros((20, 4, 1))], 2
    )
    left, size = labels[..., 1:3] - labels[..., 3:5] / 2, labels[..., 3:5] * rng.uniform(0.6, 1.1, (20, 4, 2))
    outputs = list(np.concatenate([left, left + size, rng.random((20, 4, 1)), labels[..., :1].clip(0)], 2))
    prepared = metric.prepared(outputs, labels)
    for _ in range(5):
        drawn = rng.integers(0, 20, 20)
        again = metric.score_prepared([prepared[i] for i in drawn], labels[drawn])
        assert again == pytest.approx(metric.score([outputs[i] for i in drawn], labels[drawn]))


def test_a_drop_has_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_detector(tmp_path, monkeypatch, "dropped")
    rng = np.random.default_rng(6)
    labels = stack([rows((0, *rng.uniform(0.3, 0.7, 2), 0.2, 0.2, 0)) for _ in range(60)])
    corners = np.concatenate([labels[..., 1:3] - 0.1, labels[..., 1:3] + 0.1], 2)
    exact = np.concatenate([corners, np.ones((60, 1, 1)), np.zeros((60, 1, 1))], 2).astype(np.float32)
    moved = exact.copy()
    moved[::5, :, :4] += 0.2
    accuracy = compare([exact], [moved], labels, load_metric("coco:dropped:found"), seconds=4)
    assert accuracy.drop is not None and accuracy.drop.known and accuracy.metric == "mAP50"
    assert accuracy.float_score == pytest.approx(100) and accuracy.drop.low < accuracy.drop.value < accuracy.drop.high
    assert "paired bootstrap" in accuracy.drop.method


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[head]\nkind = 'nanodet'", "yolo-distances"),
        ("nms = 2\n[head]\nkind = 'fastestdet'", "nms"),
        ("[head]\nkind = 'yolo'", "size"),
        ("[head]\nkind = 'ssd'\npriors = '../priors.npy'", "no place in its own folder"),
        ("[head]\nkind = 'ssd'\npriors = 'priors.npy'", "cannot be read"),
        ("score = 'mAP75'\n[head]\nkind = 'fastestdet'", "mAP50"),
        ("head", "TOML"),
    ],
)
def test_a_file_that_describes_no_detector_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(UsageError, match=says):
        load_metric(f"coco:{tmp_path / 'd.toml'}")


def test_what_the_metric_cannot_judge_is_told(tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text("[head]\nkind = 'fastestdet'")
    metric = load_metric(f"coco:{tmp_path / 'd.toml'}")
    grid, boxes = fastestdet()[0], stack([rows((0, 0.5, 0.5, 0.1, 0.1, 0))])
    with pytest.raises(UsageError, match="labels are none"):
        metric.score([grid], None)
    with pytest.raises(UsageError, match=r"\[N, M, 5\]"):
        metric.score([grid], np.zeros(1, np.int64))
    with pytest.raises(UsageError, match="2 outputs, and this head has 1"):
        metric.score([(grid, grid)], boxes)
    with pytest.raises(UsageError, match="no image has a labelled box"):
        metric.score([grid], stack([rows()]))
    for spec, says in (("coco", "how the outputs become boxes"), ("coco:none.toml", "none.toml")):
        with pytest.raises(UsageError, match=says):
            load_metric(spec)


def test_boxes_that_are_no_numbers_are_no_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_detector(tmp_path, monkeypatch, "unnumbered")
    metric, labels = load_metric("coco:unnumbered:found"), stack([rows((0, 0.25, 0.25, 0.5, 0.5, 0))])
    right, lost = (0, 0, 0.5, 0.5, 0.5, 0), (np.nan, 0, 0.5, 0.5, 0.9, 0)
    assert metric.score([rows(lost, right)], labels) == pytest.approx(100)
    assert metric.score([rows(lost)], labels) == 0
    found = suppress(Found(rows(lost, right)[:, :4], np.array([0.9, 0.5]), np.array([0, 0])), 0.1, 0.5)
    assert found.scores.tolist() == [0.5], "and suppress no others"
    for wrong, says in ((np.nan, "not within it"), (120.0, "not within it")):
        with pytest.raises(UsageError, match=says):
            metric.score([rows(right)], stack([rows((0, wrong, 0.25, 0.5, 0.5, 0))]))


def test_what_says_nothing_of_a_drop_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text("[head]\nkind = 'fastestdet'")
    metric, grid = load_metric(f"coco:{tmp_path / 'd.toml'}"), fastestdet()[0][None].astype(np.float32)
    with pytest.raises(UsageError, match="3 classes"):
        metric.score([grid[0]], stack([rows((3, 0.5, 0.5, 0.1, 0.1, 0))]))
    nothing = np.repeat(stack([rows((0, 0.9, 0.1, 0.01, 0.01, 0))]), 2, axis=0)
    with pytest.raises(UsageError, match="the float model itself gets nothing right"):
        compare([np.repeat(grid, 2, 0)], [np.repeat(grid, 2, 0)], nothing, metric, seconds=1)


@pytest.mark.parametrize(
    ("told", "shape"),
    [
        ('kind = "yolo-distances"', (64, 8, 12)),
        (f'kind = "yolo"\n{SIDES}', (4, 9)),
        (f'kind = "yolo"\n{SIDES}', (4, 9, 1)),
        ('kind = "fastestdet"', (5, 4, 6)),
    ],
)
def test_outputs_that_do_not_fit_the_head_are_refused(told: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(f"[head]\n{told}\n")
    with pytest.raises(UsageError, match="not those of this head") as found:
        load_metric(f"coco:{tmp_path / 'd.toml'}").score([np.ones(shape)], stack([rows((0, 0.5, 0.5, 0.1, 0.1, 0))]))
    assert str(list(shape)) in found.value.remedy


class Detecting(torch.nn.Module):
    """Finds bright squares: a cell is an object where it is bright, and its box is the cell."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = torch.nn.Conv2d(3, 1, 8, stride=8)
        torch.nn.init.constant_(self.pool.weight, 1 / 192)
        torch.nn.init.constant_(self.pool.bias, 0.0)
        self.head = torch.nn.Conv2d(1, 6, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([1.0, 0, 0, 0, 0, 1]).reshape(6, 1, 1, 1))
            side = float(logit(0.25))
            self.head.bias.copy_(torch.tensor([0, np.arctanh(0.5), np.arctanh(0.5), side, side, 0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.pool(x)))


def test_a_detector_is_deployed_and_judged_by_its_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(8)
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for i in range(24):
        picture = np.zeros((32, 32, 3), np.uint8)
        row, column = rng.integers(0, 4, 2)
        picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = rng.integers(180, 255)
        Image.fromarray(picture).save(tmp_path / "data" / "images" / f"{i}.png")
        (tmp_path / "data" / "labels" / f"{i}.txt").write_text(f"0 {(column + 0.5) / 4} {(row + 0.5) / 4} 0.25 0.25")
    (tmp_path / "d.toml").write_text("score = 'mAP50'\nthreshold = 0.3\n[head]\nkind = 'fastestdet'\n")
    torch.export.save(torch.export.export(Detecting().eval(), (torch.rand(1, 3, 32, 32),)), "model.pt2")
    words = ["deploy", "model.pt2", "--target", "x86-avx512", "--format", "onnx", "--calib", "data", "--eval", "data"]
    words += ["--preprocess", "[0,1]", "--metric", "coco:d.toml", "--allow-slower", "--quiet", "--out", "build"]
    assert run(words) == 0
    (build,) = json.loads(Path("build/report.json").read_text())["builds"]
    accuracy = build["accuracy"]
    assert (accuracy["metric"], accuracy["unit"]) == ("mAP50", "%")
    assert accuracy["float_score"] == pytest.approx(100) and accuracy["score"] > 90


def test_every_kind_of_head_is_tried() -> None:
    kinds = {option["properties"]["kind"]["const"] for option in Detector.model_json_schema()["$defs"].values()}
    assert kinds == {told.split('"')[1] for told in HEADS}

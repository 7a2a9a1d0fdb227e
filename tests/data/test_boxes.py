"""Boxes as labels: two kinds of files say the same, and boxes stay where their objects are when images are prepared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeq.data.boxes import read_coco, read_yolo, stack
from edgeq.data.dataset import Dataset, InputSpec
from edgeq.data.load import load_data
from edgeq.data.preprocess import Preprocess
from edgeq.errors import UsageError

SIZE = (60, 40)
SPEC = [InputSpec("x", (1, 3, 32, 32), "float32")]
INSIDE = {"a": [(1, (10, 5, 20, 10)), (0, (30, 20, 12, 8))], "b": [], "c": [(2, (0, 0, 60, 40))]}
"""By image, class and left, top, width, height in pixels."""


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Three images in YOLO's layout; the one without objects has no file of labels."""
    folder = tmp_path / "yolo"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for name, boxes in INSIDE.items():
        Image.new("RGB", SIZE, (90, 0, 0)).save(folder / "images" / f"{name}.png")
        lines = [f"{c} {(x + w / 2) / 60} {(y + h / 2) / 40} {w / 60} {h / 40}" for c, (x, y, w, h) in boxes]
        if lines:
            (folder / "labels" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """The same with one file of labels, whose category ids have gaps, and are not in order."""
    folder = tmp_path / "coco"
    folder.mkdir()
    ids, annotations = [7, 18, 90], []
    for number, (name, boxes) in enumerate(INSIDE.items()):
        Image.new("RGB", SIZE, (90, 0, 0)).save(folder / f"{name}.png")
        annotations += [{"image_id": number, "category_id": ids[c], "bbox": list(box)} for c, box in boxes]
    images = [{"id": i, "file_name": f"{n}.png", "width": 60, "height": 40} for i, n in enumerate(INSIDE)]
    told = {"images": images, "categories": [{"id": i} for i in (90, 7, 18)], "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(told))
    return folder


def load(folder: Path, tmp_path: Path, preprocess: str = "size = [32, 32]") -> Dataset:
    (tmp_path / "pre.toml").write_text(preprocess)
    return load_data(folder, SPEC, preprocess=str(tmp_path / "pre.toml"), role="evaluation")


def test_both_kinds_of_files_give_the_same_boxes(yolo: Path, coco: Path, tmp_path: Path) -> None:
    one, other = load(yolo, tmp_path), load(coco, tmp_path)
    assert one.labels is not None and other.labels is not None
    assert one.labels.shape == (3, 2, 6) and len(one) == 3
    np.testing.assert_allclose(one.labels, other.labels, atol=1e-12)
    np.testing.assert_allclose(one.labels[0, 0], [1, 20 / 60, 10 / 40, 20 / 60, 10 / 40, 0], atol=1e-12)
    assert (one.labels[1, :, 0] == -1).all(), "an image without objects has none"


def test_calibration_looks_at_no_boxes(yolo: Path, tmp_path: Path) -> None:
    (tmp_path / "pre.toml").write_text("size = [32, 32]")
    (yolo / "labels" / "a.txt").write_text("no box")
    data = load_data(yolo, SPEC, preprocess=str(tmp_path / "pre.toml"), role="calibration")
    assert len(data) == 3 and data.labels is None


def test_other_boxes_are_other_data(yolo: Path, tmp_path: Path) -> None:
    before = load(yolo, tmp_path).sha256
    (yolo / "labels" / "c.txt").write_text("2 0.5 0.5 0.99 1")
    assert load(yolo, tmp_path).sha256 != before


@pytest.mark.parametrize(
    "recipe",
    [
        Preprocess(size=(48, 96)),
        Preprocess(size=64),
        Preprocess(size=(64, 64), letterbox=114),
        Preprocess(size=(30, 120), letterbox=0),
        Preprocess(size=72, crop=(64, 80)),
        Preprocess(crop=30),
        Preprocess(size=(64, 64), letterbox=0, crop=(60, 50)),
    ],
    ids=str,
)
def test_boxes_stay_where_their_objects_are(recipe: Preprocess) -> None:
    size = (90, 70)
    left, top, width, height = 30, 28, 24, 16
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[top : top + height, left : left + width, 1] = 255
    values = recipe.apply(Image.fromarray(picture))[1]
    lit = values > (values.max() + recipe.apply(Image.fromarray(picture * 0))[1]) / 2
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    box = [0, (left + width / 2) / size[0], (top + height / 2) / size[1], width / size[0], height / size[1], 0]
    ((_, x, y, w, h, _),) = recipe.boxes(np.array([box]), size)
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    told = [
        (x - w / 2) * lit.shape[1],
        (y - h / 2) * lit.shape[0],
        (x + w / 2) * lit.shape[1],
        (y + h / 2) * lit.shape[0],
    ]
    np.testing.assert_allclose(told, seen, atol=1.0)


def test_a_letterbox_keeps_the_shape_and_fills_the_rest() -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    values = Preprocess(size=(80, 80), letterbox=51).apply(image)
    assert values.shape == (3, 80, 80)
    np.testing.assert_allclose(values[:, :20], 0.2, atol=1e-6)
    np.testing.assert_allclose(values[:, 60:], 0.2, atol=1e-6)
    np.testing.assert_allclose(values[0, 20:60], 1.0)


@pytest.mark.parametrize(
    "line", ["x 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1", "0 120 80 30 20", "0.5 0 0 1 1", "0 0 0 nan 1", "-1 0 0 1 1"]
)
def test_lines_that_are_no_boxes_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1 0.5 0.5 0.1 0.1\n" + line)
    with pytest.raises(UsageError, match="line 2"):
        read_yolo(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": None}, "TypeError"),
        ({"annotations": [{"image_id": 9, "category_id": 7, "bbox": [0, 0, 1, 1]}]}, "9"),
        ({"annotations": [{"image_id": 0, "category_id": 7, "bbox": [0, 0, "x", 1]}]}, "x"),
        ({"annotations": [{"image_id": 0, "category_id": 7, "bbox": [0, 0, -5, 1]}]}, "bbox"),
        ({"images": [{"id": 0, "file_name": "a.png", "width": 0, "height": 4}]}, "without width"),
        ({"images": [{"id": i, "file_name": "a.png", "width": 6, "height": 4} for i in (0, 1, 2)]}, "two images"),
        ({"images": [{"id": float("inf"), "file_name": "a.png", "width": 6, "height": 4}]}, "COCO"),
    ],
)
def test_files_that_are_not_in_cocos_form_are_refused(coco: Path, change: dict[str, object], says: str) -> None:
    path = coco / "annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=says):
        read_coco(path)


def test_labels_of_another_size_are_noticed(coco: Path, tmp_path: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(coco / "b.png")
    with pytest.raises(UsageError, match="is 40 x 60, and its labels are for 60 x 40"):
        load(coco, tmp_path)


def test_a_crop_cuts_boxes_and_loses_those_outside() -> None:
    recipe = Preprocess(crop=50)  # of 100 x 50: the middle half
    boxes = np.array([[0, 0.5, 0.5, 0.2, 0.5, 0], [1, 0.25, 0.5, 0.2, 0.5, 0], [2, 0.1, 0.5, 0.1, 0.5, 0]])
    np.testing.assert_allclose(
        recipe.boxes(boxes, (100, 50)), [[0, 0.5, 0.5, 0.4, 0.5, 0], [1, 0.1, 0.5, 0.2, 0.5, 0]], atol=1e-12
    )


def test_no_image_outside_of_the_folder_is_read(coco: Path, tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "outside.png")
    path = coco / "annotations.json"
    path.write_text(path.read_text().replace("a.png", "../outside.png"))
    with pytest.raises(UsageError, match="no place in its own folder"):
        load(coco, tmp_path)


def test_labels_of_other_images_are_told(yolo: Path, tmp_path: Path) -> None:
    (yolo / "labels" / "z.txt").write_text("")
    assert any("z.txt" in note for note in load(yolo, tmp_path).notes)
    for path in (yolo / "labels").glob("[ac].txt"):
        path.unlink()
    with pytest.raises(UsageError, match="no image has a file"):
        load(yolo, tmp_path)


def test_images_with_fewer_boxes_are_filled_up() -> None:
    stacked = stack([np.ones((1, 6)), np.ones((3, 6)), np.empty((0, 6))])
    assert stacked.shape == (3, 3, 6) and [(row[:, 0] >= 0).sum() for row in stacked] == [1, 3, 0]

"""Samples get in from files, folders and functions, and what does not fit the model is refused by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from edgeq.data import Dataset, InputSpec, load_data, overlap
from edgeq.data.preprocess import Preprocess, read_preprocess
from edgeq.data.stored import read_ahead, stored_arrays
from edgeq.errors import UsageError

IMAGE = InputSpec("x", (1, 3, 4, 6), "float32")
FREE = InputSpec("x", (None, 3, 4, 6), "float32")
TOKENS = InputSpec("tokens", (1, 5), "int64")
RNG = np.random.default_rng(0)
PIXELS = RNG.standard_normal((7, 3, 4, 6)).astype(np.float32)


def load(source: Path | str, *specs: InputSpec, **options: object) -> Dataset:
    return load_data(source, specs or (IMAGE,), **{"role": "evaluation", **options})  # type: ignore[arg-type]


def refused(source: Path | str, *specs: InputSpec, **options: object) -> str:
    """The whole message of the refusal; it always has a one-line cause and a remedy."""
    with pytest.raises(UsageError) as error:
        load(source, *specs, **options)
    assert error.value.remedy and "\n" not in error.value.cause
    return str(error.value)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    target = path / "data.bin"  # told by its content
    with target.open("wb") as file:
        np.savez(file, **arrays)
    return target


# ---------------------------------------------------------------- NumPy files


@pytest.mark.parametrize("spec", [IMAGE, FREE])
def test_arrays_are_taken_by_name(tmp_path: Path, spec: InputSpec) -> None:
    data = load(npz(tmp_path, x=PIXELS, labels=np.arange(7)), spec)
    assert len(data) == 7 and data.notes == ()
    np.testing.assert_array_equal(data.inputs["x"], PIXELS)
    np.testing.assert_array_equal(data.labels, np.arange(7))
    assert data.sample(3)[0].shape == (1, 3, 4, 6)
    assert data.source == "data.bin"


def test_a_model_with_two_inputs(tmp_path: Path) -> None:
    tokens = np.arange(35).reshape(7, 5)
    data = load(npz(tmp_path, tokens=tokens, x=PIXELS), IMAGE, TOKENS)
    assert list(data.inputs) == ["x", "tokens"]
    first, second = data.sample(6)
    assert first.shape == (1, 3, 4, 6) and second.tolist() == [[30, 31, 32, 33, 34]]


def test_an_npy_and_a_lone_array_of_another_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    assert len(load(tmp_path / "a.npy")) == 7
    data = load(npz(tmp_path, pictures=PIXELS, labels=np.zeros(7, int)))
    assert "pictures" in data.notes[0]
    assert "holds one array" in refused(tmp_path / "a.npy", IMAGE, TOKENS)


def test_a_fixed_leading_axis_makes_a_sample_a_whole_input(tmp_path: Path) -> None:
    spec = InputSpec("x", (3, 4, 6), "float32")
    data = load(npz(tmp_path, x=PIXELS), spec)
    assert data.sample(0)[0].shape == (3, 4, 6)


def test_the_batch_axis_of_each_sample_is_dropped(tmp_path: Path) -> None:
    data = load(npz(tmp_path, x=PIXELS[:, None]))
    np.testing.assert_array_equal(data.inputs["x"], PIXELS)
    assert data.notes


def test_labels_are_for_evaluation_only(tmp_path: Path) -> None:
    path = npz(tmp_path, x=PIXELS, labels=np.array(["a"] * 7))
    assert load(path, role="calibration").labels is None
    assert "not numbers" in refused(path)


def test_a_limit_spreads_over_the_file(tmp_path: Path) -> None:
    data = load(npz(tmp_path, x=PIXELS, labels=np.arange(7)), limit=3)
    assert data.labels is not None and data.labels.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(data.inputs["x"], PIXELS[[0, 2, 4]])
    assert len(load(npz(tmp_path, x=PIXELS), limit=100)) == 7
    assert "limit" in refused(npz(tmp_path, x=PIXELS), limit=0)


def test_safe_conversions_are_noted(tmp_path: Path) -> None:
    data = load(npz(tmp_path, x=PIXELS.astype(np.float64)))
    assert data.inputs["x"].dtype == np.float32 and "float64" in data.notes[0]
    tokens = load(npz(tmp_path, tokens=np.ones((2, 5), np.int32)), TOKENS)
    assert tokens.inputs["tokens"].dtype == np.int64 and "int32" in tokens.notes[0]


def test_arrays_that_are_not_used_are_noted(tmp_path: Path) -> None:
    assert "extra" in load(npz(tmp_path, x=PIXELS, extra=np.zeros(3))).notes[0]


def with_value(value: float) -> np.ndarray:
    array = PIXELS.copy()
    array[5, 0, 0, 0] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": with_value(np.nan)}, "sample 5 contains NaN"),
        ({"x": with_value(np.inf)}, "sample 5 contains infinity"),
        ({"x": with_value(1).astype(np.float64) * 1e200}, "beyond the range"),
        ({"x": PIXELS[:, :, :, :5]}, r"[7, 3, 4, 5] does not fit the model's [N, 3, 4, 6]"),
        ({"x": PIXELS.transpose(0, 2, 3, 1)}, "transpose(0, 3, 1, 2)"),
        ({"x": PIXELS[0]}, "array[None]"),
        ({"x": PIXELS[:, 0]}, "np.stack"),
        ({"x": np.float32(3)}, "does not fit"),
        ({"x": PIXELS[:0]}, "no samples"),
        ({"x": PIXELS.astype(np.uint8)}, "--preprocess"),
        ({"x": PIXELS.astype(np.int32)}, "int32"),
        ({"x": PIXELS > 0}, "bool"),
        ({"x": PIXELS.astype(np.complex64)}, "complex64"),
        ({"x": np.full(PIXELS.shape, "a")}, "<U1"),
        ({"y": PIXELS, "z": PIXELS}, "the model takes x, the file has y, z"),
        ({"x": PIXELS, "labels": np.arange(6)}, "[6] for 7 samples"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    message = refused(npz(tmp_path, **arrays))
    assert says in message
    assert "data.bin" in message


def test_integers_that_do_not_fit(tmp_path: Path) -> None:
    spec = InputSpec("t", (1, 2), "int32")
    assert "int32" in refused(npz(tmp_path, t=np.array([[1, 2**40]])), spec)
    assert "float32" in refused(npz(tmp_path, t=np.zeros((1, 2), np.float32)), spec)


def test_inputs_of_different_length(tmp_path: Path) -> None:
    message = refused(npz(tmp_path, x=PIXELS, tokens=np.zeros((6, 5), np.int64)), IMAGE, TOKENS)
    assert "x: 7" in message and "tokens: 6" in message


def test_python_objects_are_refused(tmp_path: Path) -> None:
    assert "Python objects" in refused(npz(tmp_path, x=np.array([{}, []], object)))
    np.save(tmp_path / "o.npy", np.array([{}], object))
    assert "Python objects" in refused(tmp_path / "o.npy")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_truncated_files_are_noticed(tmp_path: Path, share: float) -> None:
    whole = npz(tmp_path, x=PIXELS).read_bytes()
    np.save(tmp_path / "a.npy", PIXELS)
    for content in (whole, (tmp_path / "a.npy").read_bytes()):
        (tmp_path / "cut").write_bytes(content[: int(len(content) * share)])
        assert "damaged" in refused(tmp_path / "cut")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(npz(tmp_path, x=PIXELS, labels=np.arange(7)).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "flipped").write_bytes(content)
    try:
        loaded = load(tmp_path / "flipped")
    except UsageError as error:
        assert error.remedy and "\n" not in error.cause
        return
    np.testing.assert_array_equal(loaded.inputs["x"], PIXELS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=arrays(
        st.sampled_from(["f4", ">f4", "f2", "i1", "u8", "?", "c8", "M8[s]", "S3", "i4,f8"]),
        array_shapes(min_dims=0, max_dims=4, min_side=0),
    ),
    turned=st.booleans(),
    packed=st.booleans(),
    ahead=st.booleans(),
)
def test_stored_arrays_are_what_numpy_reads(
    tmp_path: Path, array: np.ndarray, turned: bool, packed: bool, ahead: bool
) -> None:
    """The members of an archive are read without NumPy: every type, order and shape has to come out the same."""
    (np.savez_compressed if packed else np.savez)(tmp_path / "a.npz", a=array.T if turned else array, b=PIXELS)
    if ahead:
        read_ahead([str(tmp_path / "a.npz"), None, "package:function"])
    found = stored_arrays(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as expected:
        assert set(found) == (set() if packed else {"a", "b"})
        for name, (read, place) in found.items():
            assert (place is None) == (read.flags.f_contiguous and not read.flags.c_contiguous)
            if place is not None and read.size:
                there = np.memmap(place.path, place.dtype, "r", place.offset, place.shape)
                assert there.tobytes() == read.tobytes() and place.unchanged()
            assert read.dtype == expected[name].dtype and read.shape == expected[name].shape
            assert read.flags.f_contiguous == expected[name].flags.f_contiguous and read.flags.writeable
            assert read.tobytes() == expected[name].tobytes()


def test_what_is_wrong_with_a_file_that_was_read_ahead_is_told_when_it_is_used(tmp_path: Path) -> None:
    whole = npz(tmp_path, x=PIXELS).read_bytes()
    broken = tmp_path / "broken.npz"
    broken.write_bytes(whole.replace(PIXELS[3].tobytes(), PIXELS[4].tobytes()))
    read_ahead([broken, tmp_path / "none.npz"])
    assert "CRC-32 of 'x.npy'" in refused(broken)
    broken.write_bytes(whole)
    assert len(load(broken)) == 7


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert "empty" in refused(tmp_path / "empty")
    (tmp_path / "text.npz").write_text("hello")
    assert "neither .npz nor .npy" in refused(tmp_path / "text.npz")
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    assert "single image" in refused(tmp_path / "one.png")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "hello")
    assert "readme" in refused(tmp_path / "other.zip")
    assert "text.npz" in refused(tmp_path / "test.npz")
    assert "no evaluation data" in refused(tmp_path / "a" / "b")


# ---------------------------------------------------------------- hashes


def test_hashes_follow_the_content_and_not_the_file(tmp_path: Path) -> None:
    a = load(npz(tmp_path, x=PIXELS))
    np.save(tmp_path / "a.npy", PIXELS)
    assert a.sha256 == load(tmp_path / "a.npy").sha256
    assert a.sha256 != load(npz(tmp_path, x=with_value(2))).sha256
    assert a.sha256 != load(npz(tmp_path, x=PIXELS, labels=np.arange(7))).sha256


def test_overlap_counts_samples_of_the_second_set(tmp_path: Path) -> None:
    calibration = load(npz(tmp_path, x=PIXELS[:4]))
    evaluation = load(npz(tmp_path, x=PIXELS[[2, 3, 3, 5]]))
    assert overlap(calibration, evaluation) == 3
    assert overlap(evaluation, calibration) == 2


# ---------------------------------------------------------------- images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three images of 6 by 4, in two classes' folders."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(["cat/a.png", "cat/b.png", "dog/a.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (10 * number, 100, 200)).save(folder / name)
    return folder


def test_images_need_preprocessing_to_be_stated(pictures: Path) -> None:
    assert "--preprocess" in refused(pictures)


def test_class_folders_are_numbered_in_sorted_order(pictures: Path) -> None:
    data = load(pictures, preprocess="[0,1]")
    assert data.labels is not None and data.labels.tolist() == [0, 0, 1]
    assert "class folders" in data.source
    np.testing.assert_allclose(data.inputs["x"][1, :, 0, 0], np.array([10, 100, 200]) / 255, rtol=1e-6)
    assert load(pictures, preprocess="[0,1]", role="calibration").labels is None
    assert load(pictures, preprocess="[0,1]", limit=2).labels.tolist() == [0, 0]  # type: ignore[union-attr]


def test_a_list_of_labels(pictures: Path) -> None:
    table = pictures / "labels.txt"
    table.write_text("dog/a.png 4\ncat/b.png 2\n\ncat/a.png 0\n")
    data = load(pictures, preprocess="[0,1]")
    assert data.labels is not None and data.labels.tolist() == [4, 2, 0]
    assert "labels.txt" in data.source
    for text, says in [
        ("dog/a.png 4\n", "2 images have no label"),
        ("dog/a.png x\n", "line 1"),
        ("dog/b.png 1\n", "no image 'dog/b.png'"),
        ("dog/a.png 1\ndog/a.png 2\n", "twice"),
    ]:
        table.write_text(text)
        assert says in refused(pictures, preprocess="[0,1]")


def test_a_flat_folder_has_no_labels(pictures: Path) -> None:
    data = load(pictures / "cat", preprocess="[0,1]")
    assert len(data) == 2 and data.labels is None
    (pictures / "cat" / "notes.md").write_text("x")
    assert "notes.md" in load(pictures / "cat", preprocess="[0,1]").notes[0]


def test_folders_that_cannot_be_read_as_images(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no images" in refused(tmp_path / "empty", preprocess="[0,1]")
    Image.new("RGB", (6, 4)).save(pictures / "stray.png")
    assert "stray.png" in refused(pictures, preprocess="[0,1]")
    assert "one input" in refused(pictures, IMAGE, TOKENS, preprocess="[0,1]")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_truncated_images_are_named(pictures: Path, suffix: str) -> None:
    good = pictures / "cat" / f"c.{suffix}"
    noise = Image.fromarray(RNG.integers(0, 255, (40, 60, 3), np.uint8))
    noise.save(good)
    content = good.read_bytes()
    for share in (0, 0.05, 0.5, 0.9):
        good.write_bytes(content[: int(len(content) * share)])
        message = refused(pictures, preprocess="[0,1]")
        assert f"cat/c.{suffix}" in message


def test_images_of_different_size_are_named(pictures: Path) -> None:
    Image.new("RGB", (8, 4)).save(pictures / "dog" / "b.png")
    assert "dog/b.png" in refused(pictures, preprocess="[0,1]")
    assert "does not fit" in refused(pictures / "cat", InputSpec("x", (1, 3, 9, 9), "float32"), preprocess="[0,1]")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16", "YCbCr"])
def test_every_mode_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    image = Image.new(mode, (6, 4), 60000 if mode == "I;16" else None)  # type: ignore[arg-type]
    image.save(tmp_path / f"a.{suffix}")
    data = load(tmp_path, preprocess="[0,1]")
    assert data.inputs["x"].shape == (1, 3, 4, 6)
    if mode == "I;16":
        np.testing.assert_allclose(data.inputs["x"], (60000 >> 8) / 255, rtol=1e-6)


def test_float_images_are_refused(tmp_path: Path) -> None:
    Image.new("F", (6, 4)).save(tmp_path / "a.tif")
    assert "8-bit" in refused(tmp_path, preprocess="[0,1]")


def test_images_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 6))
    image.paste((255, 255, 255), (0, 0, 4, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the white top row becomes the right column
    image.save(tmp_path / "a.png", exif=exif)
    pixels = load(tmp_path, preprocess="[0,1]").inputs["x"][0, 0]
    assert pixels.shape == (4, 6) and pixels[:, -1].tolist() == [1, 1, 1, 1] and pixels[:, 0].sum() == 0


def test_threads_do_not_change_the_result(tmp_path: Path) -> None:
    for number in range(40):
        Image.fromarray(RNG.integers(0, 255, (9, 13, 3), np.uint8)).save(tmp_path / f"{number:02}.png")
    toml = tmp_path / "p.toml"
    toml.write_text("size = [4, 6]\nresample = 'bicubic'\n")
    assert len({load(tmp_path, preprocess=str(toml)).sha256 for _ in range(3)}) == 1


# ---------------------------------------------------------------- preprocessing


def test_presets() -> None:
    image = Image.new("RGB", (500, 400), (255, 0, 128))
    values = read_preprocess("imagenet").apply(image)
    assert values.shape == (3, 224, 224) and values.dtype == np.float32
    expected = (np.array([255, 0, 128]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(values[:, 100, 100], expected, rtol=1e-5)
    assert read_preprocess("cifar10").apply(image).shape == (3, 400, 500)


def test_every_field(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        'size = 8\ncrop = [4, 6]\nresample = "nearest"\norder = "BGR"\n'
        'scale = 1\nmean = [1, 2, 3]\nstd = [2]\nlayout = "NHWC"\n'
    )
    values = read_preprocess(str(tmp_path / "p.toml")).apply(Image.new("RGB", (16, 12), (30, 20, 10)))
    assert values.shape == (4, 6, 3)
    assert values[0, 0].tolist() == [4.5, 9, 13.5]
    assert Preprocess(order="gray").apply(Image.new("RGB", (6, 4))).shape == (1, 4, 6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour = 3", "colour"),
        ("size = 0", "size"),
        ("mean = [1, 2]", "2 values for 3 channels"),
        ("std = 0", "std"),
        ("std = [0]", "std"),
        ("resample = 'magic'", "resample"),
        ("size = ", "no TOML"),
    ],
)
def test_wrong_preprocessing_is_refused(tmp_path: Path, pictures: Path, text: str, says: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    assert says in refused(pictures, preprocess=str(tmp_path / "p.toml"))


def test_unknown_presets_and_small_images(pictures: Path, tmp_path: Path) -> None:
    assert "imagenet" in refused(pictures, preprocess="imagnet")
    (tmp_path / "p.toml").write_text("crop = 5")
    assert "smaller than the crop" in refused(pictures, preprocess=str(tmp_path / "p.toml"))


# ---------------------------------------------------------------- functions


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory."""
    name = f"user_data_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(
        """
import itertools
import numpy as np
import torch

X = np.ones((3, 4, 6), np.float32)
T = np.arange(5)

def arrays(): return [X, X[None] * 2]
def labelled(): return [(X, 3), ({"x": X}, np.int64(4)), ((X,), torch.tensor(5))]
def tensors():
    for i in range(100): yield torch.full((3, 4, 6), float(i))
def endless(): return itertools.repeat(X)
def limited(limit): return [X] * (limit or 9)
def pairs(): return [(X, T), {"tokens": T, "x": X}]
def pairs_labelled(): return [((X, T), 1), ({"tokens": T, "x": X}, 2)]
def nothing(): return []
def number(): return 3
def fails():
    yield X
    raise OSError("no disk")
def crashes(): raise OSError("no disk")
def ragged(): return [X, X[:, :2]]
def missing(): return [{"y": X}]
def lists(): return [[1, 2]]
def half_labelled(): return [(X, 1), X]
def batch(): return [np.stack([X, X])]
def nan(): return [X, X * np.nan]
value = 3
"""
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_functions_yield_samples(functions: str) -> None:
    assert load(f"{functions}:arrays").inputs["x"][1, 0, 0, 0] == 2
    assert load(f"{functions}:labelled").labels.tolist() == [3, 4, 5]  # type: ignore[union-attr]
    data = load(f"{functions}:tensors")
    np.testing.assert_array_equal(data.inputs["x"][:, 0, 0, 0], np.arange(100))
    assert len(load(f"{functions}:endless", limit=3)) == 3
    assert len(load(f"{functions}:limited", limit=4)) == 4
    assert len(load(f"{functions}:limited")) == 9
    assert load(f"{functions}:pairs", IMAGE, TOKENS).inputs["tokens"].shape == (2, 5)
    assert load(f"{functions}:pairs_labelled", IMAGE, TOKENS).labels.tolist() == [1, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "no samples"),
        ("number", "yields no samples"),
        ("fails", "no disk"),
        ("crashes", "no disk"),
        ("ragged", "sample 1"),
        ("missing", "no input 'x'"),
        ("lists", "not an array"),
        ("half_labelled", "sample 1 has no label"),
        ("batch", "batch of 2"),
        ("nan", "sample 1 contains NaN"),
        ("value", "no function"),
        ("array", "did you mean"),
    ],
)
def test_functions_that_do_not_fit(functions: str, name: str, says: str) -> None:
    message = refused(f"{functions}:{name}")
    assert says in message and functions in message


def test_a_function_in_no_module() -> None:
    assert "cannot be imported" in refused("nowhere.at.all:f")


def test_an_array_has_a_place_while_its_file_is_as_it_was_read(tmp_path: Path) -> None:
    file = npz(tmp_path, x=PIXELS)
    place = load(file).places["x"]
    assert np.array_equal(np.memmap(place.path, place.dtype, "r", place.offset, place.shape), PIXELS)
    assert place.unchanged()
    with open(file, "r+b") as written:
        written.seek(place.offset)
        written.write(b"\0")
    assert not place.unchanged()
    file.unlink()
    assert not place.unchanged()


def test_what_was_converted_or_left_out_has_no_place(tmp_path: Path) -> None:
    assert load(npz(tmp_path, x=PIXELS.astype(np.float64))).places == {}
    assert load(npz(tmp_path, x=PIXELS), limit=3).places == {}
    np.savez_compressed(tmp_path / "packed.npz", x=PIXELS)
    assert load(tmp_path / "packed.npz").places == {}

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from edgepress.compressor import columns, images
from edgepress.compressor.data import Dataset, describe, open_data
from edgepress.compressor.errors import DataError
from edgepress.compressor.model import InputSpec
from edgepress.compressor.protocols import Array

X = (InputSpec("x", np.dtype(np.float32), ("N", 3, 4, 6)),)
TOML = "size = [4, 6]\nmean = [1, 2, 3]\nstd = [2, 4, 8]\nscale = 0.5\n"


def picture(file: Path, height: int = 4, width: int = 6, seed: int = 0, mode: str = "RGB") -> Array:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    PIL.Image.fromarray(pixels).convert(mode).save(file)
    return np.asarray(PIL.Image.open(file).convert("RGB"))


def first(data: Dataset) -> Array:
    return next(data.batches(8)).feeds["x"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "preprocess.toml").write_text(TOML)
    (tmp_path / "set" / "test").mkdir(parents=True)
    return tmp_path / "set" / "test"


def test_class_folders_label_and_pixels_are_normalised(folder: Path) -> None:
    pixels = picture(folder / "dog" / "1.PNG", seed=1)
    picture(folder / "cat" / "2.png", seed=2)
    picture(folder / "cat" / "1.jpg", seed=3)
    (folder / "cat" / "notes.txt").write_text("not a picture")
    (folder / "empty").mkdir()
    data = open_data(folder, X)
    assert data.labels is not None
    assert list(data.labels) == [0, 0, 1]
    expected = (pixels * 0.5 - [1, 2, 3]) / [2, 4, 8]
    got = next(data.batches(1, [2])).feeds["x"]
    np.testing.assert_allclose(got[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-5)
    assert len(set(data.row_hashes())) == 3
    assert describe(data)["sha256"] != describe(open_data(folder, X, preprocess=own(folder)))["sha256"]


def own(folder: Path) -> Path:
    (folder / "own.toml").write_text("size = [4, 6]")
    return folder / "own.toml"


def test_flat_folders_are_unlabelled_and_layout_and_colour_are_kept(folder: Path) -> None:
    pixels = picture(folder / "a.png")
    (folder / "preprocess.toml").write_text('size = [4, 6]\nlayout = "NHWC"\ncolor = "BGR"')
    data = open_data(folder, (InputSpec("x", np.dtype(np.uint8), (None, 4, 6, 3)),))
    assert data.labels is None
    np.testing.assert_array_equal(first(data)[0], pixels[..., ::-1])
    (folder / "preprocess.toml").write_text('size = [4, 6]\ncolor = "L"\nmean = 3')
    grey = first(open_data(folder, (InputSpec("x", np.dtype(np.float32), (None, 1, 4, 6)),)))
    np.testing.assert_allclose(grey[0, 0], np.asarray(PIL.Image.fromarray(pixels).convert("L")) - 3.0)


def test_center_keeps_proportions_and_none_stretches(folder: Path) -> None:
    pixels = picture(folder / "tall.png", height=10, width=6)
    (folder / "preprocess.toml").write_text("size = [4, 6]")
    np.testing.assert_array_equal(first(open_data(folder, X))[0].transpose(1, 2, 0), pixels[3:7])
    (folder / "preprocess.toml").write_text('size = [4, 6]\ncrop = "none"\ninterpolation = "nearest"')
    np.testing.assert_array_equal(first(open_data(folder, X))[0].transpose(1, 2, 0), pixels[[1, 3, 6, 8]])
    (folder / "preprocess.toml").write_text('size = [2, 2]\nresize = 6\ninterpolation = "nearest"')
    small = open_data(folder, (InputSpec("x", np.dtype(np.float32), (None, 3, None, None)),))
    np.testing.assert_array_equal(first(small)[0].transpose(1, 2, 0), pixels[4:6, 2:4])


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("size = [4, 6]\nmeen = [1, 2, 3]", "unknown key 'meen'", "'mean'"),
        ("mean = [1, 2, 3]", "size", "For example"),
        ("size = [4, 0]", "size.1", "For example"),
        ('size = [4, 6]\ncolor = "CMYK"', "color", "For example"),
        ("size = [4, 6]\nstd = [1, 0, 1]", "std.1", "For example"),
        ("size = [4, 6]\nmean = [nan, 0, 1]", "mean.0", "For example"),
        ("size = [4, 6]\nstd = [1, 2]", "std has 2 numbers for the 3 channels", "one a channel"),
        ("size = [4, 6", "cannot be read", "for example"),
    ],
)
def test_a_wrong_preprocess_file_is_named(folder: Path, text: str, message: str, hint: str) -> None:
    picture(folder / "a.png")
    (folder / "preprocess.toml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_data(folder, X)
    assert hint in caught.value.hint


def test_nothing_is_guessed_without_a_preprocess_file(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "b" / "c" / "d" / "1.png")
    (tmp_path / "preprocess.toml").write_text(TOML)
    with pytest.raises(DataError, match=r"no preprocess\.toml") as caught:
        open_data(tmp_path / "a" / "b" / "c", X)
    assert "size" in caught.value.hint


def test_wrong_folders_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        open_data(folder, X)
    picture(folder / "a.png")
    with pytest.raises(DataError, match="2 inputs"):
        open_data(folder, (*X, InputSpec("z", np.dtype(np.float32), (None, 3))))
    with pytest.raises(DataError, match=r"wants \[rows, 3, 8, 6\]"):
        open_data(folder, (InputSpec("x", np.dtype(np.float32), (None, 3, 8, 6)),))
    picture(folder / "cat" / "a.png")
    with pytest.raises(DataError, match="beside class folders"):
        open_data(folder, X)


def test_damaged_and_deep_pictures_are_named(folder: Path) -> None:
    picture(folder / "a.png", 64, 64)
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:900])
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        first(open_data(folder, X))
    PIL.Image.fromarray(np.zeros((4, 6), np.uint16)).save(folder / "a.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        first(open_data(folder, X))
    (folder / "a.png").write_text("text")
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        first(open_data(folder, X))


def test_pictures_that_unpack_to_gigabytes_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(folder / "a.png", 40, 40)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="40×40 pixels"):
        first(open_data(folder, X))
    for limit in (1000, 100):  # Pillow's own guard: a warning, and beyond twice the limit an error
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="decompression bomb"):
            first(open_data(folder, X))
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_PIXELS", 3000)
    picture(folder / "a.png", 2000, 1)
    with pytest.raises(DataError, match="too narrow"):
        first(open_data(folder, X))


def test_more_rows_than_memory_is_spent_on_are_not_made_room_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        picture(folder / f"{name}.png")
    data = open_data(folder, X)
    monkeypatch.setattr(columns, "_MOST_TAKEN", 2 * 3 * 4 * 6 * 4)
    assert len(next(data.batches(2)).feeds["x"]) == 2
    with pytest.raises(DataError, match=r"3 rows of pictures of .* unpack to 864 bytes"):
        first(data)


def test_without_pillow_the_line_that_installs_it_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(folder / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match="Pillow") as caught:
        open_data(folder, X)
    assert "pip install 'edgepress[images]'" in caught.value.hint

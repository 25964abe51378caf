"""Folders of images as rows: decoded batch by batch, prepared as a small TOML file beside them says.

A value that the model sees is (pixel · scale − mean) / std, with pixels 0…255. `crop = "center"` keeps the
picture's proportions (shorter side to `resize`, or to what covers `size`, then the middle is cut out);
`"none"` stretches.
"""

import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgepress.compressor.columns import IndexArray, Take, room
from edgepress.compressor.errors import DataError, nearest
from edgepress.compressor.protocols import Array

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
FILE_NAME = "preprocess.toml"
MAX_PIXELS = 1 << 26
_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}
_EXAMPLE = (
    'size = [224, 224], layout = "NCHW", color = "RGB", mean = [123.7, 116.3, 103.5], '
    "std = [58.4, 57.1, 57.4] (of pixels 0…255), one key a line"
)


class Preprocess(BaseModel):
    """How pictures become the model's input; the keys of `preprocess.toml`.

    Attributes:
        size: (height, width) that the model sees.
        layout: where the channels stand.
        color: channel order, or `L` for grey.
        mean: subtracted after `scale`; one number, or one a channel.
        std: divisor after `mean`; one number, or one a channel.
        scale: factor on pixels 0…255.
        crop: `center` keeps proportions, `none` stretches.
        resize: shorter side before the centre crop; None: what just covers `size`.
        interpolation: filter of the resize.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    size: tuple[Annotated[int, Field(ge=1, le=8192)], Annotated[int, Field(ge=1, le=8192)]]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR", "L"] = "RGB"
    mean: tuple[Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)], ...] = (0.0,)
    std: tuple[Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)], ...] = (1.0,)
    scale: Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)] = 1.0
    crop: Literal["center", "none"] = "center"
    resize: Annotated[int, Field(ge=1, le=8192)] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"] = "bilinear"

    @property
    def plain(self) -> bool:
        """Whether the model sees the pixels as they are, so that they stay bytes."""
        return self.scale == 1.0 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of one prepared picture."""
        height, width = self.size
        channels = _CHANNELS[self.color]
        return (channels, height, width) if self.layout == "NCHW" else (height, width, channels)


def read_preprocess(path: Path) -> Preprocess:
    """Read and check a `preprocess.toml`.

    Raises:
        DataError: where the file is missing, is not TOML, or has unknown keys or values; each is named.
    """
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read: {error}", f"It should hold, for example: {_EXAMPLE}."
        ) from error
    unknown = [key for key in keys if key not in Preprocess.model_fields]
    if unknown:
        raise DataError(f"{path}: unknown key {unknown[0]!r}", nearest(unknown[0], Preprocess.model_fields))
    for key in ("mean", "std"):
        if isinstance(keys.get(key), int | float):
            keys[key] = [keys[key]]
    try:
        preprocess = Preprocess.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}", f"For example: {_EXAMPLE}.") from error
    for key in ("mean", "std"):
        count = len(getattr(preprocess, key))
        if count not in (1, _CHANNELS[preprocess.color]):
            raise DataError(
                f"{path}: {key} has {count} numbers for the {_CHANNELS[preprocess.color]} channels of "
                f"{preprocess.color}",
                "Give one number, or one a channel, in the order of `color`.",
            )
    return preprocess


def find_preprocess(folder: Path) -> Path:
    """`preprocess.toml` in the folder, or beside it, up to two folders above.

    Raises:
        DataError: where there is none: a guess at mean and size would only look like a worse model.
    """
    absolute = folder.absolute()
    for place in (absolute, absolute.parent, absolute.parent.parent):
        if (place / FILE_NAME).is_file():
            return place / FILE_NAME
    raise DataError(
        f"no {FILE_NAME} in {folder} or the two folders above it",
        f"Write one that says how the model was trained, for example: {_EXAMPLE}.",
    )


def list_images(folder: Path) -> tuple[tuple[Path, ...], Array | None, tuple[str, ...]]:
    """The pictures of a folder, in a fixed order.

    Args:
        folder: `class_name/*.jpg|png`, or pictures directly in it for unlabelled data.

    Returns:
        Files; class numbers [n] int64 by the sorted folder names, or None where flat; the class names.

    Raises:
        DataError: where there is no picture, or some lie in class folders and others beside them.
    """
    flat = _pictures(folder)
    classes = {place.name: _pictures(place) for place in sorted(folder.iterdir()) if place.is_dir()}
    classes = {name: files for name, files in classes.items() if files}
    if flat and classes:
        raise DataError(
            f"{folder} holds pictures ({flat[0].name}) beside class folders ({next(iter(classes))})",
            "Either put all pictures in class folders, or all of them flat (unlabelled).",
        )
    if not flat and not classes:
        raise DataError(f"{folder} holds no pictures", f"Pictures end in {', '.join(sorted(SUFFIXES))}.")
    if flat:
        return tuple(flat), None, ()
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
    return tuple(file for files in classes.values() for file in files), labels, tuple(classes)


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


@dataclass(frozen=True)
class ImageColumn:
    """Rows that are decoded and prepared when they are read.

    Attributes:
        name: how the user knows it: the folder.
        files: one picture a row.
        preprocess: what is done to each.
    """

    name: str
    files: tuple[Path, ...]
    preprocess: Preprocess

    @property
    def dtype(self) -> np.dtype[Any]:
        """Bytes where the pixels stay as they are, else float32."""
        return np.dtype(np.uint8) if self.preprocess.plain else np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, ...] in the layout that the model wants."""
        return (len(self.files), *self.preprocess.row_shape)

    @contextmanager
    def open(self) -> Iterator[Take]:
        """A reader of any row numbers; raises `DataError` on a damaged picture."""
        require_pillow()
        yield self._take

    def _take(self, rows: IndexArray) -> Array:
        out = room(len(rows), self.preprocess.row_shape, self.dtype, f"pictures of {self.name}")
        for place, row in enumerate(rows):
            out[place] = _prepare(self.files[row], self.preprocess)
        return out


def require_pillow() -> None:
    """Raise a `DataError` with the line that installs Pillow where it is missing."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError("folders of images need Pillow", "pip install 'edgepress[images]'") from error


def _prepare(path: Path, how: Preprocess) -> Array:
    """One picture as the model sees it."""
    import PIL.Image

    try:
        # Pillow only warns of pictures that unpack to gigabytes; here that is an error.
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as image:
                pixels = _pixels(image, path, how)
    except DataError:
        raise
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {error}", "Scale the picture down first.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"picture {path} cannot be read: {error}", "Remove or replace the file.") from error
    if how.color == "BGR":
        pixels = pixels[..., ::-1]
    if not how.plain:
        scaled = pixels.astype(np.float32) * np.float32(how.scale) - np.asarray(how.mean, np.float32)
        pixels = scaled / np.asarray(how.std, np.float32)
    return pixels.transpose(2, 0, 1) if how.layout == "NCHW" else pixels


def _pixels(image: "Image", path: Path, how: Preprocess) -> Array:
    """[height, width, channels] bytes, resized and cropped."""
    import PIL.Image

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{path} has {width}×{height} pixels", "Scale the picture down first.")
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits a channel", "Convert it to 8 bits, or hand in an npz.")
    image = image.convert("L" if how.color == "L" else "RGB")
    wanted_height, wanted_width = how.size
    method = PIL.Image.Resampling[how.interpolation.upper()]
    if how.crop == "none":
        image = image.resize((wanted_width, wanted_height), method)
    else:
        cover = max(wanted_height / height, wanted_width / width)
        factor = cover if how.resize is None else max(cover, how.resize / min(width, height))
        scaled = (max(wanted_width, round(width * factor)), max(wanted_height, round(height * factor)))
        if scaled[0] * scaled[1] > MAX_PIXELS:
            raise DataError(f"{path} is too narrow to be cropped: {width}×{height} pixels", "Remove it.")
        if scaled != image.size:
            image = image.resize(scaled, method)
        left, top = (scaled[0] - wanted_width) // 2, (scaled[1] - wanted_height) // 2
        image = image.crop((left, top, left + wanted_width, top + wanted_height))
    pixels = np.asarray(image, np.uint8)
    return pixels.reshape(wanted_height, wanted_width, -1)

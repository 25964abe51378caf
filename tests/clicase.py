"""A small model with samples on disk, and the command line run in this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from edgepress.compressor.cli import main
from edgepress.compressor.model import to_proto


@dataclass(frozen=True)
class Outcome:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Case:
    """A folder with `model.onnx`, `calib.npz` and `test.npz`, and a way to run `compress` on them."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def run(self, *words: object) -> Outcome:
        """`compress WORDS`; nothing is added."""
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        said = self.capture.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, said.out, said.err)

    def compress(self, *words: object, **changed: object) -> Outcome:
        """The main job on this model with these samples, predicted for ARM, without TFLite, which costs a second.

        `data=None` leaves that option out.
        """
        options = {"data": self.folder / "calib.npz", "test": self.folder / "test.npz", "target": "arm"}
        options |= {"format": "onnx", "out": self.out, **changed}
        named = [word for name, value in options.items() if value for word in (f"--{name}", value)]
        return self.run(self.model, *named, *words)

    def samples(self, name: str, **arrays: Any) -> Path:
        """Write an npz file."""
        np.savez(self.folder / name, **arrays)
        return self.folder / name

    def load_samples(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """What an npz file of ours holds."""
        with np.load(self.folder / name) as file:
            return dict(file)

    def change_model(self, change: Callable[[onnx.ModelProto], object]) -> None:
        """Rewrite the model file with something wrong in it."""
        proto = onnx.load(self.model)
        change(proto)
        self.model.write_bytes(proto.SerializeToString())


def refused(told: Outcome, *words: str) -> None:
    """A user's mistake: exit 2, what is wrong and what to do, and these words among them."""
    assert told.code == 2, told
    assert "Traceback" not in told.err
    assert told.err.startswith("compress: ")
    assert told.err.count("\n") <= 2
    for word in words:
        assert word in told.err


def rows(seed: int, count: int) -> dict[str, Any]:
    """Inputs, and the original's own answers as labels."""
    x = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    return {"x": x, "y": models.run(models.mlp(32), {"x": x})["y"].argmax(1)}


def files_below(folder: Path) -> Sequence[str]:
    """Relative names of everything below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def make_case(folder: Path, capture: pytest.CaptureFixture[str]) -> Case:
    """Write the model and its samples."""
    case = Case(folder, capture)
    onnx.save(to_proto(models.mlp(32)), case.model)
    case.samples("calib.npz", **rows(1, 80))
    case.samples("test.npz", **rows(2, 60))
    return case


__all__ = ["Case", "Outcome", "files_below", "ir", "make_case", "rows"]

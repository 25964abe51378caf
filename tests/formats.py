"""Samples, and a look at the kernels that really run, for tests of number formats."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import models
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from edgepress.compressor.model import prefix, to_bytes
from edgepress.compressor.protocols import Array


@dataclass(frozen=True)
class Samples:
    """Runs the model on given feeds, in batches of 8; fits `passes.base.Stream`."""

    feeds: dict[str, npt.NDArray[np.generic]]

    def __call__(
        self, model: ir.Model, values: Sequence[str], original: Sequence[str] = ()
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        part = prefix(model, list(values))
        names = {v.name for v in part.graph.inputs}
        rows = len(next(iter(self.feeds.values())))
        for start in range(0, rows, 8):
            batch = {k: v[start : start + 8] for k, v in self.feeds.items() if k in names}
            yield models.run(part, batch), {}


def kernels(model: ir.Model, folder: Path) -> Counter[str]:
    """Operators that onnxruntime really runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimized.onnx").graph.node
    return Counter(n.op_type for n in nodes if n.op_type not in ("Transpose", "Reshape", "Flatten"))


def distance(one: ir.Model, other: ir.Model, feeds: dict[str, npt.NDArray[np.generic]]) -> float:
    """Largest relative distance of the outputs of two models."""
    a, b = models.run(one, feeds), models.run(other, feeds)
    return max(float(np.linalg.norm(a[k] - b[k]) / (np.linalg.norm(a[k]) + 1e-9)) for k in a)

"""The certificate: two files run on the same samples, and what is left of the one in the other.

Streamed: one batch is in memory at a time.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgepress.compressor.data import Batch
from edgepress.compressor.errors import DeviceError
from edgepress.compressor.export.tflite import Converted
from edgepress.compressor.export.tflite.grids import compare_grids, output_steps
from edgepress.compressor.protocols import Array, Feeds, Runner, TfliteEngine, TfliteRunner
from edgepress.compressor.report.tflite import Certificate, OutputParity, Tflite
from edgepress.compressor.scoring import cut


@dataclass
class _Tally:
    """One output so far."""

    elements: int = 0
    same: int = 0
    largest: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    rows: int = 0
    agreeing: int = 0

    def add(self, expected: Array, got: Array) -> None:
        same = expected == got
        if expected.dtype.kind == "f":
            same |= np.isnan(expected) & np.isnan(got)
        self.elements += expected.size
        self.same += int(np.count_nonzero(same))
        if not same.all():
            apart = np.abs(expected[~same].astype(np.float64) - got[~same].astype(np.float64))
            self.largest = max(self.largest, float(np.nan_to_num(apart, nan=np.inf).max()))
        finite = expected[np.isfinite(expected)] if expected.dtype.kind == "f" else expected
        if finite.size:
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        if _scores(expected):
            flat, other = (each.reshape(len(each), -1) for each in (expected, got))
            self.rows += len(flat)
            self.agreeing += int(np.count_nonzero(flat.argmax(1) == other.argmax(1)))

    def parity(self, name: str, step: float | None) -> OutputParity:
        """What it comes to."""
        width = self.high - self.low
        return OutputParity(
            name=name,
            elements=self.elements,
            identical_percent=100 * self.same / max(self.elements, 1),
            step=step,
            largest_steps=None if step is None else self.largest / step,
            largest_percent=100 * self.largest / width if width > 0 else None if self.largest else 0.0,
            same_class_percent=100 * self.agreeing / self.rows if self.rows else None,
        )


def _scores(output: Array) -> bool:
    """Whether each row is one vector of several scores."""
    return output.dtype.kind == "f" and output.ndim > 1 and 1 < output.shape[1] == output[:1].size


@dataclass
class Comparison:
    """Runs two models and keeps count of how their outputs differ.

    Attributes:
        expected: the first model.
        candidate: the second one; named inputs and outputs as the first has them.
        steps: output → step of the grid that it lies on.
        rows: counted so far.
        last: outputs of the second one for the latest batch.
    """

    expected: Runner
    candidate: TfliteRunner
    steps: Mapping[str, float]
    rows: int = 0
    last: Mapping[str, Array] = field(default_factory=dict)
    _tallies: dict[str, _Tally] = field(default_factory=dict)

    def run(self, batches: Iterable[Batch]) -> "Comparison":
        """Run both on all rows."""
        for _ in self.through(batches):
            pass
        return self

    def through(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Run both on each batch before it is handed on; `last` is then what the second one gave."""
        for batch in batches:
            self.last = self.candidate(batch.feeds)
            self.add(batch, self.expected(batch.feeds), self.last)
            yield batch

    def add(self, batch: Batch, expected: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Count one batch of outputs.

        Raises:
            DeviceError: they are not of one kind.
        """
        self.rows += len(batch.rows)
        theirs = cut(got, batch)
        for name, array in cut(expected, batch).items():
            other = theirs.get(name)
            if other is None or np.shape(other) != np.shape(array) or other.dtype != array.dtype:
                said = "nothing" if other is None else f"{other.dtype} {list(np.shape(other))}"
                raise DeviceError(
                    f"Output {name!r} is {array.dtype} {list(array.shape)} in ONNX, and {said} in TFLite.",
                    "Please report this model.",
                )
            self._tallies.setdefault(name, _Tally()).add(np.asarray(array), np.asarray(other))

    def outputs(self) -> tuple[OutputParity, ...]:
        """By output, in the first model's order."""
        return tuple(tally.parity(name, self.steps.get(name)) for name, tally in self._tallies.items())


def one_batch(feeds: Feeds) -> Batch:
    """Feeds that are no part of a dataset."""
    arrays = {name: np.asarray(array) for name, array in feeds.items()}
    rows = next((len(array) for array in arrays.values() if array.ndim), 1)
    return Batch(arrays, None, np.arange(rows))


def facts(converted: Converted) -> Tflite:
    """What a file holds, before anything has run it."""
    return Tflite(
        size_bytes=len(converted.data),
        operators=dict(converted.operators),
        transposes=converted.operators.get("TRANSPOSE", 0),
        notes=converted.notes,
    )


@dataclass
class Proof:
    """A TFLite file beside the ONNX file that it was made from, both ready to run.

    Attributes:
        model: the ONNX graph.
        converted: the TFLite file.
        engine: runs it.
        comparison: of the two.
    """

    model: ir.Model
    converted: Converted
    engine: TfliteEngine
    comparison: Comparison

    @classmethod
    def of(
        cls, model: ir.Model, converted: Converted, expected: Runner, engine: TfliteEngine, threads: int = 1
    ) -> "Proof":
        """Load the file; raises `DeviceError` where the engine refuses it.

        Args:
            model: the ONNX graph.
            converted: the TFLite file.
            expected: runs the ONNX graph.
            engine: runs TFLite files.
            threads: of the engine.
        """
        candidate = engine.load(converted.data, threads)
        return cls(model, converted, engine, Comparison(expected, candidate, output_steps(model)))

    def certificate(self, score: float | None = None, onnx_score: float | None = None) -> Certificate:
        """What the comparison came to, and the scales, read back from the file.

        Args:
            score: of the TFLite file on the test rows.
            onnx_score: of the ONNX file.
        """
        grids = compare_grids(self.model, self.converted.data)
        runner = self.comparison.candidate
        return Certificate(
            rows=self.comparison.rows,
            engine=f"{self.engine.name} {self.engine.version}",
            delegate=runner.delegate,
            partitions=runner.partitions,
            outside=None if runner.outside is None else dict(runner.outside),
            outputs=self.comparison.outputs(),
            grids=grids.count,
            own_grids=grids.own,
            differing=grids.differing,
            score=score,
            onnx_score=onnx_score,
        )

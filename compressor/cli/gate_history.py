"""What a gate remembers from run to run: drift against the last accepted candidate, and the trend."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgepress.compressor.budget import Budget
from edgepress.compressor.gate import drift
from edgepress.compressor.protocols import Matrix
from edgepress.compressor.report.gate import Criterion, Gate, Past
from edgepress.compressor.report.history import (
    SHOWN,
    append_history,
    last_accepted,
    packed,
    read_history,
    unpacked,
)
from edgepress.compressor.scoring import Metric


@dataclass
class Memory:
    """The history of a gate, and what of this run goes into it.

    Attributes:
        path: of the file.
        past: what was in it.
        test_sha256: of this run's samples.
        values: of the candidate's rows; None where they could not be had.
    """

    path: Path
    past: list[Past]
    test_sha256: str = ""
    values: Matrix | None = None

    @classmethod
    def of(cls, path: Path) -> "Memory":
        """Read the file; raises `UsageError` where it is damaged."""
        return cls(path, read_history(path))

    def drift(
        self, metric: Metric, candidate_sha256: str, budget: Budget, confidence: float
    ) -> Criterion | None:
        """The candidate against the last accepted one, or None: there is none that was scored alike, row by row."""
        last = last_accepted(self.past, metric.name, self.test_sha256)
        if self.values is None or last is None or last.right is None or packed(self.values) is None:
            return None
        before = unpacked(last.right, last.rows)
        if before is None or len(before) != len(self.values) or metric.finish(before) <= 0:
            return None
        return drift(
            metric, before, self.values, last.candidate_sha256 == candidate_sha256, budget, confidence
        )

    def add(self, gate: Gate) -> Gate:
        """Write this run's line, and give the record with the trend in it."""
        quality = next((each for each in gate.criteria if each.kind == "quality"), None)
        latency = next((each for each in gate.criteria if each.kind == "latency"), None)
        line = Past(
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            verdict=gate.verdict,
            accepted=gate.exit_code == 0,
            baseline_sha256=gate.baseline.sha256,
            candidate_sha256=gate.candidate.sha256,
            metric=gate.metric,
            rows=gate.rows,
            test_sha256=self.test_sha256,
            score=None if quality is None else quality.candidate,
            drop_percent=None if quality is None else quality.found,
            size_bytes=gate.candidate.size_bytes,
            latency_ratio=None if latency is None else latency.found,
            right=None if self.values is None else packed(self.values),
        )
        append_history(self.path, line)
        latest = [*self.past, line][-SHOWN:]
        return gate.model_copy(
            update={"history": tuple(each.model_copy(update={"right": None}) for each in latest)}
        )

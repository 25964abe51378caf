"""Options of `compress certify`, and the nets that it is about."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.certificate import File
from edgepress.compressor.certify.choose import METHODS
from edgepress.compressor.certify.program import Program, read
from edgepress.compressor.data import Dataset, open_data
from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import input_specs, load
from edgepress.compressor.normalize import normalize
from edgepress.compressor.protocols import Array
from edgepress.compressor.report import manifest as manifests

BATCH = 64


@dataclass(frozen=True)
class Options:
    """The command's options, by their names there."""

    model: Path
    candidate: Path | None
    given: str | None
    margin: float
    limit: tuple[float, bool] | None
    data: str | None
    method: str
    ranges: str
    arithmetic: str
    test: str | None
    near: float
    check: Path | None
    out: Path | None
    shapes: dict[str, tuple[int, ...]]
    seed: int
    as_json: bool
    quiet: bool

    def refuse_nonsense(self) -> None:
        """Refuse at once what cannot be served; raises `UsageError`."""
        if self.check is not None:
            if self.candidate is None:
                raise UsageError(
                    "--check without CANDIDATE.", "Name the model that the certificate is about, too."
                )
            return
        if self.given is None:
            raise UsageError(
                "Without --box nothing says which inputs there are.", "Add --box 0,1 or --box data.npz."
            )
        if self.candidate is None and (self.limit is None or self.out is None):
            raise UsageError("Without CANDIDATE, --limit and --out are needed.", "Add --limit 1% --out DIR.")
        if self.limit is not None and self.limit[1] and self.data is None:
            raise UsageError(
                "--limit in % without --data.", "Give samples with --data, or the limit as a number."
            )
        if self.ranges == "observed" and self.candidate is not None:
            raise UsageError(
                "--ranges observed is for choosing weights.", "Leave it out, or leave CANDIDATE out."
            )
        if self.ranges == "observed" and self.data is None:
            raise UsageError("--ranges observed without --data.", "Give samples with --data.")
        if self.ranges == "observed" and self.arithmetic == "float32":
            raise UsageError("--arithmetic float32 is about proofs.", "Leave it out with --ranges observed.")

    @property
    def tight(self) -> bool:
        """Whether linear forms are used."""
        return METHODS[self.method].backward


@dataclass(frozen=True, eq=False)
class Net:
    """A model file and what bounds are worked out on."""

    path: Path
    source: ir.Model
    canonical: ir.Model
    program: Program

    @classmethod
    def of(cls, path: Path, shapes: dict[str, tuple[int, ...]]) -> "Net":
        """Load, normalise and read; raises `ModelError` where an operator is not covered."""
        source = load(path, shapes or None)
        canonical = normalize(source).model
        return cls(path, source, canonical, read(canonical))

    @property
    def file(self) -> File:
        """As the certificate names it."""
        return File(name=self.path.name, sha256=manifests.sha256_file(self.path))

    def rows(self, data: Dataset) -> Iterator[Array]:
        """Inputs, a batch at a time."""
        for batch in data.batches(BATCH, with_labels=False):
            yield batch.feeds[self.program.input][: len(batch.rows)].astype(np.float64)

    def samples(self, where: str | None) -> Dataset | None:
        """Samples, if some are named."""
        return None if where is None else open_data(where, input_specs(self.source))

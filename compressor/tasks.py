"""What a search has done for it, piece by piece: each piece is the same wherever it is done (`workers.py`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from pydantic import TypeAdapter

from edgepress.compressor.allocate import Knob
from edgepress.compressor.cost import Shapes
from edgepress.compressor.export.onnx import save
from edgepress.compressor.knobs import TRIAL_ERRORS
from edgepress.compressor.options import Gauge, Options, collect
from edgepress.compressor.passes import Pass
from edgepress.compressor.passes.base import Skipped
from edgepress.compressor.recipe import digest
from edgepress.compressor.serialize import Serialized, parse, serialize
from edgepress.compressor.tails import hardly_faster
from edgepress.compressor.trials import Judge, Task, Trials

__all__ = ["Built", "Final", "Harm", "Judge", "Measure", "Slow", "Task", "gauge_of"]

_KNOB = TypeAdapter(Knob | None)


def gauge_of(trials: Trials, multiple: int, errors: Sequence[float], indices: bool = True) -> Gauge:
    """What measures knobs in these trials; the same one each time.

    Args:
        trials: of the model.
        multiple: widths and ranks are multiples of this.
        errors: local errors near which each knob is tried.
        indices: whether few bits may be indices.
    """
    context = trials.folds[0].context
    key = ("gauge", multiple, tuple(errors), indices)
    found = context.memo.get(key)
    if not isinstance(found, Gauge):
        found = Gauge(trials.original, context, trials.shown, multiple, errors, indices)
        context.memo[key] = found
    return found


@dataclass(frozen=True)
class Measure(Task):
    """Measure a knob.

    Attributes:
        kind: of the knob.
        name: of its group or site.
        multiple: as for `gauge_of`.
        errors: likewise.
        indices: likewise.
    """

    kind: str
    name: str
    multiple: int
    errors: tuple[float, ...]
    indices: bool = True
    optional = True
    stage = "options"

    @property
    def label(self) -> str:
        """The name."""
        return self.name

    @property
    def key(self) -> str:
        """By all of it."""
        return f"measure {self.kind} {self.name} {self.multiple} {self.errors} {self.indices}"

    def do(self, trials: Trials) -> Knob | None:
        """The knob, or None where it has no strength worth offering."""
        return gauge_of(trials, self.multiple, self.errors, self.indices)((self.kind, self.name))

    def pack(self, result: Knob | None) -> Any:
        """A table."""
        return _KNOB.dump_python(result, mode="json")

    def unpack(self, packed: Any) -> Knob | None:
        """The knob again."""
        return _KNOB.validate_python(packed)


@dataclass(frozen=True)
class Harm(Task):
    """See how far one pass alone moves the outputs.

    Attributes:
        site: where it acts.
        step: the pass.
    """

    site: str
    step: Pass
    optional = True
    stage = "precision"

    @property
    def label(self) -> str:
        """The site."""
        return self.site

    @property
    def key(self) -> str:
        """By the pass."""
        return f"harm {digest((self.step,))}"

    def do(self, trials: Trials) -> float:
        """As `Trials.alone` measures it."""
        return trials.alone(self.step)[1]


def collect_with(trials: Trials, shapes: Shapes, multiple: int, indices: bool = True) -> Options:
    """Every knob of the model, measured by whoever does these trials' work.

    Args:
        trials: of the model; where runs are dear, one trial a knob must do.
        shapes: observed for a batch of one.
        multiple: as for `gauge_of`.
        indices: likewise.
    """
    errors = TRIAL_ERRORS[1:2] if trials.dear else TRIAL_ERRORS
    return collect(
        gauge_of(trials, multiple, errors, indices),
        shapes,
        lambda jobs: trials.results([Measure(*job, multiple, errors, indices) for job in jobs]),
    )


def harms(trials: Trials, names: Sequence[str], alone: Callable[[str], Pass]) -> dict[str, float | None]:
    """How far a pass at each site alone moves the outputs, by site; None where time was over.

    Args:
        trials: of the model.
        names: of sites.
        alone: gives the pass of one.
    """
    return dict(zip(names, trials.results([Harm(name, alone(name)) for name in names]), strict=True))


def most_harmed(trials: Trials, names: Sequence[str], alone: Callable[[str], Pass]) -> list[str]:
    """Sites by how far a pass there moves the outputs, worst first; as for `harms`."""
    found = harms(trials, names, alone)
    return sorted(names, key=lambda name: -(found[name] or 0.0))


@dataclass(frozen=True)
class Slow(Task):
    """Find the sites where 8-bit arithmetic can hardly pay.

    Attributes:
        recipe: what makes the structure.
        shapes: observed for a batch of one.
    """

    recipe: tuple[Pass, ...]
    shapes: Mapping[str, tuple[int, ...]]
    home = 0

    def do(self, trials: Trials) -> list[str]:
        """Their names."""
        structure = trials.built(self.recipe, trials.folds[0])
        return hardly_faster(structure, self.shapes, trials.setup.target)


@dataclass(frozen=True)
class Built(Task):
    """Build what a recipe makes from the samples of the first fold.

    Attributes:
        recipe: of the model.
    """

    recipe: tuple[Pass, ...]
    home = 0

    def do(self, trials: Trials) -> Serialized:
        """The file, as it would be exported."""
        return save(trials.built(self.recipe, trials.folds[0]))


@dataclass(frozen=True)
class Final(Task):
    """Build what a recipe makes from all samples.

    Attributes:
        recipe: of the model.
        stage: under which its end is told.
        optional: whether it may be left out when time is over.
    """

    recipe: tuple[Pass, ...]
    stage: str = "fit"
    optional: bool = False

    def do(self, trials: Trials) -> tuple[ir.Model, Serialized, tuple[Skipped, ...]]:
        """The model, the file as it would be exported, and the sites that were left alone on the way."""
        model, skipped = trials.final(self.recipe)
        return model, save(model), tuple(skipped)

    def pack(self, result: tuple[ir.Model, Serialized, tuple[Skipped, ...]]) -> Any:
        """The model as engines load it."""
        return serialize(result[0]), *result[1:]

    def unpack(self, packed: Any) -> tuple[ir.Model, Serialized, tuple[Skipped, ...]]:
        """The model again."""
        return parse(packed[0]), *packed[1:]

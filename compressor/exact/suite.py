"""The whole test of a device: networks × kinds of operators × precisions × file formats, run by whoever can."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.exact import cases, constructions, known
from edgepress.compressor.exact.cases import Case
from edgepress.compressor.exact.judge import Judgement, judge
from edgepress.compressor.exact.models import (
    FLOAT32_BITS,
    FORMS,
    ExactModel,
    Form,
    Precision,
    build,
    build_sparse,
)
from edgepress.compressor.exact.networks import ExactNet
from edgepress.compressor.export.tflite.convert import convert
from edgepress.compressor.protocols import Array, Feeds, Kernel
from edgepress.compressor.serialize import parse

FORMATS = ("onnx", "tflite", "sparse")

MOST_WEIGHTS = 5_000_000
"""Of networks that are written as they are; larger ones go to the sparse engine alone, which leaves out the zeros."""

PAIRS, BRIEF_PAIRS = 60, 12
"""Of a category and a feature that is changed, a network."""

BRIEF_EXTRA = 1
"""As `cases.EXTRA_ROWS`."""

TOGETHER = 1 << 24
"""Values that models give which go to the device at once: a process starts there, and answers lie in memory."""

MOST_IMAGES = 100
"""Images of which a network is made; more would make it no stricter."""


@dataclass(frozen=True)
class Ran:
    """What a device gave.

    Attributes:
        outputs: name → array.
        kernels: that ran; None where its engine does not tell.
    """

    outputs: Mapping[str, Array]
    kernels: Sequence[Kernel] | None = None


@dataclass(frozen=True)
class Refusal:
    """A model that the device did not run.

    Attributes:
        why: what its engine says.
        died: whether its process was ended over it: then that is no lack but a fault.
    """

    why: str
    died: bool = False


@dataclass(frozen=True)
class Trial:
    """One model on its rows.

    Attributes:
        case: network, rows and precision.
        form: kind of operators.
        format: of the file, one of `FORMATS`.
    """

    case: Case
    form: Form
    format: str

    def made(self) -> tuple[ExactModel, bytes]:
        """The model, and the file that goes to the device; raises `EdgepressError` where there is no such file."""
        case = self.case
        if self.format == "sparse":
            model = build_sparse(case.net, case.precision, case.biases, case.steps)
            return model, model.data
        lite = self.format == "tflite"
        model = build(case.net, self.form, case.precision, case.biases, case.steps, newest=lite)
        return model, convert(parse(model.data)).data if lite else model.data


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        trial: what was run.
        found: a judgement, or a refusal.
        kernels: as of `Ran`.
    """

    trial: Trial
    found: Judgement | Refusal
    kernels: Sequence[Kernel] | None = None

    @property
    def right(self) -> bool:
        """Whether nothing is wrong; what was refused is not wrong, unless its process died."""
        return not self.found.died if isinstance(self.found, Refusal) else self.found.right


Run = Callable[[Sequence[bytes], Sequence[Feeds]], Sequence[Ran | Refusal]]
"""Runs files, each on its feeds."""


def networks(*, quick: bool, images: npt.NDArray[np.floating] | None = None) -> list[ExactNet]:
    """Networks to test with.

    Args:
        quick: a few small ones.
        images: [images, height, width] from 0 to 1, for figure 3; None: drawn digits. Raises `DataError` as
            `constructions.from_images` does.
    """
    pictures = (
        constructions.from_images("digits", known.digits())
        if images is None
        else constructions.from_images("images", images[:MOST_IMAGES])
    )
    if quick:
        return [constructions.words(2, 1), constructions.words(4, 3, 40), pictures]
    sets = [[f"{place}{letter}" for letter in "abc"] for place in range(1, 5)]
    return [
        *(constructions.words(*each) for each in known.WINDOWS),
        constructions.combinatoric(sets),
        constructions.combinatoric(sets, deep=False),
        pictures,
        constructions.deep(2, 100),
        constructions.deep(198, 100),
    ]


def trials(
    nets: Sequence[ExactNet], precisions: Sequence[Precision], formats: Sequence[str], *, brief: bool
) -> list[Trial]:
    """All that is to be run.

    Args:
        nets: networks.
        precisions: of kernels.
        formats: of files, of `FORMATS`.
        brief: with fewer rows: every one still fires every neuron's ones, but not every weight is seen to be 0.
    """
    found = []
    extra, pairs = (BRIEF_EXTRA, BRIEF_PAIRS) if brief else (cases.EXTRA_ROWS, PAIRS)
    for net in nets:
        large = sum(math.prod(each.shape) for each in net.weights) > MOST_WEIGHTS
        for precision in precisions:
            kinds = [(name, form) for name in formats for form in _forms(name, precision, large=large)]
            if not kinds:
                continue
            rows = (
                cases.answers(net, precision, 0 if large else extra),
                cases.changed(net, precision, pairs),
            )
            found += [Trial(case, form, name) for case in rows if case is not None for name, form in kinds]
    return found


def _forms(name: str, precision: Precision, *, large: bool) -> Sequence[Form]:
    """Kinds of operators that a file format has, in a precision.

    A product in TFLite is the same operator however ONNX writes it: one form is enough. The sparse engine is float32.
    Weights in blocks are onnxruntime's, for products alone.
    """
    if precision.block_bits:
        return ("matmul",) if name == "onnx" and not large else ()
    if name == "sparse":
        return ("sparse",) if precision.float_bits == FLOAT32_BITS else ()
    return [] if large else [each for each in FORMS if name == "onnx" or each != "matmul"]


def outcomes(todo: Sequence[Trial], run: Run, together: int = TOGETHER) -> Iterator[Outcome]:
    """Make, run and judge models, some at once; one a trial, in order, as they come.

    Args:
        todo: what to run.
        run: by whom.
        together: values that models give which go there at once; one model at least.
    """
    for batch in _batches(todo, together):
        made: list[tuple[Trial, ExactModel, bytes]] = []
        left: dict[int, Outcome] = {}
        for place, trial in enumerate(batch):
            try:
                made.append((trial, *trial.made()))
            except EdgepressError as error:
                left[place] = Outcome(trial, Refusal(str(error)))
        feeds = _feeds(made)
        answers = iter(run([file for _, _, file in made], feeds) if made else [])
        rest = iter(made)
        for place in range(len(batch)):
            if place in left:
                yield left[place]
                continue
            trial, model, _ = next(rest)
            answer = next(answers)
            if isinstance(answer, Refusal):
                yield Outcome(trial, answer)
            else:
                yield Outcome(trial, _judged(trial.case, model, answer.outputs), answer.kernels)


def _batches(todo: Sequence[Trial], together: int) -> Iterator[list[Trial]]:
    """Trials in order, in parts."""
    batch: list[Trial] = []
    total = 0
    for trial in todo:
        values = len(trial.case.rows) * trial.case.net.neurons
        if batch and total + values > together:
            yield batch
            batch, total = [], 0
        batch.append(trial)
        total += values
    if batch:
        yield batch


def _feeds(made: Sequence[tuple[Trial, ExactModel, bytes]]) -> list[Feeds]:
    """Feeds of each; equal ones are one object, which travels once."""
    known_feeds: dict[tuple[Any, ...], Feeds] = {}
    found = []
    for trial, model, _ in made:
        key = (id(trial.case), trial.form == "conv")
        if key not in known_feeds:
            known_feeds[key] = model.feeds(trial.case.rows)
        found.append(known_feeds[key])
    return found


def _judged(case: Case, model: ExactModel, answer: Mapping[str, Array]) -> Judgement | Refusal:
    sizes = {f"y{place + 1}": each.shape[0] for place, each in enumerate(case.net.weights)}
    if model.form == "sparse":
        sizes = dict(list(sizes.items())[-1:])
    wrong = [
        name
        for name, size in sizes.items()
        if name not in answer or np.size(answer[name]) != len(case.rows) * size
    ]
    if wrong:
        return Refusal(f"it gave no {wrong[0]} of {len(case.rows)} rows", died=True)
    return judge(case, model, {name: np.asarray(answer[name]) for name in sizes})

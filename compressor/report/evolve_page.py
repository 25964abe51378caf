"""The page of a training: learning curves, what evolved when, and how many connections neurons have."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgepress.compressor.report import embed, html, plots, words
from edgepress.compressor.report.evolve import Degrees, Evolved, dump


@dataclass(frozen=True)
class Line:
    """One curve of a plot.

    Attributes:
        label: what it is.
        points: places (x, y) in [0, 1], from left to right.
        dots: whether points are drawn singly, not joined.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False


@dataclass(frozen=True)
class Curve:
    """Curves over one axis.

    Attributes:
        title: of the horizontal axis.
        of: what the vertical one shows.
        lines: the curves.
        x_ticks: marks on the horizontal axis.
        y_ticks: on the vertical one.
        text: the plot in words, for those who cannot see it.
    """

    title: str
    of: str
    lines: tuple[Line, ...]
    x_ticks: tuple[plots.Tick, ...]
    y_ticks: tuple[plots.Tick, ...]
    text: str
    width: int = plots.WIDTH
    height: int = plots.HEIGHT


def render(record: Evolved) -> str:
    """The page as text; equal records give equal pages.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    return html.template("evolve.html", "report.html").render(
        found=record,
        headline=headline(record),
        curves=curves(record),
        distributions=[plot for each in record.degrees if (plot := distribution(each)) is not None],
        record=list(embed.lines(json.loads(dump(record)))),
        quantity=words.quantity,
        number=words.number,
        said=degrees_text,
    )


def headline(record: Evolved) -> str:
    """What came of it, in one sentence."""
    right, weights = (
        f"{record.test_accuracy:.2f} % of the test rows right",
        words.quantity(record.weights, "count"),
    )
    if record.method == "dense":
        return f"{right} with all {weights} weights"
    return f"{right} with {weights} weights, {words.number(record.compression)}× fewer than all"


def curves(record: Evolved) -> list[Curve]:
    """Loss, accuracy, ζ and seconds by epoch; none where there is one epoch only."""
    rows = record.epochs
    found = (
        _by_epoch(
            record, "test accuracy", "accuracy", [row.accuracy for row in rows], lambda v: f"{v:.6g} %"
        ),
        _by_epoch(record, "training loss", "loss", [row.loss for row in rows], lambda v: f"{v:.6g}"),
        _by_epoch(record, "share ζ that evolved", "zeta", [row.zeta for row in rows], lambda v: f"{v:.6g}"),
        _by_epoch(
            record, "seconds an epoch", "seconds", [row.seconds for row in rows], lambda v: f"{v:.6g} s"
        ),
    )
    return [curve for curve in found if curve is not None]


def _by_epoch(
    record: Evolved, of: str, label: str, values: Sequence[float | None], tell: Callable[[float], str]
) -> Curve | None:
    known = [
        (float(row.number), value)
        for row, value in zip(record.epochs, values, strict=True)
        if value is not None and abs(value) < plots.LARGEST
    ]
    if len(known) < 2:
        return None
    x_at, x_ticks = plots.axis([x for x, _ in known])
    y_at, y_ticks = plots.axis([y for _, y in known])
    return Curve(
        "epoch",
        of,
        (Line(label, tuple((x_at(x), y_at(y)) for x, y in known)),),
        tuple(plots.Tick(x_at(tick), f"{tick:.6g}") for tick in x_ticks if tick.is_integer()),
        tuple(plots.Tick(y_at(tick), tell(tick)) for tick in y_ticks),
        f"From {tell(known[0][1])} in epoch 1 to {tell(known[-1][1])} in epoch {known[-1][0]:.0f}.",
    )


def distribution(found: Degrees) -> Curve | None:
    """Neurons with at least k connections over k, both axes by ratio: a power law is a straight line there."""
    pairs = [(k, n) for k, n in zip(found.degree, found.neurons, strict=True) if k > 0]
    if len(pairs) < 2:
        return None
    left = sum(n for _, n in pairs)
    points = []
    for k, n in pairs:
        points.append((float(k), float(left)))
        left -= n
    x_at, x_ticks = plots.ratio_axis([x for x, _ in points])
    y_at, y_ticks = plots.ratio_axis([y for _, y in points])
    return Curve(
        f"connections of {found.side} of layer {found.layer}",
        "neurons with so many or more",
        (Line("seen", tuple((x_at(x), y_at(y)) for x, y in points), dots=True),),
        tuple(plots.Tick(x_at(tick), f"{tick:.6g}") for tick in x_ticks),
        tuple(plots.Tick(y_at(tick), f"{tick:.6g}") for tick in y_ticks),
        degrees_text(found),
    )


def degrees_text(found: Degrees) -> str:
    """Whether a distribution is scale-free, in words."""
    where = f"{found.side.capitalize()} of layer {found.layer}"
    if found.minimum is None or found.exponent is None or found.p is None:
        return f"{where}: too few neurons differ to tell."
    tail = f"among the {found.tail} neurons with {found.minimum} connections or more"
    chance = "less than 0.001" if found.p < 0.001 else words.number(found.p, 2)
    if found.verdict == "power law":
        return (
            f"{where}: {tail}, a power law with exponent {words.number(found.exponent)} fits better than an "
            f"exponential tail (p {chance}): scale-free."
        )
    if found.verdict == "exponential":
        return (
            f"{where}: {tail}, an exponential tail fits better than a power law (p {chance}): not scale-free."
        )
    return f"{where}: {tail}, neither a power law nor an exponential tail fits better (p {chance})."

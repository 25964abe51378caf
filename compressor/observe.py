"""What flows through a net: values, shapes and moments, streamed batch by batch in bounded memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.compare import log_probabilities
from edgepress.compressor.context import Context
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.protocols import Array, Engine, Feeds, Runner
from edgepress.compressor.serialize import serialize_prefix
from edgepress.compressor.sites import Site, sampled_rows

ROWS_OF_MOMENTS = 8_000
"""Rows of X (samples × positions) that second moments are taken from; more change little (FINDINGS)."""

LEAST_ROWS = 2_000
"""The same of a grouped Conv, whose rows are short: so many, or `ROWS_A_COLUMN` for each input of a group."""

ROWS_A_COLUMN = 16

WIDEST = 2560
"""Inputs (channels × taps) of a site up to which second moments of the inputs are kept: they take inputs² × 8 bytes,
several times over. A wider site is not refitted, what it reads does not shrink; few bits see its inputs in parts."""

MOST_PAIRS = 1 << 25
"""Inputs × outputs of a site up to which their products are summed, 8 bytes each, several times over; beyond, a site is
treated as a wide one is."""

HELD_EVERY = 5
"""Every fifth sample is held out where a ridge strength is chosen."""

MOMENTS_BYTES = 128 << 20
"""The last moments are remembered up to this sum, and at least those of one site: what follows often is its, too."""

TARGETS = "targets"
"""Key of `Context.memo`: the original's outputs at the sampled rows, by value; kept where the dictionary is there.
They hang on where a walk was cut, in the last bits; what is shipped must not hang on what was tried before."""

TARGET_BYTES = 32 << 20
"""The sum of all in `TARGETS` of one context."""

KEPT = "edgepress.kept"
"""Key of `ir.Value.meta`: which channels of the original's value of the same name this value still has."""


NEW = "edgepress.new"
"""Key of `ir.Value.meta`: set where the original has no value of this name to compare with."""


def restructured(model: ir.Model) -> bool:
    """Whether a pass took channels out of a value or put one in: what is remembered does not hold."""
    return any(KEPT in v.meta or NEW in v.meta for node in model.graph for v in node.outputs)


def kept_channels(value: ir.Value, count: int) -> Array:
    """Indices of the original's channels that a value with `count` channels has."""
    kept = value.meta.get(KEPT)
    return np.arange(count) if kept is None else np.asarray(kept)


@dataclass(frozen=True)
class Streamer:
    """Runs the current and the original model side by side on calibration batches; fits `passes.base.Stream`.

    Attributes:
        engine: loads models.
        original: the normalised original.
        batches: a fresh iterator over the batches of feeds at each call.
        threads: threads of the engine.
    """

    engine: Engine
    original: ir.Model
    batches: Callable[[], Iterator[Feeds]]
    threads: int = 1

    def __call__(
        self, model: ir.Model, values: Sequence[str], original: Sequence[str] = ()
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Yield (values of `model`, values of the original) for each batch."""
        names, paired = tuple(dict.fromkeys(values)), tuple(dict.fromkeys(original))
        now = self._runner(model, names) if names else None
        then = self._runner(self.original, paired) if paired else None
        for feeds in self.batches():
            yield (now(feeds) if now else {}), (then(feeds) if then else {})

    def _runner(self, model: ir.Model, names: tuple[str, ...]) -> Runner:
        return self.engine.load(serialize_prefix(model, names), self.threads)


def inputs_of(site: Site) -> int:
    """Columns of a site's matrix: inputs × taps, of one group."""
    return site.macs_per_position // max(int(site.weight.shape[site.out_axis]), 1)


def wide(site: Site) -> bool:
    """Whether a site has more inputs than second moments are kept of."""
    return inputs_of(site) > WIDEST


def unfittable(site: Site) -> str | None:
    """Why what a site reads and gives is too much for second moments of both, or None."""
    if wide(site):
        return f"it has over {WIDEST} inputs"
    return f"it has over {MOST_PAIRS} weights" if inputs_of(site) * site.outputs > MOST_PAIRS else None


def own_moments(model: ir.Model, site: Site, context: Context) -> tuple[Moments, Moments]:
    """`site_moments`, unpaired; of the model before any pass, the last few are remembered in the context."""
    if restructured(model):
        return site_moments(model, site, context)
    key = ("moments", site.name)
    found = context.memo.get(key)
    if not isinstance(found, tuple):
        found = site_moments(model, site, context)
        remembered = {
            k: kept for k, kept in list(context.memo.items()) if isinstance(k, tuple) and k[0] == "moments"
        }
        size = found[0].nbytes + found[1].nbytes
        for old, kept in reversed(remembered.items()):
            size += sum(m.nbytes for m in kept) if isinstance(kept, tuple) else 0
            if size > MOMENTS_BYTES:
                context.memo.pop(old, None)
        context.memo[key] = found
    return found


def site_moments(
    model: ir.Model, site: Site, context: Context, *, paired: bool = False
) -> tuple[Moments, Moments]:
    """Moments of a dense site's inputs (im2col) and outputs.

    Args:
        model: the current model, which holds `site`.
        site: a dense site.
        context: with a stream.
        paired: take the outputs from the original model, at the same rows and positions.

    Returns:
        Moments of four fifths of the samples, and of the fifth that is held out. Those of a MatMul, which has
        no bias to take up a mean, are about zero. Of a site that is wider than `WIDEST` they hold Y alone.
    """
    inputs = 0 if wide(site) else site.matrix().shape[1]
    fit, held = (Moments(inputs, site.outputs, about_zero=site.bias_index is None) for _ in range(2))
    kept = kept_channels(site.y, site.outputs) if paired and KEPT in site.y.meta else slice(None)
    name = site.y.name or ""
    targets = (_remembered(context) or {}).get(name) if paired else None
    fresh: list[Array] = []
    for part, rows, found in _rows(model, site, context, paired=paired, known=targets is not None):
        outputs = found if targets is None else targets[len(fresh)]
        fresh.append(outputs)
        (held if part else fit).update(rows[:, :inputs], outputs[:, kept])
    if paired and targets is None:
        _remember(name, context, fresh)
    return fit, held


def group_moments(
    model: ir.Model, site: Site, context: Context, *, outputs: bool = False, paired: bool = False
) -> tuple[tuple[Moments, ...], tuple[Moments, ...]] | None:
    """Moments of the inputs (im2col) of each group of a Conv, as `site_moments` parts them.

    Args:
        model: the current model, which holds `site`.
        site: a Conv, of any number of groups.
        context: with a stream.
        outputs: those of the outputs, too.
        paired: which are the original's.

    Returns:
        None where all of them together take more than those of the widest dense site.
    """
    width = math.prod(site.weight.shape[1:])
    if site.groups * width**2 > WIDEST**2:
        return None
    count = site.outputs // site.groups if outputs else 0
    fit, held = (tuple(Moments(width, count) for _ in range(site.groups)) for _ in range(2))
    kept = kept_channels(site.y, site.outputs) if paired else slice(None)
    most = min(ROWS_OF_MOMENTS, max(LEAST_ROWS, ROWS_A_COLUMN * width))
    for part, rows, found in _rows(model, site, context, paired=paired, known=not outputs, most=most):
        x = rows.reshape(len(rows), site.groups, width)
        y = found[:, kept].reshape(len(rows), site.groups, count) if outputs else x[:, :, :0]
        for group, each in enumerate(held if part else fit):
            each.update(x[:, group], y[:, group])
    return fit, held


def output_moments(model: ir.Model, site: Site, context: Context) -> Moments:
    """Moments of the outputs alone, channels on the second axis.

    Args:
        model: the current model, which holds `site`.
        site: a Conv or ConvTranspose.
        context: with a stream.
    """
    if context.stream is None:
        raise ValueError("rows need samples")
    rng, name = context.rng(), site.y.name or ""
    per_sample = max(1.0, ROWS_OF_MOMENTS / max(context.rows, 1))
    found = Moments(0, site.outputs)
    for now, _ in context.stream(model, [name]):
        y = np.moveaxis(now[name], 1, -1).reshape(-1, site.outputs)
        limit = max(1, int(per_sample * len(now[name])))
        some = y if len(y) <= limit else y[np.sort(rng.choice(len(y), limit, replace=False))]
        found.update(some[:, :0], some)
    return found


def _rows(
    model: ir.Model, site: Site, context: Context, *, paired: bool, known: bool, most: int = ROWS_OF_MOMENTS
) -> Iterator[tuple[bool, Array, Array]]:
    """Rows of X and of Y, part by part, always the same ones: (held out?, X, Y).

    With `known`, nothing is run for Y, and X stands in its place.
    """
    if context.stream is None:
        raise ValueError("rows need samples")
    draw, y_name = Draw(site, context, most), site.y.name or ""
    names = [draw.x_name] if paired or known else [draw.x_name, y_name]
    for now, then in context.stream(model, names, [y_name] if paired and not known else []):
        yield from draw(now[draw.x_name], None if known else (then if paired else now)[y_name])


class Draw:
    """Draws rows of one site's inputs and outputs, batch after batch."""

    def __init__(self, site: Site, context: Context, most: int = ROWS_OF_MOMENTS) -> None:
        self.site, self.x_name = site, site.x.name or ""
        self._rng, self._seen = context.rng(), 0
        self._per_sample = max(1.0, most / max(context.rows, 1))

    def __call__(self, x: Array, y: Array | None = None) -> Iterator[tuple[bool, Array, Array]]:
        """(held out?, X, Y) of one batch, X twice where there is no Y."""
        chosen = (self._seen + np.arange(len(x))) % HELD_EVERY == HELD_EVERY - 1
        self._seen += len(x)
        for is_held, part in ((False, ~chosen), (True, chosen)):
            if part.any():
                limit = max(1, int(self._per_sample * int(part.sum())))
                given = [] if y is None else [y[part]]
                rows, *outputs = sampled_rows(self.site, x[part], given, limit, self._rng)
                yield is_held, rows, outputs[0] if outputs else rows


def _remembered(context: Context) -> dict[str, list[Array]] | None:
    """The original's outputs at the rows that `_rows` draws, by value; None where they are not kept."""
    found = context.memo.get(TARGETS)
    return found if isinstance(found, dict) else None


def _remember(name: str, context: Context, found: list[Array]) -> None:
    targets = _remembered(context)
    if targets is not None:
        taken = sum(array.nbytes for arrays in (found, *targets.values()) for array in arrays)
        if taken <= TARGET_BYTES:
            targets[name] = found


def output_names(model: ir.Model) -> list[str]:
    """Names of the graph outputs."""
    return [v.name or "" for v in model.graph.outputs]


def distance(model: ir.Model, context: Context) -> float:
    """How far a model's outputs are from the original's on the samples: of the worst of them.

    That is the mean KL divergence of class scores [rows, classes], else the squared error over what the output varies.

    Args:
        model: a changed model.
        context: with a stream.
    """
    if context.stream is None:
        raise ValueError("outputs need samples")
    names = output_names(model)
    sums = {name: np.zeros(4) for name in names}
    for now, then in context.stream(model, names, names):
        for name in names:
            if getattr(then[name], "dtype", np.dtype(object)).kind not in "fbiu":  # texts, sequences, maps
                continue
            a, b = now[name].astype(np.float64), then[name].astype(np.float64)
            if a.shape != b.shape:  # other boxes: all that there was is lost
                sums[name] += (b**2).sum(), b.sum(), (b**2).sum(), b.size
            elif b.ndim == 2 and b.shape[1] > 1:
                p, q = log_probabilities(b), log_probabilities(a)
                sums[name] += (np.exp(p) * (p - q)).sum(), 0, len(b), 1
            else:
                sums[name] += ((a - b) ** 2).sum(), b.sum(), (b**2).sum(), b.size
    worst = 0.0
    for moved, total, squares, count in sums.values():
        spread = squares - total**2 / max(count, 1)
        worst = max(worst, moved / (spread if spread > 0 else 1.0))
    return float(worst)

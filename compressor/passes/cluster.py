"""Weight sharing: few values, which many weights share, and for each weight the index of its own (Çallı 2017 §1.3.2).

    w = s · b[c]        c of 1 to 8 bits, b a codebook of 2^bits floats, s a scale for each output channel

or w = b[c] with a codebook for each output channel, or with one for all where rows are short.

Indices are packed, and taken apart and looked up by nodes that every runtime works out once, at load: what is left at
run time is the weight as the kernel wants it. Where `store` spaces its values evenly, these lie where weights are, so
fewer bits do. Codebooks are those of k-means, refined where there are samples (numerics/codebook.py). A pruned weight
keeps its zeros: one of the values is theirs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.codebook import Books, Codes, codebooks, keeps_zeros, refine
from edgepress.compressor.numerics.packing import MOST_PACKED_BITS, stored_bytes
from edgepress.compressor.numerics.rounding import Seen, power
from edgepress.compressor.observe import wide
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns, site_name
from edgepress.compressor.passes.calibrate import correct_bias
from edgepress.compressor.passes.constants import BROADCAST_OPSET, UNPACKING_OPSET, Constants
from edgepress.compressor.passes.integer_forms import raise_opset
from edgepress.compressor.passes.layout import Stored, scale_shape
from edgepress.compressor.passes.rounding import in_layout, inputs_in_turn
from edgepress.compressor.passes.store import (
    OVERHEAD,
    choose,
    correctable,
    left_alone,
    mean_inputs,
    replace_value,
    scaled_at_load,
)
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import Site, constant, find_sites

ROW_BYTES = 4
"""What a channel's scale takes, or where its codebook begins."""

SCALE_OVERHEAD = 100
"""Bytes of what multiplies by scales."""


@dataclass(frozen=True)
class Layout:
    """What the channels of a weight have of their own.

    Attributes:
        shape: of the channels, so that it broadcasts over the weight.
        books: codebooks, 1 or as many as channels.
        scaled: whether channels may have a scale.
    """

    shape: tuple[int, ...]
    books: int = 1
    scaled: bool = False

    @property
    def channels(self) -> int:
        """How many channels there are, or one where they have nothing of their own."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shared:
    """A weight as indices and values.

    Attributes:
        codes: of the weight's shape.
        table: the codebooks [1 or channels, count]; of the weight's type, or float32 where there are scales.
        shape: of the channels, so that it broadcasts over the codes.
        scales: of the channels, of that shape, float32; None for ones.
    """

    codes: Codes
    table: Array
    shape: tuple[int, ...]
    scales: Array | None

    @property
    def starts(self) -> Array | None:
        """Where the codebook of each channel begins in all of them; None where there is one."""
        if len(self.table) == 1:
            return None
        starts: Array = np.arange(len(self.table)).reshape(self.shape) * self.table.shape[1]
        return starts

    def weights(self, dtype: npt.DTypeLike) -> Array:
        """What the runtime makes of it, of the weight's type."""
        starts = self.starts
        places = self.codes.astype(np.intp) + (0 if starts is None else starts)
        weights: Array = self.table.reshape(-1)[places]
        return (weights if self.scales is None else weights * self.scales).astype(dtype)


@dataclass(frozen=True)
class Cluster(Pass):
    """Keep weights as indices into codebooks, looked up at load.

    Attributes:
        bits: of an index, 1 to 8; small weights, whose indices take a byte anyway, have more.
        site_bits: (site, bits) pairs that differ from that; of the readers of one weight the first by name counts.
        per_channel: a codebook for each output channel, where it costs less than one more bit for each weight.
        scales: a scale for each output channel that has no codebook, where it costs less than half a bit more.
        refine: with samples, choose indices and values by what outputs mind.
        bias_correction: with samples, take the mean error of weights out of the bias.
        min_elements: smaller weights stay as they are.
        sites: regular expressions of sites whose weights to share; empty for all.
        leave: names of sites not to touch.
    """

    kind: ClassVar[str] = "cluster"
    bits: int = 4
    site_bits: tuple[tuple[str, int], ...] = ()
    per_channel: bool = False
    scales: bool = True
    refine: bool = True
    bias_correction: bool = True
    min_elements: int = 64
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, width in [("bits", self.bits), *self.site_bits]:
            if not 1 <= width <= 8:
                raise UsageError(f"{self.kind}: {name} is {width}", "Choose 1 to 8.")
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Share the weights of `model` in place; samples are used where there are any."""
        chosen, skipped = choose(model, lambda stored: self._refusal(stored, context))
        few = min([self.bits, *(bits for _, bits in self.site_bits)]) <= MOST_PACKED_BITS
        raised = bool(chosen) and raise_opset(model, UNPACKING_OPSET if few else BROADCAST_OPSET)
        if raised:
            chosen, skipped = choose(model, lambda stored: self._refusal(stored, context))
        means = mean_inputs(model, chosen, context) if self.bias_correction else {}
        shared = self._share(model, chosen, context, means)
        constants = Constants(model)
        for stored in chosen:
            array, site = constant(stored.value), correctable(stored) if stored.node in means else None
            what = shared[stored.value]
            if array is None:
                raise ValueError(f"{stored.value.name} is not constant")
            error = what.weights(array.dtype).astype(np.float32) - array.astype(np.float32)
            _look_up_at_load(constants, stored.value, what)
            if site is not None:
                correct_bias(site, error, means[stored.node])
        changed = dict.fromkeys(name for stored in chosen for name in stored.readers)
        names = {site_name(node) for node in model.graph}
        skipped += [Skipped(name, "no such site") for name, _ in self.site_bits if name not in names]
        left = dict.fromkeys(s for s in skipped if s.site not in changed)
        return Outcome(bool(chosen) or raised, tuple(changed), tuple(left))

    def _refusal(self, stored: Stored, context: Context) -> str | None:
        """Why a weight stays as it is, or None."""
        reason = left_alone(stored, context, self.sites, self.leave, self.min_elements)
        array = constant(stored.value)
        if reason is not None or array is None:
            return reason
        bits, layout = self._bits(stored, array), self._layout(stored, array)
        tables = layout.books * (array.itemsize << bits)
        if layout.channels > 1:
            tables += ROW_BYTES * layout.channels + SCALE_OVERHEAD
        names = 9 * len(stored.value.name or "")
        saved = array.nbytes - stored_bytes(array.size, bits) - tables - OVERHEAD - names
        return None if saved > 0 else "the file would not get smaller"

    def _bits(self, stored: Stored, array: Array) -> int:
        """Bits of an index; more where indices take a byte anyway, as long as codebooks take no more than these."""
        wanted = dict(self.site_bits)
        bits = next((wanted[r] for r in stored.readers if r in wanted), self.bits)
        if bits > MOST_PACKED_BITS or stored_bytes(array.size, bits) < array.size:
            return bits
        return min(max(bits, (array.size // array.itemsize).bit_length() - 1), 8)

    def _layout(self, stored: Stored, array: Array) -> Layout:
        """What the channels of a weight have of their own: whatever pays."""
        shape, count = scale_shape(stored, array)
        book = ROW_BYTES + (array.itemsize << self._bits(stored, array))
        if self.per_channel and count > 1 and 8 * book * count <= array.size:
            return Layout(shape, count)
        if self.scales and count > 1 and 2 * 8 * ROW_BYTES * count <= array.size:
            return Layout(shape, scaled=True)
        return Layout((1,) * array.ndim)

    def _share(
        self, model: ir.Model, chosen: list[Stored], context: Context, means: Mapping[ir.Node, Array]
    ) -> dict[ir.Value, Shared]:
        """Codes and values of all chosen weights, front to back; the model stays as it is."""
        sites = {site.node: site for site in find_sites(model)}
        place = {node: at for at, node in enumerate(model.graph)}
        ordered = sorted(chosen, key=lambda stored: place.get(stored.node, -1))
        read = [sites.get(stored.node) if stored.index == 1 else None for stored in ordered]
        few = [
            site if site and not wide(site) and self._bits(stored, site.weight) <= MOST_PACKED_BITS else None
            for stored, site in zip(ordered, read, strict=True)
        ]
        turns = zip(ordered, read, inputs_in_turn(model, few, context, means), strict=True)
        return {stored.value: self._shared(stored, site, seen) for stored, site, seen in turns}

    def _shared(self, stored: Stored, site: Site | None, seen: Seen | None) -> Shared:
        """One weight; of a site whose inputs were seen, by what they mind."""
        array = constant(stored.value)
        if array is None:
            raise ValueError(f"{stored.value.name} is not constant")
        count, layout = 1 << self._bits(stored, array), self._layout(stored, array)
        each, scaled, zero = layout.books > 1, layout.scaled, keeps_zeros(array, count)
        if site is None or seen is None:
            rows = _rows(array, layout.shape)
            books = _as_stored(codebooks(rows, count, per_row=each, scaled=scaled, zero=zero), array.dtype)
            codes = _from_rows(books.nearest(rows), array, layout.shape)
        else:
            rows, (fit, held) = site.matrix(), seen[0]
            both = fit + held
            importance = power(both.covariance(), both.rounding())
            books = codebooks(rows, count, importance, per_row=each, scaled=scaled, zero=zero)
            books, found = refine(rows, fit, held, books) if self.refine else (books, books.nearest(rows))
            books, codes = _as_stored(books, array.dtype), in_layout(site, found)
        table = books.table.astype(array.dtype if books.scales is None else np.float32)
        scales = None if books.scales is None else books.scales.astype(np.float32).reshape(layout.shape)
        return Shared(*_compact(codes, table), layout.shape, scales)


def _rows(array: Array, shape: tuple[int, ...]) -> Array:
    """Weights as one row for each codebook [channels, n]."""
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    rows = int(np.prod(shape))
    moved: Array = np.moveaxis(array, axes, range(len(axes))).reshape(rows, -1)
    return moved


def _from_rows(codes: Codes, array: Array, shape: tuple[int, ...]) -> Codes:
    """`_rows` undone."""
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    moved = np.moveaxis(array, axes, range(len(axes))).shape
    return np.ascontiguousarray(np.moveaxis(codes.reshape(moved), range(len(axes)), axes))


def _as_stored(books: Books, dtype: npt.DTypeLike) -> Books:
    """Codebooks as they are after they were stored: in the weights' type, or scaled in float32."""
    kind = np.dtype(dtype) if books.scales is None else np.dtype(np.float32)
    limit = np.finfo(kind).max
    table = np.clip(books.table, -limit, limit).astype(kind).astype(np.float64)
    return Books(table, None if books.scales is None else books.scales.astype(np.float32).astype(np.float64))


def _compact(codes: Codes, table: Array) -> tuple[Codes, Array]:
    """Without the values that no weight has, where there is one codebook."""
    if len(table) > 1:
        return codes, table
    used = np.unique(codes)
    ranks = np.zeros(table.shape[1], np.uint8)
    ranks[used] = np.arange(len(used))
    return ranks[codes], table[:, used]


def _look_up_at_load(constants: Constants, value: ir.Value, shared: Shared) -> None:
    """Put codes and what looks them up in the place of an initializer."""
    name = value.name or "weight"
    constants.model.graph.initializers.pop(name)
    bits = max(shared.table.shape[1] - 1, 1).bit_length()
    table = shared.table.reshape(-1)
    result = constants.looked_up(f"{name}_c", shared.codes, bits, table, constants.first, shared.starts)
    if shared.scales is not None:
        scaled_at_load(constants, value, result, shared.scales)
        return
    if not result.uses():  # else of another weight that is equal
        result.name = name
    replace_value(value, result)

"""The search goes where a microcontroller's memories are."""

import pytest
from test_search import net, prepared, search

from edgepress.compressor.choice import Limits
from edgepress.compressor.limits import kept, search_within
from edgepress.compressor.micro import arena_scale, without_bits
from edgepress.compressor.options import Options
from edgepress.compressor.passes import Quantize
from edgepress.compressor.protocols import Footprint
from edgepress.compressor.recipe import digest
from edgepress.compressor.search import Search
from edgepress.compressor.trials import Trials

__all__ = ["net", "prepared"]


def fitting(name: str, data: bytes) -> Footprint:
    """Flash as the file has bytes; an arena that is the larger, the smaller the file is: both cannot be had."""
    return Footprint(len(data), 20_000 - len(data), measured=True)


def micro_search(prepared: tuple[Trials, Options], limits: Limits) -> Search:
    trials, options = prepared
    found = search(
        (trials, without_bits(options)), lambda named: [1000.0 + len(d) for _, d in named], budget=3.0
    )
    found.fitting, found.memory, found.limits = fitting, arena_scale(fitting), limits
    return found


@pytest.mark.parametrize("limits", [Limits(flash_bytes=1), Limits(arena_bytes=1), Limits(flash_bytes=10**9)])
def test_of_what_keeps_the_budget_the_nearest_is_kept(
    prepared: tuple[Trials, Options], limits: Limits
) -> None:
    found = micro_search(prepared, limits)
    search_within(found)
    original = found.seen[digest(())]
    fitted = [c for c in found.seen.values() if c.data]
    assert all(c.footprint == fitting("", c.data) for c in fitted)
    in_question = [c for c in fitted if len(c.data) <= len(original.data)]
    assert limits.missed(kept(found)) == min(map(limits.missed, in_question))


def test_all_arithmetic_is_in_whole_bytes(prepared: tuple[Trials, Options]) -> None:
    found = micro_search(prepared, Limits(flash_bytes=10**9, arena_bytes=10**9))
    found.settled, found.integer, settled = (
        (),
        {"int8": found.judge("8 bits", found.tail("int8"))},
        set(found.seen),
    )
    found.run()
    searched = [c for key, c in found.seen.items() if c.recipe and key not in settled]
    assert searched
    for candidate in searched:
        quantize = next(step for step in candidate.recipe if isinstance(step, Quantize))
        assert (quantize.results, quantize.bits, quantize.weight_bits) == ("integer", (), 8)


def test_without_bits_the_layers_know_their_knobs_still(prepared: tuple[Trials, Options]) -> None:
    options = prepared[1]
    less = without_bits(options)
    assert all(knob.kind != "bits" for knob in less.knobs)
    assert any(knob.kind == "bits" for knob in options.knobs)
    for before, after in zip(options.layers, less.layers, strict=True):
        for field in ("rows_knob", "columns_knob", "rank_knob"):
            old, new = getattr(before, field), getattr(after, field)
            assert (old < 0) == (new < 0)
            assert new < 0 or options.knobs[old] == less.knobs[new]

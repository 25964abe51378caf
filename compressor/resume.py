"""Copies of a model that differ in some nodes, run from there: what comes before is run once for all of them.

A trial of one site changes what flows behind it. From the graph's inputs each trial takes a session for the whole net
and a run through it; from the last values that are the same in all, on average half of both. The nodes behind those
that differ are the same again, though what they read is not: one session of them serves all trials of a site.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import TypeVar

import onnx_ir as ir

from edgepress.compressor.context import Context
from edgepress.compressor.model import needed
from edgepress.compressor.observe import Streamer
from edgepress.compressor.protocols import Array, Runner
from edgepress.compressor.serialize import serialize_prefix
from edgepress.compressor.walk import CHECKPOINT_BYTES, keepable

CUTS = 2
"""So many cuts are remembered: trials of one site come one after another, those of two on two threads."""

Key = TypeVar("Key")
Kept = TypeVar("Kept")

Cut = list[dict[str, Array]] | None
"""For each batch the values that cross it; None where they are not kept, and a run starts from the inputs."""


@dataclass(frozen=True)
class Tail:
    """The nodes of the original that a copy ends in as well.

    Attributes:
        reads: what they read of what comes before.
        run: them.
    """

    reads: Sequence[ir.Value]
    run: Runner

    def takes(self, found: dict[str, Array]) -> bool:
        """Whether values have the sizes that the original's have; those of channels that are fewer may not."""
        return all(
            not isinstance(size, int) or size == has
            for value in self.reads
            for size, has in zip((value.shape or ())[1:], found[value.name or ""].shape[1:], strict=False)
        )


@dataclass
class Resumed:
    """A `Stream` for copies of the original.

    Attributes:
        stream: runs models from their inputs.
        cuts: the last ones, by the number of nodes before them. Each is made from the inputs, so that what comes out
            does not hang on what was asked for before.
        tails: the last ones, by the number of nodes before them and what they give.
    """

    stream: Streamer
    cuts: dict[int, Cut] = field(default_factory=dict)
    tails: dict[tuple[int, tuple[str, ...]], Tail] = field(default_factory=dict)

    def __call__(
        self, model: ir.Model, values: Sequence[str], original: Sequence[str] = ()
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Yield (values of `model`, values of the original) for each batch."""
        place = unchanged(self.stream.original, model) if values and not original else 0
        start = self._cut(place) if place else None
        if not start or not start[0].keys() >= self._before(place).intersection(values):
            yield from self.stream(model, values, original)
            return
        tail = self._tail(place, model, tuple(values))
        if tail is not None:
            middle = self._run(model, [value.name or "" for value in tail.reads], start)
            first = next(middle)
            if tail.takes(first):
                for found in chain([first], middle):
                    yield tail.run(found), {}
                return
        for found in self._run(model, values, start):
            yield found, {}

    def _run(
        self, model: ir.Model, values: Sequence[str], start: list[dict[str, Array]]
    ) -> Iterator[dict[str, Array]]:
        """Some values of a model, batch by batch, from those of a cut."""
        held = list(start[0])
        wanted = [name for name in dict.fromkeys(values) if name not in held]
        run = None
        if wanted:
            run = self.stream.engine.load(serialize_prefix(model, wanted, held), self.stream.threads)
        for batch in start:
            found = {**batch, **(run(batch) if run else {})}
            yield {name: found[name] for name in values}

    def _tail(self, place: int, model: ir.Model, values: tuple[str, ...]) -> Tail | None:
        """What gives some values of a model and of the original alike; None where they come from before that.

        Args:
            place: the nodes before this one are the same, too.
            model: a copy of the original.
            values: their names.
        """
        graph = self.stream.original.graph
        split = len(graph) - alike_at_the_end(self.stream.original, model)
        if split <= place or split == len(graph):
            return None
        key = split, values
        tail = self.tails.get(key)
        if tail is None:
            before = [*graph.inputs, *(value for node in list(graph)[:split] for value in node.outputs)]
            made = {value.name: value for node in list(graph)[split:] for value in node.outputs}
            if not made.keys() >= set(values):
                return None
            nodes, _ = needed(graph, [made[name] for name in values], set(before))
            reads = [value for value in before if any(use.node in nodes for use in value.uses())]
            if not reads or not all(map(keepable, reads)):
                return None
            data = serialize_prefix(self.stream.original, values, [value.name or "" for value in reads])
            tail = Tail(reads, self.stream.engine.load(data, self.stream.threads))
            _remember(self.tails, key, tail)
        return tail

    def _before(self, place: int) -> set[str]:
        """Names of what there is in front of a cut."""
        graph = self.stream.original.graph
        made = (value for node in list(graph)[:place] for value in node.outputs)
        return {value.name or "" for value in (*graph.inputs, *made)}

    def _cut(self, place: int) -> Cut:
        """The cut before one of the original's nodes."""
        kept = dict(self.cuts)  # other threads put theirs there
        if place not in kept:
            kept[place] = self._made(place)
            _remember(self.cuts, place, kept[place])
        return kept[place]

    def _made(self, place: int) -> Cut:
        graph = self.stream.original.graph
        done = set(list(graph)[:place])
        made = [value for node in graph if node in done for value in node.outputs]
        crossing = [v for v in made if v.is_graph_output() or any(use.node not in done for use in v.uses())]
        fed = [value for value in graph.inputs if any(use.node not in done for use in value.uses())]
        if not crossing or not all(map(keepable, (*crossing, *fed))):
            return None
        names = [value.name or "" for value in crossing]
        run = self.stream.engine.load(serialize_prefix(self.stream.original, names), self.stream.threads)
        kept: list[dict[str, Array]] = []
        size = 0
        for feeds in self.stream.batches():
            kept.append({**run(feeds), **{value.name or "": feeds[value.name or ""] for value in fed}})
            size += sum(array.nbytes for array in kept[-1].values())
            if size > CHECKPOINT_BYTES:
                return None
        return kept


def _remember(kept: dict[Key, Kept], key: Key, found: Kept) -> None:
    """Keep it, and of the others only the last."""
    for old in list(kept)[: -CUTS + 1 or None]:
        kept.pop(old, None)
    kept[key] = found


def unchanged(original: ir.Model, model: ir.Model) -> int:
    """How many of the original's first nodes a copy has as they are, reading the same constants.

    Copies share tensors and attributes, so these are compared by identity; a node with a body counts as changed.

    Args:
        original: the model.
        model: a copy, changed somewhere.
    """
    makers = {node.outputs[0].name: node for node in model.graph if node.outputs}
    for place, node in enumerate(original.graph):
        other = makers.get(node.outputs[0].name) if node.outputs else None
        if other is None or not _same(node, other):
            return place
    return len(original.graph)


def alike_at_the_end(original: ir.Model, model: ir.Model) -> int:
    """How many of the original's last nodes are the last of a copy as well, reading the same constants.

    Args:
        original: the model.
        model: a copy, changed somewhere.
    """
    pairs = zip(reversed(original.graph), reversed(model.graph), strict=False)
    return sum(1 for _ in takewhile(lambda pair: _same(*pair), pairs))


def _same(one: ir.Node, other: ir.Node) -> bool:
    if one.op_identifier() != other.op_identifier() or one.attributes.keys() != other.attributes.keys():
        return False
    if any(other.attributes[name] is not attribute for name, attribute in one.attributes.items()):
        return False
    made = ([(value.name, value.dtype) for value in node.outputs] for node in (one, other))
    return _values(one.inputs) == _values(other.inputs) and next(made) == next(made)


def _values(values: Sequence[ir.Value | None]) -> list[tuple[str | None, int] | None]:
    return [None if value is None else (value.name, id(value.const_value)) for value in values]


def resuming(context: Context) -> Context:
    """The same context for what looks at copies of the original that differ from some node on."""
    stream = context.stream
    return replace(context, stream=Resumed(stream)) if isinstance(stream, Streamer) else context

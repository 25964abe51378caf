"""Copies of a model that differ from some node on, run from there: what comes before is run once for all of them.

A trial of one site changes what lies behind it. From the graph's inputs each trial takes a session for the whole net
and a run through it; from the last values that are the same in all, on average half of both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from edgepress.compressor.context import Context
from edgepress.compressor.model import prefix
from edgepress.compressor.observe import Streamer
from edgepress.compressor.protocols import Array
from edgepress.compressor.serialize import serialize
from edgepress.compressor.walk import CHECKPOINT_BYTES

CUTS = 2
"""So many cuts are remembered: trials of one site come one after another, those of two on two threads."""

Cut = list[dict[str, Array]] | None
"""For each batch the values that cross it; None where they are not kept, and a run starts from the inputs."""


@dataclass
class Resumed:
    """A `Stream` for copies of the original.

    Attributes:
        stream: runs models from their inputs.
        cuts: the last ones, by the number of nodes before them. Each is made from the inputs, so that what comes out
            does not hang on what was asked for before.
    """

    stream: Streamer
    cuts: dict[int, Cut] = field(default_factory=dict)

    def __call__(
        self, model: ir.Model, values: Sequence[str], original: Sequence[str] = ()
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Yield (values of `model`, values of the original) for each batch."""
        place = unchanged(self.stream.original, model) if values and not original else 0
        start = self._cut(place) if place else None
        if not start or not start[0].keys() >= self._before(place).intersection(values):
            yield from self.stream(model, values, original)
            return
        held = list(start[0])
        wanted = [name for name in dict.fromkeys(values) if name not in held]
        run = None
        if wanted:
            run = self.stream.engine.load(serialize(prefix(model, wanted, held)), self.stream.threads)
        for batch in start:
            found = {**batch, **(run(batch) if run else {})}
            yield {name: found[name] for name in values}, {}

    def _before(self, place: int) -> set[str]:
        """Names of what there is in front of a cut."""
        graph = self.stream.original.graph
        made = (value for node in list(graph)[:place] for value in node.outputs)
        return {value.name or "" for value in (*graph.inputs, *made)}

    def _cut(self, place: int) -> Cut:
        """The cut before one of the original's nodes."""
        if place not in self.cuts:
            for old in list(self.cuts)[: -CUTS + 1 or None]:
                self.cuts.pop(old, None)
            self.cuts[place] = self._made(place)
        return self.cuts[place]

    def _made(self, place: int) -> Cut:
        graph = self.stream.original.graph
        done = set(list(graph)[:place])
        made = [value for node in graph if node in done for value in node.outputs]
        crossing = [v for v in made if v.is_graph_output() or any(use.node not in done for use in v.uses())]
        fed = [value for value in graph.inputs if any(use.node not in done for use in value.uses())]
        if not crossing or any(value.dtype is None for value in (*crossing, *fed)):
            return None
        names = [value.name or "" for value in crossing]
        run = self.stream.engine.load(serialize(prefix(self.stream.original, names)), self.stream.threads)
        kept: list[dict[str, Array]] = []
        size = 0
        for feeds in self.stream.batches():
            kept.append({**run(feeds), **{value.name or "": feeds[value.name or ""] for value in fed}})
            size += sum(array.nbytes for array in kept[-1].values())
            if size > CHECKPOINT_BYTES:
                return None
        return kept


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

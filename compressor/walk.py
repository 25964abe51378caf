"""A model that is refitted from front to back: each step goes on from where the one before ended.

A site's refit needs what flows into it, on all samples. Run from the graph's inputs for every site, a net of L layers
costs L²/2 layers a sample; going on from the values that the last site read costs L.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat, tee

import onnx_ir as ir

from edgepress.compressor.context import Context
from edgepress.compressor.observe import Streamer
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.serialize import serialize_prefix

CHECKPOINT_BYTES = 48 << 20
"""Values of a cut that are kept, over all samples; steps after a larger one start from an earlier cut."""


@dataclass
class Side:
    """One of the two models, and the last cut through it.

    Attributes:
        stream: loads models.
        done: nodes before the cut.
        kept: for each batch the values that cross the cut; None where it runs from the graph's inputs.
    """

    stream: Streamer
    done: set[ir.Node] = field(default_factory=set)
    kept: list[dict[str, Array]] | None = None

    def rewind(self, model: ir.Model, names: Sequence[str]) -> None:
        """Give the cut up where one of the values lies before it."""
        lost = makers(model, [name for name in names if self.kept and name not in self.kept[0]])
        if not lost.isdisjoint({*self.done, None}):
            self.done, self.kept = set(), None

    def values(
        self, model: ir.Model, names: Sequence[str], batches: Iterator[Feeds]
    ) -> Iterator[dict[str, Array]]:
        """The named values batch by batch; at the end the cut lies behind their producers."""
        if not names:
            yield from ({} for _ in batches)
            return
        done, live = self._cut(model, names)
        held = list(self.kept[0]) if self.kept else []
        wanted = [name for name in dict.fromkeys([*names, *live]) if name not in held]
        run = None
        if wanted:
            run = self.stream.engine.load(serialize_prefix(model, wanted, held), self.stream.threads)
        fresh: list[dict[str, Array]] = []
        size = 0
        for number, feeds in enumerate(batches):
            start = self.kept[number] if self.kept else feeds
            found = {**start, **(run(start) if run else {})}
            yield {name: found[name] for name in names}
            if live and size <= CHECKPOINT_BYTES:
                fresh.append({name: found[name] for name in live})
                size += sum(array.nbytes for array in fresh[-1].values())
                if size > CHECKPOINT_BYTES:
                    fresh.clear()
        if fresh:
            self.done, self.kept = done, fresh

    def _cut(self, model: ir.Model, names: Sequence[str]) -> tuple[set[ir.Node], list[str]]:
        """The nodes up to the producers of some values, and what later nodes read from those.

        Where a type is not known, or is that of a sequence, nothing can be kept.
        """
        done, missing = set(self.done), makers(model, names) - self.done - {None}
        for node in model.graph:
            if not missing:
                break
            done.add(node)
            missing.discard(node)
        made = [v for node in model.graph if node in done for v in node.outputs]
        cross = [v for v in (*model.graph.inputs, *made) if any(use.node not in done for use in v.uses())]
        return done, [v.name or "" for v in cross] if all(map(keepable, cross)) else []


def keepable(value: ir.Value) -> bool:
    """Whether a value can be kept and fed again: a tensor of known type."""
    return value.dtype is not None and isinstance(value.type, ir.TensorType)


def makers(model: ir.Model, names: Sequence[str]) -> set[ir.Node | None]:
    """The nodes that give these values; None for what no node gives."""
    made = {value.name: node for node in model.graph for value in node.outputs} if names else {}
    return {made.get(name) for name in names}


@dataclass
class Walk:
    """A `Stream` that is asked for values further and further back.

    Between two calls only such nodes may change as come, in the order of the graph, after the producers of all
    values of the current model that were asked for.

    Attributes:
        stream: runs both models from their inputs.
        now: the current model.
        then: the original.
    """

    stream: Streamer
    now: Side
    then: Side

    def __call__(
        self, model: ir.Model, values: Sequence[str], original: Sequence[str] = ()
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Yield (values of `model`, values of the original) for each batch."""
        self.now.rewind(model, values)
        self.then.rewind(self.stream.original, original)
        kept = [side.kept for side, names in ((self.now, values), (self.then, original)) if names]
        count = min((len(batches) for batches in kept if batches is not None), default=0)
        known = count > 0 and all(batches is not None for batches in kept)
        now, then = tee(repeat({}, count) if known else self.stream.batches())
        yield from zip(
            self.now.values(model, values, now),
            self.then.values(self.stream.original, original, then),
            strict=True,
        )


def walking(context: Context) -> Context:
    """The same context for a pass that asks for values from front to back only."""
    stream = context.stream
    if not isinstance(stream, Streamer):
        return context
    return replace(context, stream=Walk(stream, Side(stream), Side(stream)))

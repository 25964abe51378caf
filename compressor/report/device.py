"""What the target itself showed, where it is not this machine."""

from edgepress.compressor.protocols import Count
from edgepress.compressor.report.fields import MaybeFloat, Record


class Instructions(Record):
    """What one inference executes on an emulated core: counted, and a cost rather than a time.

    Attributes:
        total: instructions.
        fma: those that multiply and add floats.
        dot: those that sum products of 8-bit integers.
        load_store: those that load or store.
        heap_bytes: what the model holds on the heap; null where the C library there does not tell.
    """

    total: int
    fma: int
    dot: int
    load_store: int
    heap_bytes: int | None = None

    @classmethod
    def of(cls, count: Count) -> "Instructions":
        """Counted instructions, as the report has them."""
        return cls(
            total=count.total,
            fma=count.fma,
            dot=count.dot,
            load_store=count.load_store,
            heap_bytes=count.heap_bytes,
        )


class Difference(Record):
    """One model's outputs on the device and on this machine, on the same rows.

    Attributes:
        identical: whether all are the same, bit for bit.
        largest_percent: largest difference, in percent of the largest value that the output has here.
        score_here: by the metric, on this machine.
        rows_changed: rows that the metric values otherwise; null where it has one value for all.
    """

    identical: bool
    largest_percent: MaybeFloat = None
    score_here: MaybeFloat = None
    rows_changed: int | None = None


class OnDevice(Record):
    """The verdict's rows on the device.

    Attributes:
        how: `emulated`, or how it is reached: `ssh`.
        engine: runtime and version there.
        cpu: its core.
        rows: judged there.
        rows_unseen: that there were; where they are more, `rows` of them were drawn at random, by the seed.
        baseline: the model that came in.
        compressed: the one that went out.
        seconds: that it took.
    """

    how: str
    engine: str
    cpu: str
    rows: int
    rows_unseen: int
    baseline: Difference
    compressed: Difference
    seconds: float

"""What `compress bench` found, as one JSON record.

`python -m edgepress.compressor.report.bench` writes `bench.schema.json` beside this file.
"""

from pathlib import Path
from typing import Literal

from edgepress.compressor.report.fields import MaybeFloat, MaybeInterval, Record, schema_of
from edgepress.compressor.report.micro import MicroFit

SCHEMA_VERSION = 1
Verdict = Literal["first", "faster", "slower", "no difference", "too noisy to tell"]

ALIKE = 0.01
"""Two latencies that may differ by less than this share are not called different: it is the timing's own precision."""
WIDE = 0.05
"""A ratio known no better than this tells nothing."""


class MachineState(Record):
    """What the device was like at one moment; None where it does not tell."""

    frequency_mhz: MaybeFloat
    top_frequency_mhz: MaybeFloat
    temperature_c: MaybeFloat
    load_1min: MaybeFloat


class LayerRow(Record):
    """One layer, as the engine's profiler names it.

    Attributes:
        name: of the node that is run: engines merge nodes of the file, and add some.
        op: its kind.
        ns: mean of an inference, of all its calls together.
        share_percent: of an inference as a whole, with the profiler on.
        calls: in one inference.
    """

    name: str
    op: str
    ns: float
    share_percent: float
    calls: float


class ModelTimes(Record):
    """One model on the device.

    Attributes:
        model: as it was given.
        size_bytes: with external data.
        engine: what ran it; so are the next two.
        load_ns: from file to ready, once; None where it was not timed, as of all times on emulated devices.
        samples_ns: one a round; models share their rounds.
        calls_per_sample: inferences that one sample averages over.
        outliers: rounds far from the median; kept in all figures.
        ratio: its median over the first model's, with the paired 95 % interval.
        instructions_total: executed by one inference, where the device counts; so are those of kinds.
        heap_bytes: what loading and running it holds on the heap, where the device tells.
        layers: with `--per-layer`, the dearest first; null where they were not asked for, or cannot be had.
        layers_reason: why they cannot; else empty.
        layers_runs: inferences that they are the mean of.
        microcontroller: whether it fits the device, where that is one; nothing is timed there.
    """

    model: str
    size_bytes: int
    engine: str
    engine_version: str
    delegate: str
    load_ns: int | None
    latency_ns_median: MaybeFloat
    latency_ns_ci95: MaybeInterval
    latency_ns_p90: MaybeFloat
    latency_ns_p99: MaybeFloat
    samples_ns: tuple[int, ...]
    calls_per_sample: int | None
    outliers: int | None
    ratio: MaybeFloat
    ratio_ci95: MaybeInterval
    verdict: Verdict | None
    instructions_total: int | None = None
    instructions_fma: int | None = None
    instructions_dot: int | None = None
    instructions_load_store: int | None = None
    heap_bytes: int | None = None
    layers: tuple[LayerRow, ...] | None = None
    layers_reason: str = ""
    layers_runs: int | None = None
    microcontroller: MicroFit | None = None


class Bench(Record):
    """All models of one session.

    Attributes:
        device: name of the profile.
        transport: how it was reached.
        cpu: of the device, as it tells; so are features, cores, governor and system.
        threads: that one operator may use.
        before: when timing began; None where the device does not tell.
        after: when it ended.
        warnings: what may have spoilt the times, with remedies.
        models: in the order given.
    """

    schema_version: Literal[1] = 1
    device: str
    transport: str
    cpu: str
    features: tuple[str, ...]
    cores: int | None
    governor: str | None
    system: str
    threads: int
    before: MachineState | None
    after: MachineState | None
    warnings: tuple[str, ...]
    models: tuple[ModelTimes, ...]


def verdict_on(ratio: tuple[float, float]) -> Verdict:
    """What an interval of the ratio to the first says.

    Args:
        ratio: lower and upper end.
    """
    low, high = ratio
    if high < 1 - ALIKE:
        return "faster"
    if low > 1 + ALIKE:
        return "slower"
    return "too noisy to tell" if (high - low) / 2 > WIDE else "no difference"


def schema_text() -> str:
    """JSON schema of the record, as committed in `bench.schema.json`."""
    return schema_of(Bench, "bench", SCHEMA_VERSION)


if __name__ == "__main__":
    Path(__file__).with_name("bench.schema.json").write_text(schema_text(), encoding="utf-8")

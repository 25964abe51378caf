"""What `compress evolve` found, as one JSON record.

`python -m edgepress.compressor.report.evolve` writes `evolve.schema.json` beside this file.
"""

from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from edgepress.compressor.report.fields import MaybeFloat, Record, schema_of

SCHEMA_VERSION = 1


class EpochRow(Record):
    """One epoch.

    Attributes:
        number: from 1.
        loss: mean cross-entropy while training, with dropout, in nats.
        accuracy: of the test rows after training, before evolution, in percent.
        zeta: share of the hidden layers' connections that went after it.
        connections: in the whole net after evolution.
        seconds: of training and evolution, without the test.
        evolution_seconds: of evolution alone.
    """

    number: int
    loss: MaybeFloat
    accuracy: float
    zeta: float
    connections: int
    seconds: float
    evolution_seconds: float


class Degrees(Record):
    """How many connections the neurons on one side of a layer have.

    Attributes:
        layer: from 1.
        side: inputs or outputs of the layer.
        degree: numbers of connections that occur, ascending.
        neurons: how many neurons have each.
        minimum: where the tail begins that both distributions were fitted to; None where too few differ.
        tail: neurons in it.
        exponent: of the power law that fits best.
        ratio: log-likelihood of the power law less that of an exponential tail, a neuron.
        p: how likely a ratio so far from 0 is by chance.
        verdict: which of the two fits better.
    """

    layer: int
    side: Literal["inputs", "outputs"]
    degree: tuple[int, ...]
    neurons: tuple[int, ...]
    minimum: int | None = None
    tail: int | None = None
    exponent: MaybeFloat = None
    ratio: MaybeFloat = None
    p: MaybeFloat = None
    verdict: Literal["power law", "exponential", "cannot tell"] = "cannot tell"


class Evolved(Record):
    """Everything.

    Attributes:
        kind: tells this record from that of a compression.
        data: name of the samples; test likewise, None where rows of `data` were set aside.
        train_rows: learnt from.
        test_rows: never learnt from.
        test_accuracy: share of them whose class `model.onnx` gets right, in percent.
        method: set, ldv, osv, exd, fixprob or dense.
        settings: all that the training was given.
        layers: neurons from inputs to classes, as asked for.
        widths: the same in the result, without inputs and neurons that do nothing.
        weights: connections and biases of the result.
        trained_weights: of the net when training began.
        dense_weights: of a net of `layers` with all connections.
        compression: dense_weights / weights.
        seconds_per_epoch: median, of training and evolution.
        evolution_seconds: median, of the evolution of all layers after an epoch.
        memory_peak_bytes: of this process until training was over.
        process_peak_bytes: the same with writing and judging `model.onnx`, whose weights are stored dense.
        kernels: numba or scipy; of dense layers, numpy.
        threads: that kernels were allowed.
        size_bytes: of each file of the result.
        epochs: one row each.
        degrees: of the trained net, layer by layer.
        versions: of Python and libraries.
        warnings: what the user should know.
    """

    schema_version: Literal[1] = 1
    kind: Literal["evolve"] = "evolve"
    data: str
    test: str | None
    train_rows: int
    test_rows: int
    test_accuracy: float
    method: Literal["set", "ldv", "osv", "exd", "fixprob", "dense"]
    settings: dict[str, JsonValue]
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    weights: int
    trained_weights: int
    dense_weights: int
    compression: float
    seconds_per_epoch: float
    evolution_seconds: float
    memory_peak_bytes: int
    process_peak_bytes: int
    kernels: Literal["numba", "scipy", "numpy"]
    threads: int
    size_bytes: dict[str, int]
    epochs: tuple[EpochRow, ...]
    degrees: tuple[Degrees, ...]
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()


def dump(record: Evolved) -> str:
    """The record as JSON text in declared order, newline at the end."""
    return record.model_dump_json(indent=2) + "\n"


def schema_text() -> str:
    """JSON schema of the record, as committed in `evolve.schema.json`."""
    return schema_of(Evolved, "evolve", SCHEMA_VERSION)


if __name__ == "__main__":
    Path(__file__).with_name("evolve.schema.json").write_text(schema_text(), encoding="utf-8")

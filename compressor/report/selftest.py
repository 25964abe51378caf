"""What `compress selftest` found, as one JSON record.

`python -m edgepress.compressor.report.selftest` writes `selftest.schema.json` beside this file.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from edgepress.compressor.exact.arithmetic import casts, computed_in, products
from edgepress.compressor.exact.judge import Deviation
from edgepress.compressor.exact.suite import Outcome, Refusal
from edgepress.compressor.report.fields import MaybeFloat, Record, schema_of

SCHEMA_VERSION = 1
Verdict = Literal["right", "wrong", "refused"]


class WrongLayer(Record):
    """One layer that does not compute as it should.

    Attributes:
        layer: its number, from 1.
        operator: its kind.
        wrong_values: of `values`, over all rows.
        neuron: label of one that is wrong; what it should have given and gave; for which input.
        cause: what explains every wrong value, or empty.
        harmless: whether it is only that subnormal numbers become 0.
    """

    layer: int
    operator: str
    wrong_values: int
    values: int
    neuron: str
    row: str
    expected: float
    found: MaybeFloat
    cause: str
    harmless: bool


class Check(Record):
    """One model on its rows.

    Attributes:
        network: which construction.
        kind: `answers`, or `changed`: one feature of a category is r.
        format: of the file.
        precision: of its kernels.
        operators: kind of them.
        layers: of the network.
        rows: that were run.
        computed_in: arithmetic of its products, by the kernels that ran: `fp32`, `fp16`, `int8` …; null where the
            engine does not tell.
        verdict: `refused` where the device did not run it.
        reason: why it did not; else empty.
        wrong_rows: where other categories answer than should.
        false_alarms: rows where a wrong category is on top.
        threshold_error: largest distance between the r at which a category is lost and r_d; null for `answers`.
        step: of the grid that r lies on.
        wrong_layers: those that do not compute as they should.
    """

    network: str
    kind: Literal["answers", "changed"]
    format: str
    precision: str
    operators: str
    layers: int
    rows: int
    computed_in: tuple[str, ...] | None = None
    verdict: Verdict
    reason: str = ""
    wrong_rows: int = 0
    false_alarms: int = 0
    threshold_error: MaybeFloat = None
    step: float | None = None
    wrong_layers: tuple[WrongLayer, ...] = ()


class Arithmetic(Record):
    """What one precision was computed in, whatever the file holds.

    Attributes:
        format: of the files.
        precision: of their numbers.
        computed_in: as of `Check`, of all of them together; null where no engine tells.
        models: that ran; of so many it is known.
        known: those.
        kernels: names of their products.
        casts: names of what turns floats into others around these.
    """

    format: str
    precision: str
    computed_in: tuple[str, ...] | None
    models: int
    known: int
    kernels: tuple[str, ...]
    casts: tuple[str, ...]


class Selftest(Record):
    """One test of one device.

    Attributes:
        device: name of the profile.
        transport: how it was reached.
        cpu: of the device, as it tells.
        engines: name → release, there.
        threads: that one operator may use.
        quick: whether it was the short test.
        verdict: `wrong` where any check is; `refused` where nothing was run.
        seconds: that it took, from the first model to the last.
        arithmetic: a line for each format and precision that ran.
        checks: all of them.
    """

    schema_version: Literal[1] = 1
    device: str
    transport: str
    cpu: str
    engines: Mapping[str, str]
    threads: int
    quick: bool
    verdict: Verdict
    seconds: float
    arithmetic: tuple[Arithmetic, ...] = ()
    checks: tuple[Check, ...]


def check_of(outcome: Outcome) -> Check:
    """One outcome as a record."""
    trial, found = outcome.trial, outcome.found
    check = Check(
        network=trial.case.net.name,
        kind=trial.case.kind,
        format=trial.format,
        precision=trial.case.precision.name,
        operators=trial.form,
        layers=len(trial.case.net.weights),
        rows=len(trial.case.rows),
        computed_in=computed_in(outcome.kernels),
        verdict="right" if outcome.right else "wrong",
    )
    if isinstance(found, Refusal):
        return check.model_copy(update={"verdict": "wrong" if found.died else "refused", "reason": found.why})
    return check.model_copy(
        update={
            "wrong_rows": found.wrong_rows,
            "false_alarms": found.false_alarms,
            "threshold_error": found.threshold_error,
            "step": found.step,
            "wrong_layers": tuple(map(_layer_of, found.deviations)),
        }
    )


def arithmetic_of(outcomes: Iterable[Outcome]) -> tuple[Arithmetic, ...]:
    """What each format and precision was computed in, in the order in which they ran."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for each in outcomes:
        if not isinstance(each.found, Refusal):
            groups.setdefault((each.trial.format, each.trial.case.precision.name), []).append(each)
    found = []
    for (kind, precision), mine in groups.items():
        seen = [computed_in(each.kernels) for each in mine]
        types = sorted({name for each in seen for name in each or ()})
        found.append(
            Arithmetic(
                format=kind,
                precision=precision,
                computed_in=tuple(types) or None,
                models=len(mine),
                known=sum(each is not None for each in seen),
                kernels=tuple(sorted({name for each in mine for name in products(each.kernels)})),
                casts=tuple(sorted({name for each in mine for name in casts(each.kernels)})),
            )
        )
    return tuple(found)


def _layer_of(found: Deviation) -> WrongLayer:
    return WrongLayer(
        layer=found.layer,
        operator=found.operator,
        wrong_values=found.wrong,
        values=found.values,
        neuron=found.neuron,
        row=found.row,
        expected=found.expected,
        found=found.found,
        cause=found.cause,
        harmless=found.harmless,
    )


def verdict_of(checks: Sequence[Check]) -> Verdict:
    """Of all checks together."""
    found = {each.verdict for each in checks}
    return "wrong" if "wrong" in found else "right" if "right" in found else "refused"


def schema_text() -> str:
    """JSON schema of the record, as committed in `selftest.schema.json`."""
    return schema_of(Selftest, "selftest", SCHEMA_VERSION)


if __name__ == "__main__":
    Path(__file__).with_name("selftest.schema.json").write_text(schema_text(), encoding="utf-8")

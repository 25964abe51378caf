"""What is known of a TFLite file: what is in it, and how far it agrees with the ONNX file beside it."""

from pydantic import Field

from edgepress.compressor.report.device import Instructions
from edgepress.compressor.report.fields import MaybeFloat, Record


class OutputParity(Record):
    """One output of the two files on the same samples.

    Attributes:
        name: of the output.
        elements: numbers compared.
        identical_percent: of them that are the same, bit for bit (a NaN equals a NaN).
        step: of the grid that the ONNX file puts the output on; 1 for integers; null where it is on none.
        largest_steps: largest difference in such steps.
        largest_percent: largest difference in percent of the output's range over the samples.
        same_class_percent: rows whose largest of several scores is the same one; null where an output gives none.
    """

    name: str
    elements: int
    identical_percent: float
    step: MaybeFloat = None
    largest_steps: MaybeFloat = None
    largest_percent: MaybeFloat = None
    same_class_percent: MaybeFloat = None


class GridDifference(Record):
    """Scales or zero points that differ between the files, as read back from them.

    Attributes:
        tensor: name of the value, as the ONNX file has it.
        channel: index where it has a scale for each; null where it has one.
        onnx_scale: what the ONNX file says; null where it says nothing that this could be.
        onnx_zero_point: likewise, of signed integers.
        tflite_scale: what the TFLite file says.
        tflite_zero_point: likewise, of signed integers.
    """

    tensor: str
    channel: int | None = None
    onnx_scale: MaybeFloat = None
    onnx_zero_point: int | None = None
    tflite_scale: MaybeFloat = None
    tflite_zero_point: int | None = None


class Certificate(Record):
    """How far two files agree.

    Attributes:
        rows: samples that both ran.
        engine: runtime and release that ran the TFLite file.
        delegate: what ran its operators, such as `XNNPACK`.
        partitions: pieces that the delegate ran; 1 is best. Null where the runtime does not tell.
        outside: operators that no delegate took, kind → count; null likewise.
        outputs: by output.
        grids: scales with their zero points that were compared, one by one.
        own_grids: those of the TFLite file that no value of the ONNX file has: steps within an operator.
        differing: those that are not the same, the first hundred of them.
        score: of the TFLite file on the test rows, by the metric of the report.
        onnx_score: of the ONNX file on the same rows.
    """

    rows: int
    engine: str
    delegate: str
    partitions: int | None = None
    outside: dict[str, int] | None = None
    outputs: tuple[OutputParity, ...]
    grids: int = 0
    own_grids: int = 0
    differing: tuple[GridDifference, ...] = ()
    score: MaybeFloat = None
    onnx_score: MaybeFloat = None


class Tflite(Record):
    """The TFLite file of a result, or why there is none.

    Attributes:
        reason: why there is none; empty where there is one.
        problems: nodes that cannot be written, and why, one each.
        size_bytes: of the file.
        operators: kind → count.
        transposes: how many of them only turn dimensions round.
        notes: what a user should know, such as a batch size that had to be fixed.
        certificate: null where nothing was there to run it, or `unproven` says why.
        unproven: why there is no certificate; empty where there is one.
        instructions: of one inference on the target, where that is emulated and has an engine for it.
        score_on_device: on the rows that the target judged, where it is not this machine.
    """

    reason: str = ""
    problems: tuple[str, ...] = ()
    size_bytes: int | None = None
    operators: dict[str, int] = Field(default_factory=dict)
    transposes: int = 0
    notes: tuple[str, ...] = ()
    certificate: Certificate | None = None
    unproven: str = ""
    instructions: Instructions | None = None
    score_on_device: MaybeFloat = None

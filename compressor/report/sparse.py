"""What is known of the file for the sparse engine, beside the ONNX one."""

from edgepress.compressor.report.fields import Record


class Sparse(Record):
    """A perceptron whose weights are mostly zero, as the sparse engine runs it.

    Attributes:
        reason: why there is no file; empty where there is one.
        engine: and its release.
        weights: that are not zero.
        density_percent: share of all weights that they are.
        size_bytes: of the file.
        latency_ns: of one inference, median.
        onnx_latency_ns: of the ONNX file, measured in turns with it.
    """

    reason: str = ""
    engine: str
    weights: int
    density_percent: float
    size_bytes: int
    latency_ns: float | None = None
    onnx_latency_ns: float | None = None

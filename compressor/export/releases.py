"""Which onnxruntime release reads which models.

Source up to 1.20: the compatibility table of onnxruntime's documentation (docs/reference/compatibility.md).
From 1.21, which the table does not list: measured, by loading a one-node model with each IR version and opset
in the wheels of 1.15 to 1.31.1. The table names IR 8 for 1.15, whose wheel reads 9; the table is kept.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgepress.compressor.errors import ModelError, UsageError
from edgepress.compressor.passes.weight_only import KERNEL_SINCE
from edgepress.compressor.sites import int_attribute


@dataclass(frozen=True)
class Release:
    """What one onnxruntime release reads at most.

    Attributes:
        version: major and minor.
        opset: of ai.onnx.
        ml_opset: of ai.onnx.ml.
        ir_version: of the file.
    """

    version: tuple[int, int]
    opset: int
    ml_opset: int
    ir_version: int


RELEASES = tuple(
    Release((1, minor), opset, ml_opset, ir_version)
    for minor, opset, ml_opset, ir_version in (
        (0, 11, 2, 6),
        (3, 12, 2, 7),
        (6, 13, 2, 7),
        (8, 14, 2, 7),
        (9, 15, 2, 8),
        (11, 16, 2, 8),
        (12, 17, 3, 8),
        (14, 18, 3, 8),
        (15, 19, 3, 8),
        (16, 19, 3, 9),
        (17, 20, 4, 9),
        (18, 21, 4, 10),
        (21, 22, 5, 10),
        (23, 23, 5, 11),
        (24, 25, 5, 13),
        (25, 26, 5, 13),
    )
)
"""One entry where something changed, oldest first."""


def oldest_runtime(model: ir.Model) -> str:
    """The oldest onnxruntime release that reads this IR version and these opsets, such as `1.14`.

    Operators of com.microsoft have no versions that would tell; but for MatMulNBits they may need a later one.

    Raises:
        ModelError: the model is newer than every release known here.
    """
    for release in RELEASES:
        if not _exceeds(model, release):
            return ".".join(map(str, release.version))
    raise ModelError(
        f"No known onnxruntime release reads this model: {_exceeds(model, RELEASES[-1])}.",
        "Export it with an older opset.",
    )


def bound(model: ir.Model, runtime_version: str) -> None:
    """Refuse a model that a device's runtime cannot read.

    Args:
        model: what is to be deployed.
        runtime_version: onnxruntime release on the device, such as `1.23` or `1.23.2`.

    Raises:
        ModelError: the model's IR version or opset is too new for it.
        UsageError: `runtime_version` is no version.
    """
    parts = runtime_version.split(".")
    try:
        version = int(parts[0]), int(parts[1])
    except (ValueError, IndexError) as error:
        raise UsageError(f"{runtime_version!r} is no onnxruntime version.", "Write it as 1.23.") from error
    readable = [release for release in RELEASES if release.version <= version]
    if not readable:
        raise UsageError(
            f"onnxruntime {runtime_version} is older than 1.0.", "The oldest release served is 1.0."
        )
    if excess := _exceeds(model, readable[-1]):
        raise ModelError(
            f"onnxruntime {runtime_version} cannot read this model: {excess}.",
            "Export the model with an older opset, or update the runtime on the device.",
        )


def _exceeds(model: ir.Model, release: Release) -> str:
    """What of a model is newer than a release reads; empty where nothing is."""
    opsets = model.graph.opset_imports
    limits = {"": release.opset, "ai.onnx": release.opset, "ai.onnx.ml": release.ml_opset}
    for domain, limit in limits.items():
        if opsets.get(domain, 0) > limit:
            return f"opset {opsets[domain]} of {domain or 'ai.onnx'}, it reads {limit}"
    for node in model.graph:
        bits = int_attribute(node, "bits", 0) if node.op_type == "MatMulNBits" else 0
        if release.version < KERNEL_SINCE.get(bits, (0, 0)):
            return f"MatMulNBits of {bits} bits, it has no kernel for that"
    if model.ir_version > release.ir_version:
        return f"IR version {model.ir_version}, it reads {release.ir_version}"
    return ""

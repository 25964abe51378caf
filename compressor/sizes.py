"""How much memory single values of a model take: a file of some bytes may ask for terabytes."""

import math

import onnx_ir as ir

from edgepress.compressor.errors import ModelError
from edgepress.compressor.model import dims
from edgepress.compressor.parallel import address_space_left, physical_bytes
from edgepress.compressor.shapes import infer_shapes


def check_source(model: ir.Model) -> None:
    """`check_values` of a model as it came, before a runtime loads it: some compute constants then.

    Raises:
        ModelError: naming the value.
    """
    copy = model.clone()
    infer_shapes(copy)
    check_values(copy)


def check_values(model: ir.Model) -> None:
    """Refuse a model of which one value alone is more than can be had here, before a runtime tries.

    Dimensions that are not known count as 1. Bodies of If, Loop and Scan are passed over: they may never run.

    Args:
        model: with shapes, as far as these are known.

    Raises:
        ModelError: naming the value.
    """
    most = memory_bytes()
    for value in (*model.graph.inputs, *(made for node in model.graph for made in node.outputs)):
        taken = value_bytes(value)
        if taken > most:
            raise ModelError(
                f"Value {value.name!r}, {_said(value)}, takes {taken / 1e9:.1f} GB; "
                f"there are {most / 1e9:.1f} GB.",
                "The model asks for more memory than there is: give its inputs smaller sizes (--shape), "
                "or use a larger machine.",
            )


def memory_bytes() -> int:
    """Bytes that this process may have at most: the machine's, or what is left of a limit (`ulimit -v`)."""
    left = address_space_left()
    return physical_bytes() if left is None else min(left, physical_bytes())


def value_bytes(value: ir.Value) -> int:
    """Bytes of a value, unknown dimensions taken as 1; 0 where it is no tensor of numbers."""
    sizes, kind = dims(value), value.dtype
    if sizes is None or kind is None or kind in {ir.DataType.STRING, ir.DataType.UNDEFINED}:
        return 0
    return math.prod(size for size in sizes if isinstance(size, int)) * kind.bitwidth // 8


def _said(value: ir.Value) -> str:
    return " × ".join(str(size) if isinstance(size, int) else "?" for size in dims(value) or ())

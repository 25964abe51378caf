"""What kernels computed in, by the types that they read: a file's precision may be stored alone.

A product's arithmetic is the type of what it reads first, its activations. Where onnxruntime has no kernels for
float16, say, it puts Cast before and behind those for float32. How a kernel adds up within a type is not told by it;
that is what the answers show.
"""

import re
from collections.abc import Sequence

from edgepress.compressor.protocols import Kernel

_PRODUCT = re.compile(r"gemm|matmul|conv|fully_?connected|product", re.IGNORECASE)
_NAMES = {
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
    "float64": "fp64",
    "uint8": "int8",
    "uint16": "int16",
}


def computed_in(kernels: Sequence[Kernel] | None) -> tuple[str, ...] | None:
    """Arithmetic of the products, such as `fp32`, in order of the names; None where there is none to be seen.

    Args:
        kernels: that ran; None where the engine does not tell.
    """
    read = {each.reads[0] for each in kernels or () if _PRODUCT.search(each.op) and each.reads}
    return tuple(sorted({_NAMES.get(kind, kind) for kind in read})) or None


def products(kernels: Sequence[Kernel] | None) -> set[str]:
    """Names of the products."""
    return {each.op for each in kernels or () if _PRODUCT.search(each.op)}


def casts(kernels: Sequence[Kernel] | None) -> set[str]:
    """Names of what turns floats into floats of another size; scales of integers are none of it."""
    return {
        each.op
        for each in kernels or ()
        if each.op.lower() == "cast" or (each.op not in products(kernels) and "float16" in each.reads[:1])
    }

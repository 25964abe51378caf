"""Activations that exporters write in several nodes: x · 0.5 · (1 + erf(x/√2)), x · HardSigmoid(x) and such.

From a node that such a pattern contains, the way ahead is followed as long as values have one reader. Whether the
whole is a known function of x is found by working it out for some numbers, so that the order of its nodes does not
matter. A Q/DQ pair in between ends the way: it would change what the pattern gives.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, only_reader
from edgepress.compressor.export.tflite.ops.values import numbers, write
from edgepress.compressor.export.tflite.tensors import Array

_LENGTH = 4
"""Nodes behind Erf, Tanh, HardSigmoid or Clip at most."""
_POINTS = np.linspace(-5.0, 5.0, 41)
_TOLERANCE = 2e-6
"""Exporters round constants to float32."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + _erf(x / math.sqrt(2))))


def _gelu_by_tanh(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _hard_swish(x: Array) -> Array:
    return np.asarray(x * np.clip(x + 3, 0, 6) / 6)


_KNOWN: tuple[tuple[Callable[[Array], Array], str, dict[str, Any]], ...] = (
    (_gelu, "GELU", {"approximate": False}),
    (_gelu_by_tanh, "GELU", {"approximate": True}),
    (_hard_swish, "HARD_SWISH", {}),
)


def fused(emit: Emitter, node: ir.Node) -> bool:
    """Write the activation that begins with or contains `node` with one kernel, where there is one.

    Args:
        emit: the emitter; nodes that the kernel takes in are marked as done.
        node: any; an Erf, Tanh, HardSigmoid or Clip, or an Add before a Clip, which its kernel would take in.

    Returns:
        Whether it was one.
    """
    after = only_reader(node.outputs[0]) if node.op_type == "Add" else None
    start = after if after is not None and after.op_type == "Clip" else node
    if start.op_type not in {"Erf", "Tanh", "HardSigmoid", "Clip"}:
        return False
    way, factors = [start], list[ir.Value]()
    for _ in range(_LENGTH):
        after = only_reader(way[-1].outputs[0])
        if after is None or after.op_type not in {"Add", "Mul", "Div"}:
            return False
        other = after.inputs[1] if after.inputs[0] is way[-1].outputs[0] else after.inputs[0]
        way.append(after)
        factors += _candidates(emit, other)
        for x in factors:
            found = _kernel(emit, after.outputs[0], x)
            if found is not None:
                _emit(emit, x, after.outputs[0], *found)
                emit.done.update(way)
                return True
    return False


def _emit(emit: Emitter, x: ir.Value, result: ir.Value, code: str, fields: dict[str, Any]) -> None:
    last = emit.last(x)
    write(emit, result, emit.maths.unary(code, numbers(emit, x, last=last), **fields), last=last)


def _candidates(emit: Emitter, value: ir.Value | None) -> list[ir.Value]:
    """What may be x where it, or it times a number, is a factor."""
    if value is None or emit.constant(value) is not None:
        return []
    found, maker = [value], value.producer()
    if maker is not None and maker.op_type in {"Mul", "Div"}:
        found += [each for each in maker.inputs if each is not None and emit.constant(each) is None]
    return [each for each in found if each.dtype in {ir.DataType.FLOAT, ir.DataType.FLOAT16}]


def _kernel(emit: Emitter, result: ir.Value, x: ir.Value) -> tuple[str, dict[str, Any]] | None:
    """The kernel that gives a value from x, and its options."""
    with np.errstate(all="ignore"):
        got = _evaluated(emit, result, x, 0)
        if got is None:
            return None
        for function, code, fields in _KNOWN:
            if np.allclose(got, function(_POINTS), rtol=_TOLERANCE, atol=_TOLERANCE):
                return code, fields
    return None


def _evaluated(emit: Emitter, value: ir.Value | None, x: ir.Value, depth: int) -> Array | None:
    """A value where x runs over `_POINTS`; None where it hangs on anything else."""
    if value is x:
        return _POINTS
    known = emit.constant(value)
    if known is not None:
        return known.reshape(()).astype(np.float64) if known.size == 1 and known.dtype.kind == "f" else None
    maker = value.producer() if value is not None else None
    if maker is None or depth > 2 * _LENGTH + 2:
        return None
    if maker.op_type == "HardSigmoid":
        inner = _evaluated(emit, maker.inputs[0], x, depth + 1)
        alpha, beta = (
            maker.attributes.get_float(name, default) for name, default in (("alpha", 0.2), ("beta", 0.5))
        )
        return None if inner is None else np.clip(alpha * inner + beta, 0, 1)
    work = _WORK.get(maker.op_type)
    if work is None or maker.domain not in {"", "ai.onnx"}:
        return None
    inputs = [_evaluated(emit, each, x, depth + 1) for each in maker.inputs]
    return None if any(each is None for each in inputs) else np.asarray(work(*inputs))


_WORK: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Clip": np.clip,
    "Erf": _erf,
    "Tanh": np.tanh,
}

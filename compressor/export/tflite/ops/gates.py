"""Activations of recurrent layers, out of TFLite's kernels."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import UnsupportedError
from edgepress.compressor.export.tflite.maths import Maths
from edgepress.compressor.export.tflite.tensors import Tensor

_DEFAULTS: dict[str, tuple[float | None, float | None]] = {
    "sigmoid": (None, None),
    "tanh": (None, None),
    "relu": (None, None),
    "softsign": (None, None),
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01, None),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
}
"""Activation → alpha and beta where none are given; None where it takes none."""


@dataclass(frozen=True)
class Activation:
    """One activation of a gate.

    Attributes:
        name: in ONNX, in lower case.
        alpha: its first number.
        beta: its second number.
        clip: magnitude beyond which its operand is cut; 0: nowhere.
    """

    name: str
    alpha: float
    beta: float
    clip: float = 0.0

    def __call__(self, maths: Maths, x: Tensor) -> Tensor:
        """The activation of a tensor."""
        if self.clip:
            x = maths.clipped(x, -self.clip, self.clip)
        return _KERNELS[self.name](maths, x, self.alpha, self.beta)


def activations_of(node: ir.Node, default: tuple[str, ...], directions: int) -> list[list[Activation]]:
    """The activations of each direction, numbers taken from the attributes in order."""
    given = node.attributes.get("activations")
    names = list(default) * directions if given is None else [str(name) for name in given.as_strings()]
    numbers = []
    for key in ("activation_alpha", "activation_beta"):
        found = node.attributes.get(key)
        numbers.append([] if found is None else [float(each) for each in found.as_floats()])
    clip, made = node.attributes.get_float("clip", 0.0), []
    for name in names:
        key = name.lower()
        if key not in _KERNELS:
            raise UnsupportedError(f"form: the activation {name} of {node.op_type}")
        both = [
            0.0 if wanted is None else rest.pop(0) if rest else wanted
            for wanted, rest in zip(_DEFAULTS[key], numbers, strict=True)
        ]
        made.append(Activation(key, both[0], both[1], clip))
    count = len(default)
    return [made[at * count : (at + 1) * count] for at in range(directions)]


def _affine(maths: Maths, x: Tensor, alpha: float, beta: float) -> Tensor:
    return maths.add(maths.mul(x, alpha), beta)


def _leaky_relu(maths: Maths, x: Tensor, alpha: float, _: float) -> Tensor:
    return maths.unary("LEAKY_RELU", x, alpha=alpha)


def _scaled_tanh(maths: Maths, x: Tensor, alpha: float, beta: float) -> Tensor:
    return maths.mul(maths.unary("TANH", maths.mul(x, beta)), alpha)


def _hard_sigmoid(maths: Maths, x: Tensor, alpha: float, beta: float) -> Tensor:
    return maths.clipped(_affine(maths, x, alpha, beta), 0.0, 1.0)


def _softsign(maths: Maths, x: Tensor, _: float, __: float) -> Tensor:
    return maths.div(x, maths.add(maths.unary("ABS", x), 1.0))


_KERNELS: dict[str, Callable[[Maths, Tensor, float, float], Tensor]] = {
    "sigmoid": lambda maths, x, _, __: maths.unary("LOGISTIC", x),
    "tanh": lambda maths, x, _, __: maths.unary("TANH", x),
    "relu": lambda maths, x, _, __: maths.unary("RELU", x),
    "softsign": _softsign,
    "affine": _affine,
    "leakyrelu": _leaky_relu,
    "scaledtanh": _scaled_tanh,
    "hardsigmoid": _hard_sigmoid,
}

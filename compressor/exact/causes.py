"""What may be behind wrong values of one layer: each cause is worked out, and named where it explains all of them."""

import numpy as np
import numpy.typing as npt

from edgepress.compressor.exact.cases import Case
from edgepress.compressor.exact.models import TAPS, Form

Values = npt.NDArray[np.float64]

SHORT = 2**15
"""A sum of 16 bits is below."""

TOP = 255
"""Largest code of activations, counted from that of 0."""

FLUSHED = "subnormal numbers become 0"


def cause_of(
    case: Case, form: Form, layer: int, given: Values, got: Values, wrong: npt.NDArray[np.bool_]
) -> str:
    """In words, or empty.

    Args:
        case: what was run.
        form: kind of operator.
        layer: number of the layer, from 0.
        given: what it read, [rows, inputs], in steps.
        got: what it gave, [rows, neurons].
        wrong: which of these are wrong.
    """
    if case.precision.tiny and not got[wrong].any():
        return FLUSHED
    if case.precision.integer and _saturates(case, form, layer, given, got, wrong):
        return "as if sums of two products were cut at 16 bits"
    neurons = np.flatnonzero(wrong.any(axis=0))
    if len(neurons) == 1:
        return _one_neuron(case, layer, int(neurons[0]), given, got)
    return ""


def _before_relu(case: Case, layer: int, given: Values) -> Values:
    return np.asarray((case.net.weights[layer] @ given.T).T + case.biases[layer])


def _saturates(
    case: Case, form: Form, layer: int, given: Values, got: Values, wrong: npt.NDArray[np.bool_]
) -> bool:
    """Whether adding products of codes two by two, with 16 bits for each sum, gives just what came."""
    codes = case.precision.weight_codes
    weight = case.net.weights[layer].toarray() * codes
    for order in _orders(form, layer, given.shape[1]):
        padded = len(order) + len(order) % 2
        x, w = (np.zeros((len(each), padded)) for each in (given, weight))
        inside = order < given.shape[1]
        x[:, np.flatnonzero(inside)] = given[:, order[inside]]
        w[:, np.flatnonzero(inside)] = weight[:, order[inside]]
        rows = np.flatnonzero(wrong.any(axis=1))[:64]
        pairs = x[rows, None, 0::2] * w[None, :, 0::2] + x[rows, None, 1::2] * w[None, :, 1::2]
        sums = np.clip(pairs, -SHORT, SHORT - 1).sum(axis=2) / codes + case.biases[layer]
        if np.array_equal(np.rint(np.maximum(sums, 0)), np.rint(got[rows])):
            return True
    return False


def _orders(form: Form, layer: int, inputs: int) -> list[npt.NDArray[np.int64]]:
    """Orders in which kernels may read what belongs to one output: as it lies, and channels last."""
    natural = np.arange(inputs)
    if form != "conv" or layer:
        return [natural]
    channels = -(-inputs // TAPS)
    return [natural, np.arange(channels * TAPS).reshape(channels, TAPS).T.ravel()]


def _one_neuron(case: Case, layer: int, neuron: int, given: Values, got: Values) -> str:
    """A bias, or one weight, whose change explains every value of the neuron."""
    right = _before_relu(case, layer, given)[:, neuron]
    found = np.rint(got[:, neuron])
    label = case.net.labels[layer + 1][neuron]
    if not np.isfinite(found).all() or not (found > 0).any():
        return "" if (found > 0).any() else f"{label} never fires"
    change = found - right
    told = (found > 0) & (found < TOP) if case.precision.integer else found > 0
    if not told.any():
        return ""
    off = float(np.median(change[told]))
    if _explains(case, right + off, found):
        return f"the bias of {label} is off by {off / case.steps:+.3g}"
    codes = case.precision.weight_codes
    candidates = []
    for source in np.flatnonzero((given > 0).any(axis=0)):
        x = given[:, source]
        seen = told & (x > 0)
        full = seen & (x == x[seen].max(initial=0))
        delta = float(np.median(change[full] / x[full])) if full.any() else 0.0
        if codes:  # on a grid; one step, where all that it changes is cut at the top
            delta = (round(delta * codes) or 1) / codes
        if delta and _explains(case, right + delta * x, found):
            candidates.append((int(source), delta))
    if not candidates:
        return ""
    delta = candidates[0][1]
    names = [case.net.labels[layer][source] for source, _ in candidates[:3]]
    where = " or ".join(names) + (" or others" if len(candidates) > 3 else "")
    steps = round(delta * codes)
    size = f"{steps:+d} step{'s' * (abs(steps) != 1)} of its grid" if codes else f"{delta:+.3g}"
    return f"the weight of {label} for {where} is off by {size}"


def _explains(case: Case, sums: Values, found: Values) -> bool:
    """Whether these sums give what came; half a step is what rounding may hide."""
    top = TOP if case.precision.integer else np.inf
    return bool((np.abs(np.clip(sums, 0, top) - found) <= 0.75).all())

"""What a change of one feature does to an exact network: when its category is lost (Kepner et al. 2018, §VI, app. B).

A feature f of category c is r instead of 1, 0 ≤ r ≤ 2. As long as c's neurons are above 0 its part of the network is
linear, and with b_l = β_l 1 − W_l 1 and V_l = W_{L−1} … W_{l+1}

    y_L(c) = (r − 1) (V_0 W_0)(c, f) + β_0 (V_0 1)(c) + Σ_{l=1}^{L−1} (V_l b_l)(c)
    r_d = 1 − (β_0 V_0 1 + Σ V_l b_l) / V_0 W_0          P_d(r) = 1 where r > r_d, else 0

(The document's own formulas lack b_{L−1}, begin their products at W_0 where W_1 is meant, and have 1 − (r − 1) for the
feature; its figures follow from what stands here.) Where r ≤ 1, a neuron that gives 0 takes what reads it down to 0 as
well, so the formula holds wherever c is seen at r = 1. No other category is ever on top: P_fa = 0.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from edgepress.compressor.exact.networks import ExactNet, Vector


def clean_answer(net: ExactNet, betas: Sequence[float]) -> Vector:
    """What categories give to their own unchanged features, [categories], as long as it is above 0."""
    through: sp.csr_array = sp.eye_array(net.weights[-1].shape[0], format="csr")
    total = np.zeros(through.shape[0])
    biases = net.biases(betas)
    for place in range(len(net.weights) - 1, 0, -1):
        total += through @ biases[place]
        through = through @ net.weights[place]
    total += betas[0] * np.asarray(through.sum(axis=1)).ravel()
    return total


def paths(net: ExactNet) -> sp.csr_array:
    """V₀ W₀: in how many ways a feature reaches a category, [categories, features]."""
    through = net.weights[-1]
    for weight in reversed(net.weights[:-1]):
        through = through @ weight
    return through


def thresholds(net: ExactNet, betas: Sequence[float]) -> sp.csr_array:
    """r_d(W, β) of every category and each of its features.

    Args:
        net: the network.
        betas: one a layer.

    Returns:
        [categories, features]; an entry is stored for each feature of a category, though it may be 0.

    Raises:
        ValueError: with these β a category is not seen at r = 1.
    """
    clean, ways = clean_answer(net, betas), paths(net)
    if not (clean > 0).all():
        raise ValueError(f"β {list(betas)} leaves nothing of some categories")
    data = 1 - np.repeat(clean, np.diff(ways.indptr)) / ways.data
    return sp.csr_array((data, ways.indices, ways.indptr), shape=ways.shape)


def detected(found: npt.NDArray[np.floating], category: int) -> npt.NDArray[np.bool_]:
    """P_d: whether a category alone is on top, above 0; of each row of [rows, categories]."""
    others = np.delete(found, category, axis=1).max(axis=1, initial=0.0)
    return np.asarray((found[:, category] > 0) & (found[:, category] > others))


def false_alarm(found: npt.NDArray[np.floating], category: int) -> npt.NDArray[np.bool_]:
    """P_fa: whether another category than the right one is on top, above 0; of each row."""
    others = np.delete(found, category, axis=1).max(axis=1, initial=0.0)
    return np.asarray((others > 0) & (others >= found[:, category]))


def betas_for(layers: int, steps: int) -> list[float]:
    """β that leave a gap in every network of the constructions here, on a grid.

    Args:
        layers: of the network.
        steps: of the grid, to 1.

    Returns:
        β₀ = 1 − 2^−(layers + 1), or the nearest on the grid that is below 1, then ones.
    """
    return [min(np.rint((1 - 2.0 ** -(layers + 1)) * steps), steps - 1) / steps, *[1.0] * (layers - 1)]

"""Slow, obviously right versions of what the core does fast, and the samples and the target that its tests run on."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import models
import numpy as np
import onnx_ir as ir

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.model import prefix
from edgepress.compressor.observe import KEPT, Streamer
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.shrink import Curve, leaving, remove_units
from edgepress.compressor.protocols import Array, Feeds, KernelTimes, Matrix, Target
from edgepress.compressor.recurrent import recurrence_of
from edgepress.compressor.sites import find_sites, ints_attribute, replace_constant
from edgepress.runtime.engines.ort import OrtEngine


@dataclass(frozen=True)
class Board:
    """A target."""

    name: str = "board"
    activation_dtype: str = "uint8"
    weight_bits: int = 8
    channel_multiple: int = 4
    runtime_version: str = "1.31"
    macs_per_ns_fp32: float = 10.0
    macs_per_ns_int8: float = 30.0
    bytes_per_ns: float = 10.0
    node_overhead_ns: float = 100.0
    table: KernelTimes | None = None


def batches(feeds: Feeds, size: int = 16) -> Iterator[Feeds]:
    """Rows of these feeds, some at a time; the axis of the rows is that of the length all agree on."""
    rows = len(next(iter(feeds.values())))
    for start in range(0, rows, size):
        yield {name: array[start : start + size] for name, array in feeds.items()}


def context(
    model: ir.Model, rows: int = 64, seed: int = 0, *, target: Target | None = None,
    leave: tuple[str, ...] = (), feeds: Feeds | None = None,
) -> Context:  # fmt: skip
    """Samples (random ones where none are given) through this model as the original.

    One batch where the first axis is not the rows.
    """
    feeds = models.feeds(model, rows, seed + 100) if feeds is None else feeds
    by_rows = all(array.shape[:1] == (rows,) for array in feeds.values())
    streamer = Streamer(OrtEngine(), model, lambda: batches(feeds, 16 if by_rows else 10**9))
    return Context(streamer, target, seed, leave, rows)


def masked(original: ir.Model, shrunk: ir.Model) -> ir.Model:
    """The original with zeros for what readers weigh removed channels by: arrays as large as before."""
    kept = {v.name: v.meta[KEPT] for node in shrunk.graph for v in node.outputs if KEPT in v.meta}
    result = original.clone()
    for site in find_sites(result):
        if site.x.name in kept and site.groups == 1:
            weight = np.moveaxis(site.weight.copy(), site.in_axis, 0)
            gone = np.setdiff1d(np.arange(len(weight)), kept[site.x.name])
            weight[gone] = 0
            replace_constant(site.node, 1, np.moveaxis(weight, 0, site.in_axis))
    for node in result.graph:
        read = [(node.inputs[0], 1), *((value, 2) for value in node.outputs)] if recurrence_of(node) else []
        for value, place in read:
            weights = node.inputs[place]
            if value is not None and value.name in kept and weights is not None and weights.const_value:
                array = weights.const_value.numpy().copy()
                array[:, :, np.setdiff1d(np.arange(array.shape[2]), kept[value.name])] = 0
                replace_constant(node, place, array)
    return result


def cut(model: ir.Model, share: float, seed: int) -> ir.Model:
    """Take the same share of units, drawn at random, out of each group of a copy."""
    shrunk = model.clone()
    channels = analyse(shrunk)
    rng = np.random.default_rng(seed)
    gone: set[int] = set()
    for group in groups_of(shrunk, channels)[0]:
        order = rng.permutation(group.units)
        gone |= leaving(channels, Curve(order, np.zeros(0)), max(1, round(share * len(order))))
    changed = remove_units(shrunk, channels, gone)
    assert bool(changed) == bool(gone)
    return shrunk


def assert_masked(model: ir.Model, shrunk: ir.Model) -> None:
    """All values of the shrunk model are those of the masked original, less the channels that went."""
    names = [v.name or "" for node in shrunk.graph for v in node.outputs if v.name and v.type is not None]
    mask = masked(model, shrunk)
    feeds = models.feeds(model, 3, 1)
    before, after = values(mask, feeds, names), values(shrunk, feeds, names)
    kept = {v.name: (v, v.meta[KEPT]) for node in shrunk.graph for v in node.outputs if KEPT in v.meta}
    axes = {value.name: track.axis for value, track in analyse(model).tracks.items()}
    for name in names:
        expected = before[name]
        if name in kept:
            value, channels = kept[name]
            expected = np.take(expected, channels, axis=axes[name])
            assert value.shape is None or value.shape[axes[name]] == len(channels)
        assert close({name: expected}, {name: after[name]}, 1e-5), name


def conv_rows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> Array:  # fmt: skip
    """im2col by loops: [n, *positions, C · taps] of x [n, C, *spatial]."""
    rank = len(kernel)
    size = [
        (x.shape[2 + i] + sum(pads[i]) - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i in range(rank)
    ]
    result = np.zeros((len(x), *size, x.shape[1] * int(np.prod(kernel))), x.dtype)
    for at in np.ndindex(len(x), *size):
        column = 0
        for c in range(x.shape[1]):
            for tap in np.ndindex(*kernel):
                where = [at[1 + i] * strides[i] + tap[i] * dilations[i] - pads[i][0] for i in range(rank)]
                if all(0 <= w < x.shape[2 + i] for i, w in enumerate(where)):
                    result[(*at, column)] = x[(at[0], c, *where)]
                column += 1
    return result


def least_damage(gram: Matrix, weights: Matrix, gone: Sequence[int]) -> float:
    """Least tr(ΔᵀGΔ) over changes Δ of W [in, out] that make the rows `gone` zero, by a plain solve."""
    kept = [i for i in range(len(gram)) if i not in set(gone)]
    delta = np.zeros_like(weights)
    delta[list(gone)] = -weights[list(gone)]
    if kept:
        right = gram[np.ix_(kept, list(gone))] @ weights[list(gone)]
        delta[kept] = np.linalg.solve(gram[np.ix_(kept, kept)], right)
    return float(np.trace(delta.T @ gram @ delta))


def elimination_order(readers: Sequence[tuple[Matrix, Matrix, Array, float]], units: int) -> list[int]:
    """Greedy backward elimination by trying every unit at every step; readers are (G, W, unit_of, weight)."""
    gone: list[int] = []
    while len(gone) < units:
        left = [u for u in range(units) if u not in gone]
        gone.append(min(left, key=lambda u: total_damage(readers, [*gone, u])))
    return gone


def total_damage(readers: Sequence[tuple[Matrix, Matrix, Array, float]], gone: Sequence[int]) -> float:
    """Summed damage of removing these units, all else refitted."""
    return sum(
        weight * least_damage(gram, w, np.flatnonzero(np.isin(unit_of, list(gone))).tolist())
        for gram, w, unit_of, weight in readers
    )


def ridge(x: Matrix, y: Matrix, old: Matrix, strength: float, *, bias: bool) -> tuple[Matrix, Matrix]:
    """Ridge regression towards `old` on rows, by numpy's lstsq on an augmented system."""
    mx, my = (x.mean(0), y.mean(0)) if bias else (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
    n = len(x)
    a = np.vstack([(x - mx) / np.sqrt(n), np.sqrt(strength) * np.eye(x.shape[1])])
    b = np.vstack([((y - my) - (x - mx) @ old) / np.sqrt(n), np.zeros((x.shape[1], y.shape[1]))])
    weights = old + np.linalg.lstsq(a, b, rcond=None)[0]
    return weights, my - mx @ weights


def rank_error(weights: Matrix, covariance: Matrix, rank: int) -> float:
    """Least E|Wx − Ŵx|² over rank-r Ŵ, by the SVD of W S_x^½ (Eckart–Young); covariance is that of x."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    singular = np.linalg.svd(weights @ root, compute_uv=False)
    return float(np.sum(singular[rank:] ** 2))


def pads_of(node: ir.Node, size: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Padding by trial: SAME gives ceil(size / stride) positions with the least padding."""
    rank = len(kernel)
    strides = ints_attribute(node, "strides", [1] * rank)
    dilations = ints_attribute(node, "dilations", [1] * rank)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        flat = ints_attribute(node, "pads", [0] * 2 * rank) if auto == "NOTSET" else (0,) * 2 * rank
        return list(zip(flat[:rank], flat[rank:], strict=True))
    pads = []
    for s, k, st, d in zip(size, kernel, strides, dilations, strict=True):
        wanted = int(np.ceil(s / st))
        total = next(
            p
            for p in itertools.count()
            if s + p >= (k - 1) * d + 1 and (s + p - (k - 1) * d - 1) // st + 1 >= wanted
        )
        less, more = total // 2, total - total // 2
        pads.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return pads


def close(a: Mapping[str, Array], b: Mapping[str, Array], tolerance: float) -> bool:
    """Whether all outputs agree, relative to the largest value of each (at least one)."""
    return all(
        a[k].shape == b[k].shape
        and np.allclose(a[k], b[k], rtol=0, atol=tolerance * max(1.0, float(np.abs(a[k]).max(initial=0))))
        for k in a
    )


def values(model: ir.Model, feeds: Feeds, names: Sequence[str]) -> dict[str, Array]:
    """Values of the main graph by name, in one run."""
    return {k: np.asarray(v) for k, v in models.run(prefix(model, names), feeds).items()}


def separable_kernel(seed: int, out: int, inputs: int, kernel: tuple[int, ...], rank: int) -> Array:
    """A kernel of which each channel has this rank."""
    rng = np.random.default_rng(seed)
    mixed, filters = rng.standard_normal((out, inputs, rank)), rng.standard_normal((inputs, rank, *kernel))
    return np.einsum("ocm,cm...->oc...", mixed, filters).astype(np.float32)


def channel_svd(kernel: Matrix, rank: int) -> Matrix:
    """The truncated SVD of each channel."""
    result = np.empty_like(kernel)
    for c in range(kernel.shape[1]):
        u, s, v = np.linalg.svd(kernel[:, c], full_matrices=False)
        result[:, c] = (u[:, :rank] * s[:rank]) @ v[:rank]
    return result


def moved(model: ir.Model, changed: ir.Model, seed: int = 7) -> float:
    """How far the output y moves on samples, over its norm."""
    feeds = models.feeds(model, 6, seed)
    before, after = models.run(model, feeds)["y"], models.run(changed, feeds)["y"]
    assert before.shape == after.shape
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))

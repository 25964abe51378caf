"""Resize: by TFLite's own kernels where they give the same, else by gathering or by products with matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import axis_in
from edgepress.compressor.export.tflite.ops.moving import (
    carried,
    keeps_grid,
    known_ints,
    moved,
    taken,
    vector,
)
from edgepress.compressor.export.tflite.ops.values import write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Array, Tensor
from edgepress.compressor.sites import attribute, int_attribute, ints_attribute

_FLAGS = ((False, False), (True, False), (False, True))
"""(halfPixelCenters, alignCorners) that TFLite's kernels know."""


@dataclass(frozen=True)
class Axis:
    """How one dimension is resized.

    Attributes:
        size: of the input.
        length: of the result.
        scale: result over input, as the node gives it.
        roi: start and end of the part that is cut out, as shares of the whole.
    """

    size: int
    length: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)

    def coordinates(self, how: str) -> Array:
        """Where each of the result's numbers lies in the input, [length], in float32 as onnxruntime has it.

        Source: ONNX, operator Resize, `coordinate_transformation_mode`.
        """
        x, scale = np.arange(self.length, dtype=np.float32), np.float32(self.scale)
        half = np.float32(0.5)
        if how == "asymmetric":
            return x / scale
        if how == "half_pixel" or (how == "pytorch_half_pixel" and self.length > 1):
            return (x + half) / scale - half
        if how == "pytorch_half_pixel":
            return np.zeros_like(x)
        if how == "half_pixel_symmetric":
            shrunk = np.float32(self.length) / (scale * np.float32(self.size))
            middle = np.float32(self.size) / np.float32(2)
            return middle * (1 - shrunk) + (x + half) / scale - half
        if how == "align_corners":
            return x * np.float32(self.size - 1) / np.float32(max(self.length - 1, 1))
        if how == "tf_crop_and_resize":
            start, end = self.roi
            if self.length == 1:
                return np.full(1, 0.5 * (start + end) * (self.size - 1), np.float32)
            step = (end - start) * (self.size - 1) / (self.length - 1)
            return (start * (self.size - 1) + x * step).astype(np.float32)
        raise UnsupportedError(f"form: Resize with coordinates {how!r}")


def nearest(axis: Axis, how: str, rounding: str) -> Array:
    """Which number of the input each number of the result is, [length]."""
    at = axis.coordinates(how)
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - np.float32(0.5)),
        "round_prefer_ceil": lambda: np.floor(at + np.float32(0.5)),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }[rounding]()
    return np.clip(rounded, 0, axis.size - 1).astype(np.int64)


def weights(axis: Axis, how: str, kind: str, *, sharp: float, exclude: bool, antialias: bool) -> Array:
    """What each number of the result takes from each of the input, [length, size].

    Args:
        axis: the dimension.
        how: the coordinates' mode.
        kind: linear or cubic.
        sharp: `cubic_coeff_a`.
        exclude: whether what lies outside is left out instead of repeating the edge.
        antialias: whether the kernel is widened where the result is smaller.
    """
    at = axis.coordinates(how).astype(np.float64)
    if kind == "linear" and not antialias:
        at = np.clip(at, 0, axis.size - 1)
    wide = 1 / min(axis.scale, 1.0) if antialias else 1.0
    reach = ceil((1 if kind == "linear" else 2) * wide)
    made = np.zeros((axis.length, axis.size))
    for row, centre in enumerate(at):
        places = np.arange(floor(centre) - reach, floor(centre) + reach + 2)
        away = np.abs(places - centre) / wide
        taken_from = np.maximum(1 - away, 0) if kind == "linear" else _cubic(away, sharp)
        if exclude:
            taken_from = np.where((places >= 0) & (places < axis.size), taken_from, 0)
        if exclude or antialias:
            taken_from /= taken_from.sum()
        np.add.at(made[row], np.clip(places, 0, axis.size - 1), taken_from)
    return made.astype(np.float32)


def _cubic(away: Array, a: float) -> Array:
    """Keys' kernel. Source: R. Keys, Cubic convolution interpolation, 1981."""
    near = ((a + 2) * away - (a + 3)) * away**2 + 1
    far = ((away - 5) * away + 8) * away * a - 4 * a
    made: Array = np.where(away <= 1, near, np.where(away < 2, far, 0.0))
    return made


def resize(emit: Emitter, node: ir.Node) -> None:
    """Each dimension by itself, in the layout that the value comes in."""
    x, result = node.inputs[0], node.outputs[0]
    shape, last = emit.shape(x), emit.last(x)
    how = str(attribute(node, "coordinate_transformation_mode", "half_pixel"))
    mode = str(attribute(node, "mode", "nearest"))
    axes = {axis_in(at, len(shape), last): each for at, each in _axes(emit, node, how).items()}
    if mode == "nearest" and how != "tf_crop_and_resize":
        rounding = str(attribute(node, "nearest_mode", "round_prefer_floor"))
        maps = {at: nearest(axis, how, rounding) for at, axis in axes.items()}
        data = moved(emit, x, ("FLOAT32", "INT8", "UINT8", "INT32"), last=last)
        write(emit, result, _nearest(emit, data, axes, maps), last=last)
        return
    matrices = {at: _matrix(node, axis, how, mode) for at, axis in axes.items()}
    flags = _flags(emit, axes, matrices) if last and len(shape) == 4 and mode == "linear" else None
    if flags is not None:
        integer = keeps_grid(emit, x, emit.ending(result))
        data = carried(emit, emit.read(x, integer=integer, last=last), ("FLOAT32", "INT8"))
        write(emit, result, _kernel(emit, "RESIZE_BILINEAR", "ResizeBilinear", data, axes, flags), last=last)
        return
    data = carried(emit, emit.read(x, last=last), ("FLOAT32",))
    for at, matrix in matrices.items():
        data = _product(emit, data, at, matrix)
    if how == "tf_crop_and_resize":
        data = _outside(emit, node, data, axes)
    write(emit, result, data, last=last)


def _axes(emit: Emitter, node: ir.Node, how: str) -> dict[int, Axis]:
    """ONNX's axes that change, or that are cut."""
    shape, after = emit.shape(node.inputs[0]), emit.shape(node.outputs[0])
    over = [axis % len(shape) for axis in ints_attribute(node, "axes", tuple(range(len(shape))))]
    scales = _scales(emit, node, [shape[axis] for axis in over], [after[axis] for axis in over])
    roi = emit.constant(operand_of(node, 1)) if how == "tf_crop_and_resize" else None
    if how == "tf_crop_and_resize" and (roi is None or roi.size != 2 * len(over)):
        raise UnsupportedError(
            "dynamic shape: the part that Resize cuts out is worked out while the model runs"
        )
    found = {}
    for at, axis in enumerate(over):
        part = (0.0, 1.0) if roi is None else (float(roi[at]), float(roi[at + len(over)]))
        if scales[at] != 1 or shape[axis] != after[axis] or part != (0.0, 1.0):
            found[axis] = Axis(shape[axis], after[axis], scales[at], part)
    return found


def _scales(emit: Emitter, node: ir.Node, before: Sequence[int], after: Sequence[int]) -> list[float]:
    given = operand_of(node, 2)
    if given is not None:
        known = emit.constant(given)
        if known is None:
            raise UnsupportedError("dynamic shape: the scales of Resize are worked out while the model runs")
        return [float(each) for each in known]
    exact = [float(np.float32(new) / np.float32(old)) for new, old in zip(after, before, strict=True)]
    policy = str(attribute(node, "keep_aspect_ratio_policy", "stretch"))
    if policy == "stretch":
        return exact
    sizes = known_ints(emit, node, 3)
    if sizes is not None:
        asked = [new / old for new, old in zip(sizes, before, strict=True)]
        one = min(asked) if policy == "not_larger" else max(asked)
        return [one] * len(before)
    fits = {
        s for s in exact if all(floor(s * old + 0.5) == new for new, old in zip(after, before, strict=True))
    }
    if len(fits) != 1:
        raise UnsupportedError("dynamic shape: the sizes of Resize are worked out while the model runs")
    return [fits.pop()] * len(before)


def _matrix(node: ir.Node, axis: Axis, how: str, mode: str) -> Array:
    if mode == "nearest":
        picked = nearest(axis, how, str(attribute(node, "nearest_mode", "round_prefer_floor")))
        return np.eye(axis.size, dtype=np.float32)[picked]
    return weights(
        axis,
        how,
        mode,
        sharp=node.attributes.get_float("cubic_coeff_a", -0.75),
        exclude=bool(int_attribute(node, "exclude_outside", 0)),
        antialias=bool(int_attribute(node, "antialias", 0)),
    )


def _theirs(axis: Axis, flags: tuple[bool, bool]) -> Array:
    """Coordinates of TFLite's kernels, without the half that it takes off for linear ones."""
    half, corners = flags
    x = np.arange(axis.length, dtype=np.float32)
    scale = np.float32(axis.size) / np.float32(axis.length)
    if corners and axis.length > 1:
        scale = np.float32(axis.size - 1) / np.float32(axis.length - 1)
    return ((x + np.float32(0.5)) if half else x) * scale


def _whole(emit: Emitter, axes: dict[int, Axis]) -> bool:
    return bool(axes) and set(axes) <= {1, 2}


def _flags(emit: Emitter, axes: dict[int, Axis], matrices: dict[int, Array]) -> tuple[bool, bool] | None:
    """With which flags RESIZE_BILINEAR gives these weights."""
    if not _whole(emit, axes):
        return None
    for flags in _FLAGS:
        fits = []
        for at, axis in axes.items():
            places = np.clip(_theirs(axis, flags) - np.float32(0.5 * flags[0]), 0, axis.size - 1)
            away = np.abs(places[:, None] - np.arange(axis.size)[None, :])
            fits.append(np.allclose(np.maximum(1 - away, 0), matrices[at], rtol=0, atol=1e-5))
        if all(fits):
            return flags
    return None


def _nearest(emit: Emitter, x: Tensor, axes: dict[int, Axis], maps: dict[int, Array]) -> Tensor:
    if _whole(emit, axes) and len(x.shape) == 4:
        for flags in _FLAGS:
            same = []
            for at, axis in axes.items():
                places = _theirs(axis, flags)
                rounded = np.floor(places + np.float32(0.5)) if flags[1] else np.floor(places)
                same.append(np.array_equal(np.clip(rounded, 0, axis.size - 1), maps[at]))
            if all(same):
                return _kernel(emit, "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor", x, axes, flags)
    for at, indices in maps.items():
        x = taken(emit, x, vector(emit, indices), at)
    return x


def _kernel(
    emit: Emitter, code: str, kind: str, x: Tensor, axes: dict[int, Axis], flags: tuple[bool, bool]
) -> Tensor:
    """One of TFLite's own kernels on [N, H, W, C]."""
    sizes = [axes[at].length if at in axes else x.shape[at] for at in (1, 2)]
    made = options(kind, halfPixelCenters=flags[0], alignCorners=flags[1])
    shape = (x.shape[0], *sizes, x.shape[3])
    return emit.builder.op(code, [x, vector(emit, sizes)], shape, "", x.grid, made)


def _product(emit: Emitter, x: Tensor, axis: int, matrix: Array) -> Tensor:
    """A matrix [new, old] times one dimension: BATCH_MATMUL on [before, old, behind]."""
    before, behind = x.shape[:axis], x.shape[axis + 1 :]
    front, back = int(np.prod(before)), int(np.prod(behind))
    if emit.builder.batch and axis == 0:
        raise UnsupportedError("dynamic shape: Resize of the batch dimension")
    three = emit.builder.reshaped(x, (front, matrix.shape[1], back))
    left = emit.builder.constant(matrix[None])
    made = emit.builder.op(
        "BATCH_MATMUL", [left, three], (front, matrix.shape[0], back), options=options("BatchMatMul")
    )
    return emit.builder.reshaped(made, (*before, matrix.shape[0], *behind))


def _outside(emit: Emitter, node: ir.Node, x: Tensor, axes: dict[int, Axis]) -> Tensor:
    """What lies outside of the input becomes `extrapolation_value`."""
    inside = np.ones((1,) * len(x.shape), np.float32)
    for at, axis in axes.items():
        places = axis.coordinates("tf_crop_and_resize")
        shape = [1] * len(x.shape)
        shape[at] = axis.length
        inside = inside * ((places >= 0) & (places <= axis.size - 1)).reshape(shape)
    if inside.all():
        return x
    fill = node.attributes.get_float("extrapolation_value", 0.0)
    kept = emit.maths.mul(x, emit.builder.constant(inside.astype(np.float32)))
    return emit.maths.add(kept, emit.builder.constant(((1 - inside) * fill).astype(np.float32)))


HANDLERS = {"Resize": resize}

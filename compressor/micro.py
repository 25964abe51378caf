"""Microcontrollers: what models take of one, as the TFLite files that go there.

Such a device runs a file out of flash in an arena of RAM, one row at a time, and has few kernels: all arithmetic should
be in 8 bits, inputs and outputs included. How much flash and arena there are limits the search, as `--max-size` does.
"""

import math
from dataclasses import replace

import onnx_ir as ir

from edgepress.compressor.choice import Weigher
from edgepress.compressor.errors import ModelError, UsageError
from edgepress.compressor.export.tflite import Converted, convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError
from edgepress.compressor.export.tflite.schema import numpy_dtype, schema
from edgepress.compressor.job import Findings
from edgepress.compressor.options import Options
from edgepress.compressor.passes.base import site_name
from edgepress.compressor.protocols import Footprint
from edgepress.compressor.report.micro import MicroFit, fit_of
from edgepress.compressor.search import Fitting
from edgepress.compressor.serialize import Serialized, parse

ALIGNED = 16
"""Bytes at multiples of which tensors begin in an arena."""

NOT_MEASURED = (
    "tflite-micro is not here, so the arena is estimated, missing operators are not known, and the verdict is on "
    'onnxruntime\'s kernels. Where it has a wheel (Linux on x86-64, Python 3.11): pip install "edgepress[micro]"'
)

NOWHERE = 1 << 40
"""Bytes of arena of what does not run in any."""


def micro_file(model: ir.Model) -> Converted:
    """A model as microcontrollers get it: with integers at its border where it is quantized there, else with floats.

    Raises:
        NotConvertibleError: naming every node that TFLite cannot express.
    """
    try:
        return convert(model, io="int8", hybrid=False)
    except NotConvertibleError:
        raise
    except ModelError:
        return convert(model, hybrid=False)


def make_fitting(found: Findings) -> Fitting | None:
    """What candidates take of the target, each worked out once; None where that is no microcontroller."""
    device = found.host.micro
    if device is None:
        return None
    known: dict[str, Footprint] = {}

    def fitting(name: str, data: Serialized) -> Footprint:
        if name not in known:
            found.host.progress("fit", 0.0, name)
            try:
                known[name] = device.footprint(micro_file(parse(data)).data)
            except NotConvertibleError as error:
                known[name] = Footprint(
                    reason="; ".join(f"{each.node}: {each.why}" for each in error.problems)
                )
        return known[name]

    return fitting


def arena_scale(fitting: Fitting) -> Weigher:
    """Weighs models by the arena that they need."""

    def weigh(name: str, data: Serialized) -> int:
        found = fitting(name, data)
        return NOWHERE if found.arena_bytes is None else found.arena_bytes

    return weigh


def without_bits(options: Options) -> Options:
    """The same without fewer bits than 8: there weights are read where they lie, so they must be whole bytes."""
    kept = [index for index, knob in enumerate(options.knobs) if knob.kind != "bits"]
    places = {old: new for new, old in enumerate(kept)} | {-1: -1}
    layers = tuple(
        replace(
            layer,
            rows_knob=places[layer.rows_knob],
            columns_knob=places[layer.columns_knob],
            rank_knob=places[layer.rank_knob],
            bits_knob=-1,
        )
        for layer in options.layers
    )
    return replace(options, knobs=tuple(options.knobs[index] for index in kept), layers=layers)


def refuse_unfit(found: Findings) -> None:
    """Try the original on a microcontroller, before any long work; what it takes there is noted.

    Raises:
        ModelError: nodes cannot be written as TFLite, or have no kernel there: all of them are named.
        UsageError: TFLite was not asked for, or the packages for it are missing.
    """
    device = found.host.micro
    if device is None:
        return
    if "tflite" not in found.job.formats:
        raise UsageError(f"{found.host.target.name} runs TFLite files alone.", "Leave out --format onnx.")
    model = found.normalized.model
    footprint = device.footprint(micro_file(model).data)
    found.footprints = (footprint, None)
    if not footprint.measured:
        found.warnings.append(NOT_MEASURED)
    if footprint.missing:
        lines = "\n".join(f"  {place}" for place in missing_nodes(footprint, model))
        raise ModelError(
            f"{len(footprint.missing)} of the model's nodes have no kernel on {found.host.target.name}:\n{lines}",
            "Replace them in the model by others, or choose another --target.",
        )


def missing_nodes(footprint: Footprint, model: ir.Model) -> list[str]:
    """Operators without a kernel, by the nodes of the model that they come from: `act_3 (GELU)`."""
    makers = {value.name: node for node in model.graph for value in node.outputs}
    return [
        f"{site_name(makers[output]) if output in makers else output or 'unnamed'} ({kind})"
        for kind, output in footprint.missing
    ]


def fit_record(found: Findings) -> MicroFit | None:
    """What the report says of a microcontroller; None for other targets."""
    device, model = found.host.micro, found.best.model if found.best is not None else None
    if device is None or model is None:
        return None
    before, after = found.footprints
    after = after or Footprint(
        reason="there is no TFLite file" if found.tflite is None else found.tflite.reason
    )
    fit = fit_of(found.host.target.name, device, after, missing_nodes(after, model))
    return fit.model_copy(
        update={
            "judged": bool(found.on_device),
            "flash_bytes_before": before.flash_bytes if before is not None else None,
            "arena_bytes_before": before.arena_bytes if before is not None else None,
        }
    )


def estimate(file: bytes) -> Footprint:
    """What a TFLite file takes at least, where there is no interpreter: activations that are alive together.

    A tensor is alive from the operator that makes it to the last one that reads it, and begins at a multiple of 16.

    Args:
        file: one of our own.
    """
    parts = schema()
    model = parts.ModelT.InitFromObj(parts.Model.GetRootAsModel(file, 0))
    graph = model.subgraphs[0]
    named = {number: name for name, number in vars(parts.TensorType).items() if not name.startswith("_")}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    steps = [(*map(int, step.inputs), *map(int, step.outputs)) for step in graph.operators]
    for at, places in enumerate([tuple(map(int, graph.inputs)), *steps, tuple(map(int, graph.outputs))]):
        for place in places:
            first.setdefault(place, at)
            last[place] = at
    alive = [0] * (len(steps) + 2)
    for place, start in first.items():
        tensor = graph.tensors[place]
        if place >= 0 and model.buffers[tensor.buffer].data is None:
            size = math.prod(map(int, tensor.shape)) * numpy_dtype(named[tensor.type]).itemsize
            for at in range(start, last[place] + 1):
                alive[at] += -(-size // ALIGNED) * ALIGNED
    return Footprint(len(file), max(alive), max(alive))

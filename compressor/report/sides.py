"""One model's numbers, as the report has them: what came in, or what goes out."""

from typing import Literal

import onnx_ir as ir

from edgepress.compressor.cost import peak_activation_bytes, total_macs
from edgepress.compressor.job import Findings
from edgepress.compressor.model import parameters
from edgepress.compressor.predict import computed_at_load
from edgepress.compressor.report.device import Instructions
from edgepress.compressor.report.record import Side
from edgepress.compressor.report.sites import packed_away, scales
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.serialize import files


def side(
    found: Findings, model: ir.Model, which: Literal[0, 1], model_file: str, score: float | None
) -> Side:
    """One model's numbers.

    Args:
        found: by the session.
        model: the one.
        which: 0 for what came in, 1 for what goes out.
        model_file: name of the file that goes out.
        score: on the unseen rows.
    """
    latency, count, memory = found.latencies[which], found.counted[which], found.memory[which]
    predicted = None if count is not None else found.predicted_ns[which] or None
    shapes = shapes_in_one_run(model, found.host.engine, found.one_row)
    at_load = computed_at_load(model)
    unpacked = {value.name for node in at_load for value in node.outputs}
    passing = {value: shape for value, shape in shapes.items() if value not in unpacked}
    size, names = found.source_bytes, {found.job.model.name: found.source_bytes}
    if which == 1:
        size, names = len(found.exported), dict(files(found.exported, model_file))
    elif found.external:
        names = {path.name: path.stat().st_size for path in (found.job.model, *found.external)}
    return Side(
        score=score,
        size_bytes=size,
        latency_ns_median=latency.median_ns if latency else predicted,
        latency_ns_ci95=latency.ci95_ns if latency else None,
        latency_samples_ns=tuple(latency.samples_ns) if latency else (),
        instructions=None if count is None else Instructions.of(count),
        memory_peak_bytes=memory,
        activation_bytes=peak_activation_bytes(model, passing) if shapes else None,
        parameters=parameters(model) - scales(at_load) + packed_away(model, at_load),
        macs=total_macs(model, shapes) if shapes else None,
        files=names,
    )

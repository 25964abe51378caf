"""`model-sparse.npz` beside `model.onnx`: what the sparse engine runs, where it is faster on the target.

Only a perceptron of few weights gets one, and only where times are measured. As with TFLite, nothing that goes wrong
here stands in the way of the ONNX file; it is told in the report.
"""

from edgepress.compressor.equality import same_outputs
from edgepress.compressor.errors import DeviceError, ModelError
from edgepress.compressor.export.sparse import from_model, to_bytes
from edgepress.compressor.finish import LOSSLESS
from edgepress.compressor.job import Findings
from edgepress.compressor.report.sparse import Sparse
from edgepress.compressor.serialize import parse

SPARSE = 0.3
"""Share of weights that are not zero from which on it is not tried: a dense product is faster by far."""
MOST_NODES = 1000
"""Nodes above which a model is not looked at: no perceptron has so many, and to normalise it takes long."""
FASTER = 0.98
"""Ratio of latencies from which on the file is worth having."""


def make_sparse(found: Findings) -> None:
    """Write what goes out for the sparse engine too, where that is faster."""
    host = found.host
    if (
        host.stopwatch is None
        or host.sparse is None
        or not found.one_row
        or not isinstance(found.exported, bytes)
    ):
        return
    model = parse(found.exported)
    if model.graph.num_nodes() > MOST_NODES:
        return
    try:
        net = from_model(model)
    except ModelError:
        return
    if net.density > SPARSE:
        return
    content = to_bytes(net)
    said = Sparse(
        engine=f"{host.sparse.name} ({host.sparse.version})",
        weights=net.weights,
        density_percent=100 * net.density,
        size_bytes=len(content),
    )
    try:
        batch = found.one_row if found.test is None else next(iter(found.test.batches(found.batch))).feeds
        expected, got = (
            engine.load(model, found.job.threads)(batch)
            for engine, model in ((host.engine, found.exported), (host.sparse, content))
        )
        onnx, ours = host.stopwatch([found.exported, content], found.one_row)
    except DeviceError as error:
        found.sparse = said.model_copy(update={"reason": f"{error} {error.hint}".strip()})
        return
    times = {"latency_ns": ours.median_ns, "onnx_latency_ns": onnx.median_ns}
    reason = ""
    if not same_outputs(expected, got, LOSSLESS):
        reason = "its outputs differ from those of model.onnx; please report this model"
    elif ours.median_ns > FASTER * onnx.median_ns:
        reason = "it is not faster than model.onnx"
    found.sparse = said.model_copy(update={"reason": reason, **times})
    found.sparse_file = b"" if reason else content

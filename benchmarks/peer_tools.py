"""One peer's 8-bit model from a model file and samples; runs in the peers' own environment, without edgepress.

    python benchmarks/peer_tools.py TOOL MODEL.onnx SAMPLES.npz OUT.onnx [--batch N] [--reduce-range]

SAMPLES holds one array an input, [rows, ...], named by the input's place: `0`, `1` …; all rows are used. Each
tool runs as its documentation advises for a CPU with 8-bit dot products; what it raises ends this process.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter

Feeds = dict[str, npt.NDArray[Any]]
BY_CHANNEL = 13
"""First opset whose QuantizeLinear has an axis."""


def feeds(model: Path, samples: Path, batch: int) -> Iterator[Feeds]:
    """Feeds of `batch` rows each, by the model's input names; rows that fill no batch are left out."""
    graph = onnx.load(model, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in weights]
    with np.load(samples, allow_pickle=False) as stored:
        arrays = {name: stored[str(place)] for place, name in enumerate(names)}
    rows = min(len(array) for array in arrays.values())
    for start in range(0, rows - batch + 1, batch):
        yield {name: array[start : start + batch] for name, array in arrays.items()}


def _upgraded(model: Path) -> onnx.ModelProto:
    """The model in the opset that scales by channel need, as both tools advise; as it is where that fails."""
    loaded = onnx.load(model)
    opset = next(entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx"))
    if opset >= BY_CHANNEL:
        return loaded
    try:
        return onnx.version_converter.convert_version(loaded, BY_CHANNEL)
    except Exception as error:
        logging.warning("left in opset %d: %r", opset, error)
        return loaded


def _preprocessed(model: Path, folder: str) -> Path:
    """What onnxruntime asks for before its quantizers: shapes inferred, graph optimised."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, out = Path(folder) / "upgraded.onnx", Path(folder) / "preprocessed.onnx"
    onnx.save(_upgraded(model), source)
    try:
        quant_pre_process(source, out)
    except Exception as error:  # symbolic shapes fail on many graphs; its own advice is to go without them
        logging.warning("without symbolic shapes: %r", error)
        quant_pre_process(source, out, skip_symbolic_shape=True)
    return out


def ort_static(model: Path, samples: Path, out: Path, batch: int, reduce_range: bool) -> None:
    """QDQ, activations u8, weights s8 by channel, ranges by MinMax."""
    import onnxruntime.quantization as oq

    class Reader(oq.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.feeds = feeds(model, samples, batch)

        def get_next(self) -> Feeds | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        oq.quantize_static(
            _preprocessed(model, folder),
            out,
            Reader(),
            quant_format=oq.QuantFormat.QDQ,
            activation_type=oq.QuantType.QUInt8,
            weight_type=oq.QuantType.QInt8,
            calibrate_method=oq.CalibrationMethod.MinMax,
            per_channel=True,
            reduce_range=reduce_range,
        )


def ort_dynamic(model: Path, samples: Path, out: Path, batch: int, reduce_range: bool) -> None:
    """Weights s8, activations quantized as they come."""
    import onnxruntime.quantization as oq

    with tempfile.TemporaryDirectory() as folder:
        oq.quantize_dynamic(
            _preprocessed(model, folder), out, weight_type=oq.QuantType.QInt8, reduce_range=reduce_range
        )


def nncf_ptq(model: Path, samples: Path, out: Path, batch: int, reduce_range: bool, kind: str = "") -> None:
    """`nncf.quantize` with its defaults, over all samples; `kind` names a `ModelType`."""
    import nncf

    items = list(feeds(model, samples, batch))
    quantized = nncf.quantize(
        _upgraded(model),
        nncf.Dataset(items),
        subset_size=len(items),
        model_type=nncf.ModelType(kind) if kind else None,
    )
    onnx.save(quantized, out)


Tool = Callable[[Path, Path, Path, int, bool], None]
TOOLS: dict[str, Tool] = {
    "onnxruntime static": ort_static,
    "onnxruntime dynamic": ort_dynamic,
    "NNCF": nncf_ptq,
    "NNCF transformer": partial(nncf_ptq, kind="transformer"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make one peer's 8-bit model.")
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=1, help="rows a run")
    parser.add_argument("--reduce-range", action="store_true", help="7-bit weights")
    given = parser.parse_args()
    TOOLS[given.tool](given.model, given.samples, given.out, given.batch, given.reduce_range)


if __name__ == "__main__":
    main()

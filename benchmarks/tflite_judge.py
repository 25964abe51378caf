"""How long it takes to write a model as TFLite, and both files side by side; a process of its own, as peer_judge.py.

    python benchmarks/tflite_judge.py FOLDER MODEL.onnx SECONDS

FOLDER is a model of the zoo, MODEL.onnx what became of it. The result goes to stdout as one line of JSON.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.export.tflite import convert
from edgepress.compressor.export.tflite.schema import schema
from edgepress.compressor.model import load
from edgepress.runtime.engines.base import Engine
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.measure import measure, ratio_interval
from peer_judge import open_samples

RUNS = 3
"""Conversions, of which the fastest counts."""


def judged(folder: Path, path: Path, seconds: float) -> dict[str, Any]:
    """Conversion and latency.

    Args:
        folder: of the samples.
        path: of the ONNX file.
        seconds: time limit of the measurement.

    Returns:
        `failure`, empty where all went well; `convert_seconds` (from the file on disk to the bytes of the other),
        `transposes` (all) and `other_transposes` (those that no flatten of several positions needs); `latency_ns` of
        the ONNX file and of the TFLite file, medians of interleaved runs on one row with one thread, and `ratio` of
        the second to the first with `ratio_ci95`.
    """
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        try:
            content = convert(load(path)).data
        except EdgepressError as error:
            return {"failure": str(error)}
        times.append(time.perf_counter() - started)
    turning = transposes(content)
    feeds = next(iter(open_samples(folder)[1].batches(1, with_labels=False))).feeds
    engines: list[Engine] = [OrtEngine(), LiteRTEngine(as_onnx=True)]
    before, after = measure([path, content], feeds, engine=engines, threads=1, time_limit_s=seconds)
    return {
        "failure": "",
        "convert_seconds": min(times),
        "transposes": len(turning),
        "other_transposes": turning.count(False),
        "latency_ns": [before.median_ns, after.median_ns],
        "ratio": after.median_ns / before.median_ns,
        "ratio_ci95": ratio_interval(after, before),
    }


def transposes(content: bytes) -> list[bool]:
    """Of each TRANSPOSE of a TFLite file, whether only a flatten of several positions reads it.

    Args:
        content: the file.
    """
    known = schema()
    file = known.ModelT.InitFromPackedBuf(content)
    graph, codes = file.subgraphs[0], [code.builtinCode for code in file.operatorCodes]
    kinds = [codes[operator.opcodeIndex] for operator in graph.operators]
    found = []
    for kind, operator in zip(kinds, graph.operators, strict=True):
        if kind != known.BuiltinOperator.TRANSPOSE:
            continue
        made = operator.outputs[0]
        readers = [
            (other, reader)
            for other, reader in zip(kinds, graph.operators, strict=True)
            if made in reader.inputs
        ]
        sizes = list(graph.tensors[operator.inputs[0]].shape)
        flattens = all(
            other == known.BuiltinOperator.RESHAPE and len(graph.tensors[reader.outputs[0]].shape) == 2
            for other, reader in readers
        )
        found.append(bool(readers) and flattens and len(sizes) == 4 and sizes[1] * sizes[2] > 1)
    return found


def main(argv: Sequence[str]) -> None:
    folder, path, seconds = argv
    sys.stdout.write(json.dumps(judged(Path(folder), Path(path), float(seconds))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

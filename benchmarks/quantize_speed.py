"""Time from model file to 8-bit candidate, beside onnxruntime's own `quantize_static` on the same samples.

    python benchmarks/quantize_speed.py ZOO [--rounds 3] [--rows 300] [--only NAME …]

ZOO (or EDGEPRESS_ZOO) holds folders with `model.onnx` and samples in `calib.npz` or `images/calib`. Both
tools get the same batches, read beforehand; onnxruntime uses all cores, ours `--threads`; rounds alternate.
The table goes to stdout, the numbers with versions and command to `benchmarks/results/quantize_speed.json`.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime.quantization as oq

from common import write_json
from edgepress.compressor.data import open_data
from edgepress.compressor.model import input_specs, load, to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.quantize import Quantize
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.environment import describe

Batches = Sequence[dict[str, npt.NDArray[Any]]]
BATCH = 8
RESULTS = Path(__file__).parent / "results" / "quantize_speed.json"


class Reader(oq.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands out the batches in order."""

    def __init__(self, batches: Batches) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next batch, or None."""
        return next(self.batches, None)


def ours(path: Path, batches: Batches, out: Path, threads: int) -> None:
    model = normalize(load(path)).model
    stream = Streamer(OrtEngine(), model, lambda: iter(batches), threads)
    rows = sum(len(next(iter(b.values()))) for b in batches)
    outcome = Quantize().apply(model, Context(stream=stream, rows=rows))
    assert outcome.changed, f"{path}: nothing was quantized"
    out.write_bytes(to_bytes(model))


def theirs(path: Path, batches: Batches, out: Path) -> None:
    oq.quantize_static(
        str(path),
        str(out),
        Reader(batches),
        quant_format=oq.QuantFormat.QDQ,
        per_channel=True,
        activation_type=oq.QuantType.QUInt8,
        weight_type=oq.QuantType.QInt8,
    )


def read(folder: Path, rows: int) -> Batches:
    images = folder / "images" / "calib"
    model = load(folder / "model.onnx")
    preprocess = folder / "preprocess.toml"
    data = open_data(
        images if images.is_dir() else folder / "calib.npz",
        input_specs(model),
        preprocess if preprocess.exists() else None,
    )
    chosen = np.arange(min(rows, data.rows))
    return [dict(batch.feeds) for batch in data.batches(BATCH, chosen, with_labels=False)]


def compare(folder: Path, rows: int, rounds: int, threads: int) -> dict[str, Any]:
    batches = read(folder, rows)
    seconds: dict[str, list[float]] = {"ours": [], "onnxruntime": []}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(rounds):
            for name, times in seconds.items():
                out = Path(temporary) / f"{name}.onnx"
                start = time.perf_counter()
                if name == "ours":
                    ours(folder / "model.onnx", batches, out, threads)
                else:
                    theirs(folder / "model.onnx", batches, out)
                times.append(time.perf_counter() - start)
                sizes[name] = out.stat().st_size
    return {
        "model": folder.name,
        "rows": sum(len(next(iter(b.values()))) for b in batches),
        "seconds": seconds,
        "size_bytes": sizes,
        "ratio": statistics.median(seconds["ours"]) / statistics.median(seconds["onnxruntime"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("zoo", nargs="?", default=os.environ.get("EDGEPRESS_ZOO"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.zoo is None:
        parser.error("name the zoo folder, or set EDGEPRESS_ZOO")
    logging.disable(logging.WARNING)  # quantize_static asks for a preprocessed model each time
    folders = sorted(p.parent for p in Path(options.zoo).glob("*/model.onnx"))
    found = []
    print(f"{'model':<22}{'rows':>6}{'ours, s':>10}{'ort, s':>10}{'ratio':>8}{'ours, kB':>11}{'ort, kB':>11}")
    for folder in folders:
        if options.only and folder.name not in options.only:
            continue
        row = compare(folder, options.rows, options.rounds, options.threads)
        found.append(row)
        mine, other = (statistics.median(row["seconds"][k]) for k in ("ours", "onnxruntime"))
        kilo = [row["size_bytes"][k] / 1000 for k in ("ours", "onnxruntime")]
        print(
            f"{row['model']:<22}{row['rows']:>6}{mine:>10.3f}{other:>10.3f}{row['ratio']:>8.2f}"
            f"{kilo[0]:>11.1f}{kilo[1]:>11.1f}",
            flush=True,
        )
    record = {
        "command": f"python benchmarks/quantize_speed.py ZOO {' '.join(sys.argv[2:])}".strip(),
        "batch": BATCH,
        "threads": options.threads,
        "environment": asdict(describe()),
        "results": found,
    }
    write_json(record, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Hold `compress` for emulated ARM cores against onnxruntime's own static 8-bit models, in executed instructions.

    EDGEPRESS_ZOO=DIR python benchmarks/emulated.py [--models a,b] [--targets arm,cortex-a76] [--rows N] [--out FILE]

Every model is compressed for every target within 2 %, judged on the emulated core. onnxruntime quantizes it as its
documentation advises for ARM (QDQ, weights s8), with each of the settings in `SETTINGS`; of these the one with the
fewest instructions on that core counts, whatever it loses. Told are `model.onnx` in onnxruntime, and the better of that
and `model.tflite` in LiteRT: both are handed over, and judged on the core. Exit code 1 unless both execute fewer in
every case, the better file at most 0.7 times as many in the geometric mean, and the budget is kept on the device.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import onnxruntime.quantization as oq
from rich.console import Console
from rich.table import Table

from common import (
    RESULTS,
    chosen_models,
    compress,
    known_models,
    machine,
    samples,
    shown_command,
    versions,
    write_json,
    zoo_folder,
)
from edgepress.devices.profile import load_profile
from edgepress.devices.qemu import QemuDevice
from edgepress.devices.remote import RemoteWorker

MODELS = ("fmnist_vgg", "fmnist_resnet8", "voice_lang_dscnn")
TARGETS = ("arm", "cortex-a76")
BAR = 0.7
ROWS = 500
CALIBRATION_ROWS = 128
SETTINGS: dict[str, dict[str, Any]] = {
    "s8s8 by channel": {"activation_type": oq.QuantType.QInt8, "per_channel": True},
    "s8s8": {"activation_type": oq.QuantType.QInt8, "per_channel": False},
    "s8s8 symmetric by channel": {
        "activation_type": oq.QuantType.QInt8,
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True},
    },
    "u8s8 by channel": {"activation_type": oq.QuantType.QUInt8, "per_channel": True},
    "u8s8": {"activation_type": oq.QuantType.QUInt8, "per_channel": False},
}
LIMIT_S = 1800.0

Feeds = dict[str, npt.NDArray[Any]]


class Rows(oq.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Samples one by one."""

    def __init__(self, feeds: Feeds) -> None:
        count = len(next(iter(feeds.values())))
        self.rows: Iterator[Feeds] = ({k: v[i : i + 1] for k, v in feeds.items()} for i in range(count))

    def get_next(self) -> Feeds | None:
        """The next sample, None after the last."""
        return next(self.rows, None)


def feeds_of(model: Path, archive: Path, rows: int) -> tuple[Feeds, npt.NDArray[Any] | None]:
    """The first rows of samples by input name, and their labels."""
    names = [port.name for port in onnxruntime.InferenceSession(model).get_inputs()]
    with np.load(archive, allow_pickle=False) as stored:
        labels = next((stored[key][:rows] for key in ("y", "labels") if key in stored.files), None)
        arrays = {key: stored[key][:rows] for key in stored.files if key not in ("y", "labels")}
    if len(names) == 1:
        arrays = dict(zip(names, arrays.values(), strict=True))
    return {name: array.astype(np.float32) for name, array in arrays.items()}, labels


def peers(model: Path, feeds: Feeds, folder: Path) -> dict[str, Path]:
    """Onnxruntime's 8-bit models by setting."""
    prepared = folder / "prepared.onnx"
    oq.quant_pre_process(model, prepared, skip_symbolic_shape=True)
    made = {}
    for number, (name, options) in enumerate(SETTINGS.items()):
        made[name] = folder / f"peer{number}.onnx"
        oq.quantize_static(
            prepared, made[name], Rows(feeds), quant_format=oq.QuantFormat.QDQ,
            weight_type=oq.QuantType.QInt8, **options,
        )  # fmt: skip
    return made


def counted(target: str, models: Sequence[Path], feeds: Feeds) -> list[int]:
    """Instructions of one inference of each model on a core."""
    with QemuDevice(load_profile(target)) as device:
        answer = RemoteWorker(device).ask("count", models, feeds, limit_s=LIMIT_S)
    return [int(row["instructions_total"]) for row in answer.result]


def accuracy(model: Path, feeds: Feeds, labels: npt.NDArray[Any] | None) -> float | None:
    """Percent of rows whose largest score is the label's, on this machine."""
    if labels is None:
        return None
    session = onnxruntime.InferenceSession(model)
    count = len(labels)
    scores = [
        session.run(None, {k: v[i : i + 1] for k, v in feeds.items()})[0].reshape(-1) for i in range(count)
    ]
    return float(100 * np.mean(np.argmax(scores, 1) == labels))


def case(
    zoo: Path, model: str, target: str, made: dict[str, Path], folder: Path, rows: int
) -> dict[str, Any]:
    """One model for one target: ours, and the best of onnxruntime's."""
    calib, test = samples(zoo / model)
    out = folder / f"{model}-{target}"
    words = ["--data", calib, "--test", test, "--target", target, "--budget", "2"]
    ran = compress(zoo, model, [*words, "--device-rows", str(rows)], out)
    if ran.exit_code not in (0, 1):
        raise SystemExit(f"{model} for {target}: exit code {ran.exit_code}\n{ran.told}")
    report = json.loads((out / "report.json").read_text("utf-8"))
    one, _ = feeds_of(zoo / model / "model.onnx", zoo / test, 1)
    files = [zoo / model / "model.onnx", out / "model.onnx", *made.values()]
    original, ours, *others = counted(target, files, one)
    setting, peer = min(zip(made, others, strict=True), key=lambda pair: pair[1])
    everything, labels = feeds_of(zoo / model / "model.onnx", zoo / test, sys.maxsize)
    tflite = report["tflite"] or {}
    smallest = min(ours, (tflite.get("instructions") or {"total": ours})["total"])
    return {
        "model": model,
        "target": target,
        "command": ran.command,
        "instructions_fp32": original,
        "instructions_onnxruntime": peer,
        "onnxruntime_setting": setting,
        "onnxruntime_settings": dict(zip(made, others, strict=True)),
        "instructions_ours": ours,
        "ratio": ours / peer,
        "instructions_tflite": (tflite.get("instructions") or {}).get("total"),
        "score_tflite_on_device": tflite.get("score_on_device"),
        "ratio_of_the_better_file": smallest / peer,
        "score_on_device": [report["baseline"]["score"], report["compressed"]["score"]],
        "score_onnxruntime": accuracy(made[setting], everything, labels),
        "rows_on_device": report["n_test"],
        "drop_percent": report["drop_percent"],
        "verdict": report["verdict"],
        "device": report["device"],
        "size_bytes": [report["baseline"]["size_bytes"], report["compressed"]["size_bytes"]],
        "seconds": round(ran.seconds, 1),
    }


def mean_of(rows: Sequence[dict[str, Any]], what: str) -> float:
    """Geometric mean of a ratio over all cases."""
    return math.exp(sum(math.log(row[what]) for row in rows) / len(rows))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table on stdout."""
    table = Table(box=None, pad_edge=False)
    for heading in (
        "model", "target", "fp32", "onnxruntime", "ours", "ratio", "better file", "on the device", "verdict",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("model", "target", "verdict") else "right")
    for row in rows:
        counts = (row["instructions_fp32"], row["instructions_onnxruntime"], row["instructions_ours"])
        before, after = row["score_on_device"]
        table.add_row(
            row["model"], row["target"], *(f"{count / 1e6:.3f} M" for count in counts), f"{row['ratio']:.3f}",
            f"{row['ratio_of_the_better_file']:.3f}",
            f"{before:.2f} → {after:.2f} of {row['rows_on_device']}", row["verdict"],
        )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    onnx, better = mean_of(rows, "ratio"), mean_of(rows, "ratio_of_the_better_file")
    console.print(f"geometric mean {onnx:.3f} by model.onnx, {better:.3f} by the better file (bar {BAR})")


def main() -> int:
    parser = argparse.ArgumentParser(description="Instructions on emulated ARM cores against onnxruntime's.")
    parser.add_argument("--models", help="comma-separated; the three of the acceptance where they are there")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--rows", type=int, default=ROWS, help="unseen rows judged on the device")
    parser.add_argument("--out", type=Path, default=RESULTS / "emulated.json")
    given = parser.parse_args()
    zoo = zoo_folder()
    usual = ",".join(name for name in MODELS if name in known_models(zoo)) or None
    models = chosen_models(zoo, given.models or usual)
    document: dict[str, Any] = {
        "command": shown_command("benchmarks/emulated.py", sys.argv[1:]),
        "machine": machine(),
        "versions": versions(),
    }
    rows = []
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            feeds, _ = feeds_of(zoo / model / "model.onnx", zoo / samples(zoo / model)[0], CALIBRATION_ROWS)
            made = peers(zoo / model / "model.onnx", feeds, Path(folder))
            for target in given.targets.split(","):
                rows.append(case(zoo, model, target, made, Path(folder), given.rows))
                latest = rows[-1]
                print(f"{model} {target}: {latest['ratio']:.3f}", file=sys.stderr, flush=True)
    means = {f"geometric_mean_{what}": mean_of(rows, what) for what in ("ratio", "ratio_of_the_better_file")}
    write_json({**document, **means, "cases": rows}, given.out)
    show(rows)
    good = all(row["ratio"] < 1 and row["verdict"] == "kept" for row in rows)
    return 0 if good and means["geometric_mean_ratio_of_the_better_file"] <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())

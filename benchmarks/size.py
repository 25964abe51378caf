"""Memory and time of `compress` on models that are large in some way: bytes, width, nodes, samples.

    python benchmarks/size.py [--only large,wide,nodes,samples] [--gigabytes 3] [--out FILE]

| case | model | bar |
|---|---|---|
| large | a chain of MatMul, weights outside the file | 4-bit weight-only in under 1 GB, 50 MB/s |
| wide | a perceptron with a layer of 100 000 neurons, searched with samples | it ends, with a model |
| nodes | a chain of 5 000 nodes | under 60 s |
| samples | one perceptron, calibrated on 1 000 and on 16 000 rows | memory differs by less than the rows take |

Models are generated in a temporary folder. Each run is a process of its own. Its memory is the peak of what is
resident, less what it was with everything imported; processes that it starts to run or time the model count by
themselves: those take what the model takes. Figures go to benchmarks/results/size.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from common import GIVE_UP, RESULTS, machine, shown_command, versions, write_json

WORKER = """
import json, resource, sys
import edgepress.compressor.session, onnxscript.optimizer, scipy.linalg
from edgepress.compressor.cli import main
from edgepress.compressor.cli import run

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

before, code = peak(), 0
sys.argv[0] = "compress"
facts = sys.argv.pop(1)
try:
    main()
except SystemExit as done:
    code = done.code
own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
json.dump({
    "exit_code": code,
    "interpreter_mb": before / 1e6,
    "peak_above_mb": (peak() - before) / 1e6,
    "peak_of_a_child_mb": children.ru_maxrss * 1024 / 1e6,
    "cpu_seconds": own.ru_utime + own.ru_stime,
    "cpu_seconds_children": children.ru_utime + children.ru_stime,
}, open(facts, "w"))
"""
"""Runs the command in its own process and writes what that took."""

BARS = {"large_mb": 1000, "large_mb_per_second": 50, "nodes_seconds": 60, "samples_mb": 50}
"""`samples_mb`: what 16 000 rows of 784 float32 take."""

LARGE_WIDTH, NODES, WIDE = 4096, 5000, 100_000
GOOD_CODES = (0, 1, 4)

WIDE_RECIPES = (
    ("quantize",),
    ("store", "weight_bits = 4"),
    ("weight_only",),
    ("low_rank", "energy = 0.9"),
    ("shrink", "share = 0.5"),
)


def chain(folder: Path, width: int, layers: int) -> Path:
    """MatMul and Relu in turn, weights [width, width] outside the file.

    Args:
        folder: where it is written.
        width: of every layer.
        layers: how many.
    """
    block = np.random.default_rng(0).standard_normal((width, width), np.float32) / np.float32(width**0.5)
    weights, nodes = [], []
    with (folder / "model.onnx.data").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            where = {"location": "model.onnx.data", "offset": file.tell(), "length": block.nbytes}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.roll(block, 7 * layer + 1, axis=1).tobytes())
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"m{layer}"]))
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"x{layer + 1}"]))
    return save(folder, nodes, weights, ("x0", width), (f"x{layers}", width))


def perceptron(folder: Path, *sizes: int) -> Path:
    """Gemm and Relu in turn.

    Args:
        folder: where it is written.
        sizes: inputs, hidden layers, outputs.
    """
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for layer, (before, after) in enumerate(pairwise(sizes)):
        matrix = random.standard_normal((after, before), np.float32) / np.float32(before**0.5)
        weights.append(onnx.numpy_helper.from_array(matrix, f"w{layer}"))
        weights.append(onnx.numpy_helper.from_array(np.zeros(after, np.float32), f"b{layer}"))
        last = layer == len(sizes) - 2
        given = [f"x{layer}", f"w{layer}", f"b{layer}"]
        nodes.append(helper.make_node("Gemm", given, [f"x{layer + 1}" if last else f"h{layer}"], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{layer}"], [f"x{layer + 1}"]))
    return save(folder, nodes, weights, ("x0", sizes[0]), (f"x{len(sizes) - 1}", sizes[-1]))


def many_nodes(folder: Path, count: int) -> Path:
    """Groups of Gemm, Relu, Mul and Add, none of which folds into another.

    Args:
        folder: where it is written.
        count: of nodes, a multiple of 4.
    """
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for group in range(count // 4):
        matrix = random.standard_normal((16, 16)).astype(np.float32) / 4
        weights.append(onnx.numpy_helper.from_array(matrix, f"w{group}"))
        weights.append(onnx.numpy_helper.from_array(np.full(16, 1e-3, np.float32), f"s{group}"))
        steps = [
            ("Gemm", [f"x{group}", f"w{group}"], f"g{group}"),
            ("Relu", [f"g{group}"], f"r{group}"),
            ("Mul", [f"r{group}", f"s{group}"], f"m{group}"),
            ("Add", [f"m{group}", f"x{group}"], f"x{group + 1}"),
        ]
        nodes += [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    return save(folder, nodes, weights, ("x0", 16), (f"x{count // 4}", 16))


def save(
    folder: Path, nodes: list[Any], weights: list[Any], given: tuple[str, int], result: tuple[str, int]
) -> Path:
    """Write a model of one input [n, size] and one output, both as name and size."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (given, result)
    ]
    graph = helper.make_graph(nodes, "generated", ends[:1], ends[1:], weights)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def rows(folder: Path, count: int, size: int) -> Path:
    """Unlabelled samples in an npz."""
    path = folder / f"rows{count}.npz"
    np.savez(path, x0=np.random.default_rng(1).standard_normal((count, size)).astype(np.float32))
    return path


def run(model: Path, *options: str | Path) -> dict[str, Any]:
    """What `compress` took for a model."""
    out, facts = model.parent / "out", model.parent / "facts.json"
    words = [model.name, *map(str, options), "--out", out.name, "--force", "--no-cache", "--format", "onnx"]
    load, started = os.getloadavg()[0], time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(facts), *words],
        cwd=model.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=GIVE_UP,
        check=False,
    )
    seconds = time.monotonic() - started
    if not facts.exists():
        return {"exit_code": done.returncode, "seconds": seconds, "told": done.stderr.strip()[-300:]}
    found: dict[str, Any] = json.loads(facts.read_text("utf-8"))
    facts.unlink()
    if (out / "report.json").exists():
        report = json.loads((out / "report.json").read_text("utf-8"))
        found["seconds_by_stage"] = report["seconds"]
        found["size_bytes"] = [report[side]["size_bytes"] for side in ("baseline", "compressed")]
    return {
        "command": " ".join(["compress", *words]),
        "seconds": seconds,
        "load_1min_at_start": round(load, 2),
        **found,
        "told": done.stderr.strip()[-300:],
    }


def recipe(folder: Path, kind: str, *fields: str) -> Path:
    """A recipe of one pass."""
    path = folder / "recipe.toml"
    path.write_text("\n".join(["[[pass]]", f'kind = "{kind}"', *fields, ""]), "utf-8")
    return path


def large(folder: Path, gigabytes: float) -> dict[str, Any]:
    layers = round(gigabytes * 1e9 / (4 * LARGE_WIDTH**2))
    model = chain(folder, LARGE_WIDTH, layers)
    size = (folder / "model.onnx.data").stat().st_size
    found = run(model, "--recipe", recipe(folder, "weight_only").name)
    rate = size / 1e6 / found["seconds"]
    return {"model_bytes": size, "layers": layers, "mb_per_second": rate, "runs": [found]}


def wide(folder: Path, _: float) -> dict[str, Any]:
    model = perceptron(folder, 784, WIDE, 10)
    data = rows(folder, 256, 784)
    found = []
    for kind, *fields in WIDE_RECIPES:
        taken = run(model, "--recipe", recipe(folder, kind, *fields).name, "--data", data.name)
        found.append({"recipe": " ".join([kind, *fields]), **taken})
    found.append(run(model, "--data", data.name, "--time-limit", "1"))
    return {"width": WIDE, "runs": found}


def nodes(folder: Path, _: float) -> dict[str, Any]:
    model = many_nodes(folder, NODES)
    data = rows(folder, 64, 16)
    found = [
        run(model, "--recipe", recipe(folder, kind).name, "--data", data.name)
        for kind in ("store", "quantize")
    ]
    return {"nodes": NODES, "runs": found}


def samples(folder: Path, _: float) -> dict[str, Any]:
    model = perceptron(folder, 784, 512, 10)
    step = recipe(folder, "quantize").name
    counts = (1000, 16_000)
    found = [run(model, "--recipe", step, "--data", rows(folder, count, 784).name) for count in counts]
    return {"rows": counts, "runs": found}


CASES: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "large": large,
    "wide": wide,
    "nodes": nodes,
    "samples": samples,
}


def shortfalls(name: str, found: Mapping[str, Any]) -> list[str]:
    """What a case should have done and did not, one line each.

    Args:
        name: of the case.
        found: what it gave.
    """
    runs = found["runs"]
    failed = [f"exit code {each['exit_code']}" for each in runs if each["exit_code"] not in GOOD_CODES]
    if failed or any("peak_above_mb" not in each for each in runs):
        return failed or ["no figures"]
    peaks = [each["peak_above_mb"] for each in runs]
    short = []
    if name == "large":
        if peaks[0] >= BARS["large_mb"]:
            short.append(f"{peaks[0]:.0f} MB, not under {BARS['large_mb']}")
        if found["mb_per_second"] < BARS["large_mb_per_second"]:
            short.append(f"{found['mb_per_second']:.1f} MB/s, not {BARS['large_mb_per_second']}")
    if name == "nodes":
        slow = [each["seconds"] for each in runs if each["seconds"] >= BARS["nodes_seconds"]]
        short += [f"{seconds:.0f} s, not under {BARS['nodes_seconds']}" for seconds in slow]
    if name == "samples" and max(peaks) - min(peaks) >= BARS["samples_mb"]:
        short.append(f"peaks {max(peaks) - min(peaks):.0f} MB apart, not under {BARS['samples_mb']}")
    return short


def measured(names: list[str], gigabytes: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each case with what was found; its model goes before the next one is made."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="edgepress-size-") as folder:
            yield name, CASES[name](Path(folder), gigabytes)


def main() -> int:
    """Measure, print and store; 1 where a run failed or a bar was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "size.json")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        parser.error(f"no such case: {', '.join(unknown)}; there are: {', '.join(CASES)}")
    kept = json.loads(options.out.read_text("utf-8"))["cases"] if options.out.exists() else {}
    failed = False
    for name, found in measured(names, options.gigabytes):
        short = shortfalls(name, found)
        failed |= bool(short)
        kept[name] = {
            **found, "met": not short, "short": short, "machine": machine(), "versions": versions(),
        }  # fmt: skip
        for each in found["runs"]:
            told = {key: each.get(key) for key in ("exit_code", "seconds", "cpu_seconds", "peak_above_mb")}
            print(f"{name:<9}{told} {found.get('mb_per_second', '')} {each.get('told', '')}", flush=True)
        print(f"{name:<9}{'met' if not short else '; '.join(short)}", flush=True)
        document = {
            "command": shown_command("python benchmarks/size.py", sys.argv[1:]),
            "bars": BARS,
            "cases": kept,
        }
        write_json(document, options.out)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())

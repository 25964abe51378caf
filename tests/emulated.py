"""What tests of emulated devices share: nets, their static 8-bit forms, and the worker on such a device."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edgepress.devices.armboard import write_board
from edgepress.devices.armroot import emulator, guest_environment, python_in, userland
from edgepress.devices.base import Device, DeviceTroubleError
from edgepress.devices.profile import load_profile
from edgepress.devices.qemu import QemuDevice
from edgepress.runtime import worker

Feeds = Mapping[str, npt.NDArray[Any]]
SIDE, CHANNELS = 28, (32, 64, 64)
MACS = SIDE * SIDE * 9 * sum(a * b for a, b in pairwise(CHANNELS))
"""Multiply-accumulates of `conv_net`, its convolutions alone."""


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    def __init__(self, feeds: Feeds) -> None:
        self.rows = iter([dict(feeds)])

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self.rows, None)


@cache
def unavailable() -> str:
    """Why no device can be emulated here; empty where one can."""
    try:
        with QemuDevice(load_profile("cortex-a72")):
            return ""
    except DeviceTroubleError as error:
        return f"{error} {error.hint}"


@pytest.fixture
def emulation() -> None:
    """The test needs the emulator, its userland and a compiler; skipped, with the reason, where one is missing."""
    if unavailable():
        pytest.skip(f"no emulated device: {unavailable()}")


@contextmanager
def arm_python(core: str = "cortex-a72") -> Iterator[tuple[str, ...]]:
    """The command that starts Python of the emulated userland, with the files of a board around it."""
    starter = emulator(print)
    root = userland(starter, print)
    with tempfile.TemporaryDirectory() as folder:
        board = Path(folder) / "board"
        write_board(board, root, core, 1)
        words = [f"{name}={value}" for name, value in guest_environment(root).items()]
        words += ["PYTHONDONTWRITEBYTECODE=1", *starter, "-L", str(board), "-cpu", core]
        yield ("/usr/bin/env", *words, str(python_in(root)))


def conv_net(path: Path) -> Feeds:
    """Write two 3×3 convolutions on 28×28 with ReLU, and give feeds of one row for it."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index, (inputs, outputs) in enumerate(pairwise(CHANNELS)):
        w = rng.standard_normal((outputs, inputs, 3, 3)) * (2 / 9 / inputs) ** 0.5
        weights += [
            onnx.numpy_helper.from_array(w.astype(np.float32), f"w{index}"),
            onnx.numpy_helper.from_array(rng.standard_normal(outputs).astype(np.float32) / 10, f"b{index}"),
        ]
        names = [value, f"w{index}", f"b{index}"]
        nodes.append(onnx.helper.make_node("Conv", names, [f"c{index}"], pads=[1, 1, 1, 1]))
        value = f"r{index}"
        nodes.append(onnx.helper.make_node("Relu", [f"c{index}"], [value]))
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, SIDE, SIDE])
        for name, channels in (("x", CHANNELS[0]), (value, CHANNELS[-1]))
    ]
    graph = onnx.helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return {"x": rng.standard_normal((1, CHANNELS[0], SIDE, SIDE)).astype(np.float32)}


def quantized(model: Path, feeds: Feeds, target: Path) -> Path:
    """onnxruntime's static 8-bit form. Seven bits of weights: products then fit 16 bits on any x86 as well."""
    quantize_static(
        model, target, _Rows(feeds), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, extra_options={"ActivationSymmetric": True},
    )  # fmt: skip
    return target


def ask(device: Device, task: str, models: Sequence[Path], feeds: Feeds, **more: Any) -> Any:
    """Have the travelling worker on an open device do a task for models that are brought there."""
    with tempfile.TemporaryDirectory() as folder:
        device.put(worker.bundle(Path(folder) / "worker.pyz"), "worker.pyz")
        device.put(Path(worker.save_feeds(feeds, Path(folder) / "feeds.npz")), "feeds.npz")
    for index, model in enumerate(models):
        device.put(model, f"m{index}{model.suffix}")
    request = {
        "task": task, "feeds": "feeds.npz", "inputs": list(feeds),
        "models": [f"m{index}{model.suffix}" for index, model in enumerate(models)], **more,
    }  # fmt: skip
    done = device.run((*device.python, "worker.pyz"), given=json.dumps(request).encode())
    assert done.code == 0, done.err
    return json.loads(done.out)["result"]

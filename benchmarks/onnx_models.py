"""The test models that the onnx package brings, with what they are fed and what they give.

Most are one node, and their weights are inputs; so each comes in a second form, in which whatever can be a weight
is one.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
CONSTANT = "constant"
"""What is put behind the name of a model whose weights were made constants."""

IR_VERSION = 11
"""Generated models say the newest there is, which engines do not take yet; nothing in them needs it."""

Values = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model and what belongs to it.

    Attributes:
        name: of the test.
        model: the model.
        sets: (inputs, expected outputs) by name; values that are no tensors are lists or None.
        rtol: relative tolerance that the test allows.
        atol: absolute tolerance, likewise.
    """

    name: str
    model: onnx.ModelProto
    sets: tuple[tuple[Values, Values], ...]
    rtol: float
    atol: float


def cases(kinds: tuple[str, ...] = KINDS) -> Iterator[Case]:
    """Every test model of these kinds, each followed by the form with constant weights where there is one.

    Args:
        kinds: of `KINDS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy, on overflows that cases are about
        from onnx.backend.test.loader import load_model_tests

        found = [(kind, test) for kind in kinds for test in load_model_tests(kind=kind)]
    for kind, test in found:
        if test.model is None:
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            data = [_stored(each, model) for each in sorted(folder.glob("test_data_set_*"))]
        else:
            model, data = test.model, test.data_sets or []
        model.ir_version = min(model.ir_version, IR_VERSION)
        case = Case(
            f"{kind}/{test.name}",
            model,
            tuple((_named(model.graph.input, ins), _named(model.graph.output, outs)) for ins, outs in data),
            test.rtol,
            test.atol,
        )
        yield case
        if constant := with_constants(case):
            yield constant


def light_models() -> Iterator[tuple[str, Path]]:
    """Names and files of the light models: whole topologies, with weights that are generated as they run."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for file in sorted(folder.glob("*.onnx")):
        yield file.stem, file


def with_constants(case: Case) -> Case | None:
    """The same with every input but the first made a weight, or None where that is not to be had."""
    graph = case.model.graph
    held = {tensor.name for tensor in graph.initializer}
    fed = [port for port in graph.input if port.name not in held]
    movable = [port.name for port in fed[1:] if port.type.HasField("tensor_type")]
    if len(case.sets) != 1 or len(movable) != len(fed) - 1 or not movable:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 4)  # before, every weight was an input, too
    inputs, outputs = case.sets[0]
    kept = [port for port in model.graph.input if port.name not in movable]
    ports = [onnx.ValueInfoProto.FromString(port.SerializeToString()) for port in kept]
    del model.graph.input[:]
    model.graph.input.extend(ports)
    for port in fed[1:]:
        array = inputs[port.name]
        if not isinstance(array, np.ndarray):
            return None
        tensor = onnx.numpy_helper.from_array(array, port.name)
        if tensor.data_type != port.type.tensor_type.elem_type:
            return None
        model.graph.initializer.append(tensor)
    left = {name: value for name, value in inputs.items() if name not in movable}
    return replace(case, name=f"{case.name}, {CONSTANT}", model=model, sets=((left, outputs),))


def _named(ports: Any, values: Any) -> Values:
    return {
        port.name: onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        for port, value in zip(ports, values, strict=False)
    }


def _stored(folder: Path, model: onnx.ModelProto) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of one data set, in the order of the model's."""
    return (
        [_read(file) for file in sorted(folder.glob("input_*.pb"), key=_number)],
        [_read(file) for file in sorted(folder.glob("output_*.pb"), key=_number)],
    )


def _number(file: Path) -> int:
    return int(file.stem.rpartition("_")[2])


def _read(file: Path) -> Any:
    tensor = onnx.TensorProto()
    tensor.ParseFromString(file.read_bytes())
    return onnx.numpy_helper.to_array(tensor)

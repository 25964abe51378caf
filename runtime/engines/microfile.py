"""What is in a TFLite file, by the schema that comes with tflite-micro: its operators, its inputs and outputs."""

from __future__ import annotations

from collections import Counter
from typing import Any


def schema() -> Any:
    """The generated module."""
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated

    return schema_py_generated


def codes(file: Any) -> list[Any]:
    """The operator code of each operator."""
    return [file.operatorCodes[step.opcodeIndex] for step in _steps(file)]


def _steps(file: Any) -> list[Any]:
    return [step for graph in file.subgraphs for step in (graph.operators or [])]


def operators(file: Any) -> list[tuple[str, str]]:
    """Kind and name of the first result of each operator."""
    named = {
        value: name for name, value in vars(schema().BuiltinOperator).items() if not name.startswith("_")
    }
    found = []
    for graph in file.subgraphs:
        for step in graph.operators or []:
            code = file.operatorCodes[step.opcodeIndex]
            kind = named.get(max(code.builtinCode, code.deprecatedBuiltinCode), "unknown")
            if kind == "CUSTOM":
                kind = text_of(code.customCode)
            place = next((int(index) for index in step.outputs), -1) if step.outputs is not None else -1
            found.append((kind, text_of(graph.tensors[place].name) if place >= 0 else ""))
    return found


def floats(file: Any) -> Counter[str]:
    """Operators with a result in floats, but for those that only lead out of integers."""
    float_type, found = schema().TensorType.FLOAT32, Counter[str]()
    kinds = iter(operators(file))
    for graph in file.subgraphs:
        for step in graph.operators or []:
            kind, _ = next(kinds)
            outputs = [] if step.outputs is None else step.outputs
            if kind != "DEQUANTIZE" and any(
                graph.tensors[int(place)].type == float_type for place in outputs
            ):
                found[kind] += 1
    return found


def border_names(file: Any) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs in the graph's order, the signature's where there is one."""
    graph = file.subgraphs[0]
    signatures = file.signatureDefs or []
    kinds = ((graph.inputs, "inputs"), (graph.outputs, "outputs"))
    found = []
    for places, kind in kinds:
        called = (
            {int(each.tensorIndex): text_of(each.name) for each in getattr(signatures[0], kind)}
            if signatures
            else {}
        )
        found.append([called.get(int(place), text_of(graph.tensors[int(place)].name)) for place in places])
    return found[0], found[1]


def text_of(name: bytes | str | None) -> str:
    """A name as text; FlatBuffers have bytes."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""

"""A classifier whose last input says on which rows a candidate errs, and rows with so many right, lost and gained."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from clicase import Case, Outcome
from onnx import TensorProto, helper, numpy_helper

from edgepress.compressor.report.gate import Gate

CLASSES = 4
TURN = 1000.0


def classifier(
    path: Path, turn: float = TURN, output: str = "y", scale: float = 1.0, rows: int | str = "n"
) -> Path:
    """y = x @ W [rows, 4]: the first four inputs are the scores; the fifth, times `turn`, speaks for class 0."""
    weight = scale * np.vstack([np.eye(CLASSES), turn * np.eye(CLASSES)[:1]]).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], [output])],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, CLASSES + 1])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [rows, CLASSES])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def rows(both: int, lost: int, gained: int, neither: int, seed: int = 0) -> dict[str, Any]:
    """Rows for a baseline with `turn=0` and a candidate with another: x [n, 5], y [n], in random order."""
    n = both + lost + gained + neither
    rng = np.random.default_rng(seed)
    answer = rng.integers(1, CLASSES, n)
    x = np.hstack([np.eye(CLASSES)[answer], np.zeros((n, 1))]).astype(np.float32)
    labels = answer.copy()
    labels[both : both + lost + gained] = (
        np.repeat([0, 0], [lost, gained]) + labels[both : both + lost + gained]
    )
    x[both : both + lost + gained, -1] = 1  # the candidate answers 0 there
    labels[both + lost : both + lost + gained] = 0
    labels[both + lost + gained :] = 1 + answer[both + lost + gained :] % (CLASSES - 1)
    order = rng.permutation(n)
    return {"x": x[order], "y": labels[order]}


@pytest.fixture
def pair(case: Case) -> Case:
    """`base.onnx` and `ours.onnx`, which errs where the rows say."""
    classifier(case.folder / "base.onnx", turn=0)
    classifier(case.folder / "ours.onnx")
    return case


def judged(
    case: Case, *words: object, baseline: str = "base.onnx", candidate: str = "ours.onnx"
) -> tuple[Outcome, Gate]:
    """What `compress gate` says of them on `rows.npz`."""
    found = case.run("gate", baseline, candidate, "--test", "rows.npz", *words, "--json", "gate.json")
    assert "Traceback" not in found.err, found.err
    return found, Gate.model_validate_json(Path("gate.json").read_bytes())

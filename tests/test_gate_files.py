"""`compress gate` on files other than ONNX of any number of rows."""

import gating
import models_wild
import numpy as np
import onnx
import pytest
from clicase import Case
from gating import judged, pair

from edgepress.compressor.cli.gate_run import in_pieces
from edgepress.compressor.export.sparse import from_model, write_sparse
from edgepress.compressor.model import load

__all__ = ["pair"]


def test_models_of_a_fixed_batch_and_tflite_files_are_candidates(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(290, 1, 1, 8))
    gating.classifier(pair.folder / "three.onnx", rows=3)
    _, expected = judged(pair)
    _, fixed = judged(pair, candidate="three.onnx")
    assert fixed.criteria[0] == expected.criteria[0]
    assert pair.run("export", "ours.onnx", "--shape", "x=1,5").code == 0
    _, other = judged(pair, candidate="ours.tflite")
    assert other.criteria[0] == expected.criteria[0]
    assert pair.run("export", "base.onnx", "--shape", "x=1,5").code == 0
    _, both = judged(pair, baseline="base.tflite", candidate="ours.tflite")
    assert both.criteria[0] == expected.criteria[0]


def test_files_for_the_sparse_engine_are_candidates_and_baselines(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(290, 1, 1, 8))
    _, expected = judged(pair)
    for name in ("base", "ours"):
        write_sparse(from_model(load(pair.folder / f"{name}.onnx")), pair.folder / f"{name}.npz")
    limits = ("--max-size", "1x", "--max-latency-ratio", 1000, "--max-memory", "5GB", "--seconds", 0.1)
    _, gate = judged(pair, *limits, candidate="ours.npz")
    assert gate.criteria[0] == expected.criteria[0]
    assert {each.kind for each in gate.criteria} == {"quality", "latency", "size", "memory"}
    assert gate.candidate.size_bytes == (pair.folder / "ours.npz").stat().st_size
    _, both = judged(pair, baseline="base.npz", candidate="ours.npz")
    assert both.criteria[0] == expected.criteria[0]
    damaged, gate = judged(pair, candidate="rows.npz")
    assert (damaged.code, gate.verdict) == (1, "broken")
    assert "is no sparse model" in gate.criteria[0].reason
    refused = pair.run("gate", "rows.npz", "ours.npz", "--test", "rows.npz")
    assert (refused.code, "is no sparse model" in refused.err) == (2, True)


@pytest.mark.parametrize("made", [models_wild.alone(), models_wild.boxes("N"), models_wild.boxes("1")])
def test_models_whose_rows_have_to_be_run_one_by_one_are_gated(case: Case, made: onnx.ModelProto) -> None:
    """Traced with one row; detectors, whose pictures end in all boxes together, or in each one's own."""
    size = [dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(0).standard_normal((40, *size)).astype(np.float32)
    case.samples("rows.npz", x=x)
    onnx.save(made, case.folder / "base.onnx")
    for name, change, code, verdict in (
        ("near", lambda w: w * np.float32(1.0001), 0, "kept"),
        ("far", lambda w: w[::-1].copy(), 1, "broken"),
    ):
        other = onnx.ModelProto()
        other.CopyFrom(made)
        for weight in other.graph.initializer:
            if weight.name in ("k", "k1"):
                values = change(onnx.numpy_helper.to_array(weight))
                weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(other, case.folder / f"{name}.onnx")
        found, gate = judged(case, "--metric", "fidelity", candidate=f"{name}.onnx")
        assert (found.code, gate.verdict, gate.rows) == (code, verdict, 40), found.err
        assert all(each.baseline is not None for each in gate.criteria)


def test_boxes_of_single_pictures_are_not_put_together() -> None:
    run = in_pieces(lambda feeds: {"y": np.ones((1, int(feeds["x"].sum()), 4))}, 1)
    assert run({"x": np.array([[3.0], [3.0]])})["y"].shape == (2, 3, 4)
    assert run({"x": np.array([[3.0], [2.0]])})["y"].shape == (1, 3, 4)

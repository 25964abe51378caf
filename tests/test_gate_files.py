"""`compress gate` on files other than ONNX of any number of rows."""

import gating
from clicase import Case
from gating import judged, pair

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

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgepress.runtime
from edgepress.runtime import worker
from edgepress.runtime.memory import memory_peak_bytes, null_model
from edgepress.runtime.record import EngineError

FEEDS = {"x": np.zeros(1, np.float32)}
RUNTIME = Path(edgepress.runtime.__file__).parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def expanding(megabytes: int) -> bytes:
    """A model whose one run makes a tensor of this size."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1] x) => (float y) <int64[1] size = {{{megabytes << 18}}}>
    {{ big = Expand(x, size)  bigger = Exp(big)  y = ReduceMax <keepdims = 0> (bigger) }}
    """
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.fixture
def null(tmp_path) -> Path:
    path = tmp_path / "null.onnx"
    path.write_bytes(null_model())
    return path


def fake_python(tmp_path: Path, body: str) -> str:
    """An interpreter that does `body` instead of our work."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{textwrap.dedent(body)}\n")
    path.chmod(0o755)
    return str(path)


def test_null_model_is_a_valid_model():
    onnx.checker.check_model(onnx.load_from_string(null_model()), full_check=True)


@linux
def test_what_a_run_allocates_is_seen():
    peak = memory_peak_bytes(expanding(64), FEEDS, repeats=1)
    assert 60 << 20 < peak < 160 << 20  # one or two tensors of 64 MB, as the engine reuses them


@linux
def test_null_model_costs_next_to_nothing():
    assert 0 <= memory_peak_bytes(null_model(), FEEDS, repeats=1) < 2 << 20


def test_engine_errors_come_through_from_the_other_process(null):
    with pytest.raises(EngineError, match=r"cannot run .*null\.onnx"):
        worker.ask("memory", [null], {"z": FEEDS["x"]})
    with pytest.raises(EngineError, match="unknown task 'dance'"):
        worker.ask("dance", [null], FEEDS)


def test_odd_input_names_and_text_survive_the_trip(tmp_path):
    path = worker.save_feeds(
        {"file": np.arange(3), "in/put:0": np.array(["a", "bc"], dtype=object)}, tmp_path / "feeds.npz"
    )
    with np.load(path, allow_pickle=False) as archive:
        assert archive["a0"].tolist() == [0, 1, 2]
        assert archive["a1"].tolist() == ["a", "bc"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.kill(os.getpid(), 9)", "signal 9"),
        ("sys.exit('no such module')", "failed with code 1: no such module"),
        ("print('hello')", "no readable answer"),
        ("time.sleep(30)", "did not answer within 0.5 s"),
    ],
)
def test_a_process_that_dies_or_hangs_is_a_clear_error(null, tmp_path, body, said):
    limit = 0.5 if "sleep" in body else 30.0
    with pytest.raises(EngineError, match=said):
        worker.ask("memory", [null], FEEDS, python=fake_python(tmp_path, body), time_limit_s=limit)


def test_what_libraries_print_does_not_spoil_the_answer():
    code = (
        "from edgepress.runtime import worker\n"
        "worker.serve = lambda request: print('noise', flush=True) or 7\n"
        "worker.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="{}", capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["result"] == 7
    assert "noise" in done.stderr


def test_the_bundle_is_one_file_that_runs_alone(null, tmp_path):
    bundle = worker.bundle(tmp_path / "worker.pyz")
    assert bundle.read_bytes() == worker.bundle(tmp_path / "again.pyz").read_bytes()
    request = {
        "task": "time",
        "models": [str(null)],
        "feeds": worker.save_feeds(FEEDS, tmp_path / "feeds.npz"),
        "inputs": ["x"],
        "time_limit_s": 0.05,
    }
    # The installed package is hidden, as on a board that has only numpy and the engine.
    code = (
        "import runpy, sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"runpy.run_path({str(bundle)!r}, run_name='__main__')\n"
        "print(sys.modules['edgepress.runtime.worker'].__file__, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(bundle) + os.sep in done.stderr
    (answer,) = json.loads(done.stdout)["result"]
    assert answer["median_ns"] > 0


@pytest.mark.parametrize("path", sorted(RUNTIME.rglob("*.py")), ids=lambda path: path.stem)
def test_what_travels_is_python_3_9(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert not keywords & {"strict", "slots", "kw_only"}

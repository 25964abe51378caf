"""Damaged files end in clear messages: readers in this process, and a few commands; `make test-all` has more."""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mutation
import mutation_subjects
from edgepress.compressor.certify.certificate import Certificate, load_box
from edgepress.compressor.cli import gate_settings
from edgepress.compressor.cli.again import options_of
from edgepress.compressor.cli.timings import read_timings
from edgepress.compressor.data import open_data
from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.evolve import checkpoint
from edgepress.compressor.images import read_preprocess
from edgepress.compressor.job import Job
from edgepress.compressor.model import load, to_bytes
from edgepress.compressor.recipe import parse
from edgepress.compressor.report import manifest, pareto, record
from edgepress.compressor.report.fields import parse_record
from edgepress.compressor.specs import InputSpec
from edgepress.devices.profile import ProfileError, dump_profile, load_profile
from mutators import Mutator, mutate_bytes, mutate_model, mutate_text

BENCHMARKS = Path(mutation.__file__).parent
X = [InputSpec("x", np.dtype(np.float32), (None, 1, 6, 6))]


def run_script(code: str) -> subprocess.CompletedProcess[str]:
    """A script in the benchmarks' folder, in a process of its own: it splits itself."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    environment["PYTHONPATH"] = os.pathsep.join([str(BENCHMARKS), environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,  # for machines that do much else
    )


def test_a_reader_that_raises_dies_or_never_ends_is_found() -> None:
    code = """
import os, signal, sys, mutation
from mutation_subjects import BOARD, Subject
from edgepress.compressor.cli import boards
found = boards.find_target
faults = iter(
    (lambda: 1 / 0, lambda: os.kill(os.getpid(), signal.SIGSEGV), lambda: sum(1 for _ in iter(int, 1)))
)
mutation.LIMIT_S = 5
mutation.stage = lambda clean: (clean / "board.toml").write_text(BOARD, encoding="utf-8")
words = ("devices", "show", "board.toml")
mutation.SUBJECTS = (Subject("profile", "board.toml", lambda data, rng: data + b"#", words),)
examine = mutation.examine
def broken(subject, clean, data):
    if data.endswith(b"#"):
        fault = next(faults)
        boards.find_target = lambda name: fault()
    return examine(subject, clean, data)
mutation.examine = broken
sys.exit(mutation.main(["--count", "3"]))
"""
    done = run_script(code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "profile 0: crash: ZeroDivisionError" in done.stdout
    assert "profile 1: killed by SIGSEGV" in done.stdout
    assert "profile 2: no end" in done.stdout


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (0, "", "went through"),
        (2, "compress: no.\n  Mend it.", "refused"),
        (2, "warning: odd\ncompress: no.", "refused"),
        (2, "", "unclear"),
        (2, "compress: " + "x" * 5000, "unclear"),
        (2, "compress: a\nb\nc\nd", "unclear"),
        (70, "compress: This is an error of the tool itself", "crash"),
    ],
)
def test_outcomes(tmp_path: Path, code: int, said: str, kind: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "told").touch()
    assert mutation._kind(code, said, tmp_path / "here").startswith(kind)
    (tmp_path / "elsewhere").touch()
    if kind == "went through":
        assert mutation._kind(code, said, tmp_path / "here") == "outside"


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize("left", [{}, {"model.onnx": "half"}, {"manifest.json": "{"}])
def test_an_output_folder_that_is_not_whole_is_found(tmp_path: Path, code: int, left: dict[str, str]) -> None:
    made = tmp_path / "here" / "made"
    made.mkdir(parents=True)
    (tmp_path / "told").touch()
    for name, text in left.items():
        (made / name).write_text(text, encoding="utf-8")
    assert mutation._kind(code, "compress: no.", tmp_path / "here") == "half-written"


READERS: dict[str, tuple[Mutator, Callable[[Path], object]]] = {
    "model.onnx": (mutate_model, lambda path: to_bytes(load(path))),
    "samples.npz": (mutate_bytes, lambda path: list(open_data(path, X).batches(8))),
    "rows.npy": (mutate_bytes, lambda path: list(open_data(path, X).batches(8))),
    "box.npz": (mutate_bytes, lambda path: load_box(path, (3,))),
    "recipe.toml": (mutate_text, lambda path: parse(path.read_text(encoding="utf-8", errors="replace"))),
    "board.toml": (mutate_text, lambda path: dump_profile(load_profile(path))),
    "edgepress.toml": (mutate_text, lambda path: gate_settings.settings_of({}, path)),
    "preprocess.toml": (mutate_text, read_preprocess),
    "timings.json": (mutate_text, lambda path: read_timings(path, Job(Path("model.onnx")), "arm")),
    "manifest.json": (mutate_text, lambda path: options_of(manifest.read(path))),
    "report.json": (mutate_text, record.load_report),
    "pareto.json": (mutate_text, pareto.load_front),
    "certificate.json": (mutate_text, lambda path: parse_record(Certificate, path, "a certificate")),
    "checkpoint.npz": (mutate_bytes, checkpoint.facts_of),
}
"""File → what changes it, and what reads it."""


@dataclass(frozen=True)
class Whole:
    """Undamaged files, and what the script said of one mutant of each."""

    folder: Path
    said: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    code = f"""
import shutil, sys, mutation
stage = mutation.stage
def stage_and_copy(clean):
    stage(clean)
    shutil.copytree(clean, {str(folder)!r}, dirs_exist_ok=True)
mutation.stage = stage_and_copy
sys.exit(mutation.main(["--count", "1", "--seed", "77"]))
"""
    done = run_script(code)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("manifest.json", "report.json", "pareto.json"):
        (folder / name).write_bytes((folder / "out" / name).read_bytes())
    (folder / "certificate.json").write_bytes((folder / "proof" / "certificate.json").read_bytes())
    (folder / "checkpoint.npz").write_bytes((folder / "evolved.checkpoint.npz").read_bytes())
    (folder / "preprocess.toml").write_text(mutation_subjects.PREPROCESS, encoding="utf-8")
    (folder / "samples.npz").write_bytes((folder / "calib.npz").read_bytes())
    np.savez(folder / "box.npz", low=np.zeros((1, 3)), high=np.ones((1, 3)))
    return Whole(folder, done.stdout)


def test_commands_survive_one_mutant_of_each_kind(whole: Whole) -> None:
    assert f"{len(mutation_subjects.SUBJECTS)} mutants" in whole.said
    assert "; 0 faults" in whole.said


@pytest.mark.parametrize("name", READERS)
def test_readers_read_or_refuse(
    whole: Whole, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate, read = READERS[name]
    monkeypatch.chdir(whole.folder)
    read(whole.folder / name)  # undamaged
    data, file = (whole.folder / name).read_bytes(), tmp_path / name

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**32))
    def damaged(seed: int) -> None:
        file.write_bytes(mutate(data, random.Random(seed)))
        with contextlib.suppress(EdgepressError, ProfileError):
            read(file)

    damaged()


def has_graph(data: bytes) -> bool:
    try:
        return bool(onnx.ModelProto.FromString(data).HasField("graph"))
    except Exception:  # protobuf's DecodeError, whose module has no types
        return False


def test_mutants_change_what_they_are_made_of() -> None:
    model = mutation_subjects.random_weights(mutation_subjects.NET, np.random.default_rng(0))
    data = model.SerializeToString()
    mutants = [mutate_model(data, random.Random(seed)) for seed in range(40)]
    assert sum(mutant != data for mutant in mutants) > 30
    assert sum(has_graph(mutant) for mutant in mutants) > 20
    texts = {mutate_text(mutation_subjects.RECIPE.encode(), random.Random(seed)) for seed in range(40)}
    assert len(texts) > 30

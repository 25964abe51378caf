"""Makes the files of peers.py, each in a process of its own, and keeps them; scores and times them likewise."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import edgepress.compressor
import edgepress.devices
import edgepress.runtime
from common import HERE, compress, samples, versions, write_json
from edgepress.compressor.data import open_data
from edgepress.compressor.model import input_specs, load
from edgepress.runtime.environment import describe
from peer_bars import OURS_FOR_SIZE, Result

ROOT = HERE.parent
PEERS_ENVIRONMENT = ROOT / ".venv-peers"
TOOLS_SCRIPT = HERE / "peer_tools.py"
JUDGE_SCRIPT = HERE / "peer_judge.py"
PACKAGES = ("nncf", "onnx", "onnxruntime", "numpy")

TIME_OUT = 900.0
"""Seconds after which a peer, a scoring or a timing is ended."""
SESSIONS = 3
"""Processes in which the same models are timed: how weights lie in memory differs between them, and moves the
smallest nets by up to 3 %, which no number of rounds in one process shows."""
QUIET = {"NNCF_CI": "1"}
"""NNCF sends no usage figures then."""


@dataclass(frozen=True)
class Made:
    """What a tool made.

    Attributes:
        path: the model; None where there is none.
        seconds: that it took, in this run or before.
        kept: whether it was there from before.
        failure: why there is none.
    """

    path: Path | None
    seconds: float = 0.0
    kept: bool = False
    failure: str = ""


def environment(wanted: bool) -> tuple[Path, dict[str, str]]:
    """The peers' Python, set up where it is not, with the same onnx and onnxruntime as here; and its versions.

    Args:
        wanted: False where no peer is to run: nothing is set up then.
    """
    python = PEERS_ENVIRONMENT / "bin" / "python"
    if not wanted:
        return python, {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = project["optional-dependencies"]["peers"]
    here = versions()
    needed = [*extra, *(f"{name}=={here[name]}" for name in ("onnx", "onnxruntime"))]
    stamp = PEERS_ENVIRONMENT / "requirements.txt"
    if not stamp.exists() or stamp.read_text("utf-8").split() != needed:
        sys.stderr.write(f"setting up {PEERS_ENVIRONMENT.name}\n")
        venv.create(PEERS_ENVIRONMENT, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, *needed], check=False).returncode:
            raise SystemExit("without the peers there is nothing to compare with; --tools leaves them out")
        stamp.write_text("\n".join(needed) + "\n", encoding="utf-8")
    ask = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {PACKAGES}}}))"
    told = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = json.loads(told)
    return python, found


def digest(parts: Iterable[str | Path]) -> str:
    """Of texts, and of the contents of files and folders."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            made.update(b"t" + part.encode() + b"\0")
            continue
        files = [part] if part.is_file() else sorted(path for path in part.rglob("*") if path.is_file())
        for file in files:
            with file.open("rb") as stream:
                made.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return made.hexdigest()[:16]


def source_digest() -> str:
    """Of edgepress as it is imported here."""
    packages = (edgepress.compressor, edgepress.devices, edgepress.runtime)
    folders = [Path(place) for package in packages for place in package.__path__]
    files = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return digest(path for path in files if path.is_file() and path.suffix != ".pyc")


def reason(error: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended badly, in a line without paths."""
    if error.returncode < 0:
        return f"ended by signal {-error.returncode}"
    lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
    return without_paths(lines[-1] if lines else f"exit code {error.returncode}")


def without_paths(text: str) -> str:
    """A message of which only names of files are left of paths, cut to a line's length."""
    words = [word.rpartition("/")[2] if word.startswith("/") else word for word in text.split()]
    short = " ".join(words)
    return short if len(short) <= 200 else short[:199] + "…"


def call(command: Sequence[str | Path]) -> tuple[str, str]:
    """Run a process to its end; its stdout, and why it failed (empty where it did not)."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIME_OUT,
            env={**os.environ, **QUIET},
        )
    except subprocess.TimeoutExpired:
        return "", f"no result within {TIME_OUT:.0f} s"
    return done.stdout, reason(done) if done.returncode else ""


class Work:
    """One model of the zoo and what was made for it.

    Args:
        folder: of the model.
        kept: where files are kept, for all models.
        python: of the peers.
        peers: their versions.
    """

    LEFT_OUT = "does not apply"

    def __init__(self, folder: Path, kept: Path, python: Path, peers: Mapping[str, str]) -> None:
        self.folder, self.name, self.model = folder, folder.name, folder / "model.onnx"
        self.kept, self.python = kept / folder.name, python
        self.metric: str = json.loads((folder / "info.json").read_text("utf-8"))["metric"]
        places = [folder.parent / place for place in samples(folder)]
        settings = folder / "preprocess.toml"
        self.data = digest([self.model, *places, *([settings] if settings.exists() else [])])
        self.peers = json.dumps(dict(peers), sort_keys=True)
        self._samples = self.kept / f"samples-{self.data}.npz"
        self._batch = 1
        self.kept.mkdir(parents=True, exist_ok=True)

    def peer(self, tool: str) -> Made:
        """A peer's model of this one."""
        if tool == "NNCF transformer" and not self._has_attention():
            return Made(None, failure=self.LEFT_OUT)
        flags = ["--reduce-range"] if _no_dot_products() else []
        key = digest([self.data, tool, self.peers, *flags, TOOLS_SCRIPT])
        out = self.kept / f"{tool.replace(' ', '-')}-{key}.onnx"
        if (kept := self._kept(out, out)) is not None:
            return kept
        self._write_samples()
        began = time.monotonic()
        part = out.with_suffix(".part")
        places = [self.model, self._samples, part]
        _, failure = call(
            [self.python, "-I", TOOLS_SCRIPT, tool, *places, "--batch", str(self._batch), *flags]
        )
        if not failure and not part.exists():
            failure = "wrote no model"
        if failure:
            part.unlink(missing_ok=True)
            return Made(None, time.monotonic() - began, failure=failure)
        part.rename(out)
        return self._keep(out, out, time.monotonic() - began)

    def ours(self, tool: str, budget: float) -> Made:
        """What `compress` makes of this model, for latency or for size."""
        calib, test = samples(self.folder)
        options = [
            "--data",
            calib,
            "--test",
            test,
            "--target",
            "x86",
            "--budget",
            f"{budget:g}",
            "--metric",
            self.metric,
        ]
        if tool == OURS_FOR_SIZE:
            options += ["--objective", "size"]
        key = digest([self.data, *options, source_digest(), json.dumps(versions())])
        out = self.kept / f"{tool.replace(' ', '-')}-{key}"
        if (kept := self._kept(out, out / "model.onnx")) is not None:
            return kept
        shutil.rmtree(out, ignore_errors=True)
        run = compress(self.folder.parent, self.name, options, out)
        if run.exit_code not in (0, 1) or not (out / "model.onnx").exists():
            lines = [line for line in run.told.splitlines() if line.strip()]
            last = without_paths(lines[-1]) if lines else ""
            return Made(None, run.seconds, failure=f"exit {run.exit_code}: {last}")
        return self._keep(out, out / "model.onnx", run.seconds)

    def finish(self) -> None:
        """Remove what only the making of files needs."""
        self._samples.unlink(missing_ok=True)

    def _kept(self, out: Path, model: Path) -> Made | None:
        record = out.with_suffix(".json")
        if not record.exists() or not model.exists():
            return None
        return Made(model, json.loads(record.read_text("utf-8"))["seconds"], kept=True)

    def _keep(self, out: Path, model: Path, seconds: float) -> Made:
        write_json({"seconds": seconds}, out.with_suffix(".json"))
        return Made(model, seconds)

    def _has_attention(self) -> bool:
        return any(node.op_type == "LayerNormalization" for node in onnx.load(self.model).graph.node)

    def _write_samples(self) -> None:
        """The calibration rows as the model is fed with them, once for all peers."""
        specs = input_specs(load(self.model))
        settings = self.folder / "preprocess.toml"
        place = self.folder.parent / samples(self.folder)[0]
        data = open_data(place, specs, settings if settings.exists() else None)
        self._batch = data.batch_size or 1
        if self._samples.exists():
            return
        blocks = [batch.feeds for batch in data.batches(64, with_labels=False)]
        arrays = {
            str(place): np.concatenate([block[slot.name] for block in blocks])
            for place, slot in enumerate(data.inputs)
        }
        part = self.kept / "part.npz"
        np.savez(part, **arrays)  # type: ignore[arg-type]  # no name is `allow_pickle`
        part.rename(self._samples)


def _no_dot_products() -> bool:
    """Whether 8-bit products saturate here: x86 without VNNI, where onnxruntime advises 7-bit weights."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not any("vnni" in feature for feature in describe().features)


def score(work: Work, model: Path) -> tuple[dict[str, Any] | None, str]:
    """What `peer_judge.score` says of a model, or why it says nothing; kept."""
    key = digest([work.data, work.metric, model, source_digest(), JUDGE_SCRIPT, json.dumps(versions())])
    kept = work.kept / f"score-{key}.json"
    if not kept.exists():
        told, failure = call([sys.executable, JUDGE_SCRIPT, "score", work.folder, work.metric, model])
        if failure:
            return None, failure
        write_json(json.loads(told), kept)
    found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
    return found, ""


def time_all(work: Work, models: Mapping[str, Path], results: Mapping[str, Result], seconds: float) -> str:
    """Time models interleaved and note it in their results; why that failed, empty where it did not.

    Args:
        work: of the zoo's model.
        models: tool → its file.
        results: tool → where figures go: medians over the processes, of ends of intervals, too.
        seconds: time limit of all `SESSIONS` together.
    """
    task = ("time", work.folder, str(seconds / SESSIONS))
    command: list[str | Path] = [sys.executable, JUDGE_SCRIPT, *task, *models.values()]
    sessions: list[list[dict[str, Any]]] = []
    for _ in range(SESSIONS):
        told, failure = call(command)
        if failure:
            return failure
        sessions.append(json.loads(told))
    for place, tool in enumerate(models):
        found = [session[place] for session in sessions]
        for name in found[0]:
            middle = np.median([each[name] for each in found], axis=0).tolist()
            setattr(results[tool], name, bool(middle) if name == "too_noisy" else middle)
    return ""

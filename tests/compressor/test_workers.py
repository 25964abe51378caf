"""Work of a search done elsewhere: the same results, nothing done twice, and a lost worker costs its task alone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_trials
from test_trials import Counting

from edgepress.compressor import workers
from edgepress.compressor.cache import KEPT_SECONDS, Cache
from edgepress.compressor.errors import DeviceError, UsageError
from edgepress.compressor.passes import LowRank, Pass, Shrink, StoreWeights
from edgepress.compressor.serialize import serialize
from edgepress.compressor.tasks import Built, Final, Harm, Judge, Measure, gauge_of
from edgepress.compressor.trials import Task, Trials
from edgepress.compressor.workers import Crew, Stopped, identity
from edgepress.runtime.engines.ort import OrtEngine

SHRUNK: tuple[Pass, ...] = (Shrink((("h", 8),)), StoreWeights())
SPLIT: tuple[Pass, ...] = (LowRank((("h", 2),)),)


def trials() -> Trials:
    """With an engine that can be sent."""
    made = test_trials.trials()
    made.setup = replace(made.setup, engine=OrtEngine())
    return made


def tasks() -> list[Task]:
    """Of every kind."""
    return [
        Judge(SHRUNK, 0), Judge(SHRUNK, 1), Judge(SPLIT, 0), Measure("width", "h", 4, (0.05,)),
        Measure("bits", "h", 4, (0.05,)), Harm("h", StoreWeights(bits=(("h", 4),))), Built(SHRUNK), Final(SHRUNK),
    ]  # fmt: skip


def comparable(results: Sequence[Any]) -> list[Any]:
    """Results without what has no equality."""
    *rest, (model, data, skipped) = results
    return [np.concatenate(r).tolist() if isinstance(r, list) else r for r in rest] + [
        serialize(model), data, skipped
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    return comparable([task.do(made) for made in [trials()] for task in tasks()])


def crew(made: Trials, count: int = 2, **more: Any) -> Crew:
    return Crew(made, count, identity(made.original, made.setup), **more)


@pytest.mark.parametrize("count", [1, 2])
def test_threads_give_what_one_would(count: int, expected: list[Any]) -> None:
    made = trials()
    with crew(made, count).at_work():
        assert comparable(made.results(tasks())) == expected


def test_processes_give_the_same_bits(expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH_PROCESSES", -1.0)
    made = trials()
    with crew(made).at_work():
        assert comparable(made.results(tasks())) == expected


@dataclass(frozen=True)
class Nap(Task):
    """A task that says where it was done."""

    def do(self, trials: Trials) -> int:
        """Process id."""
        time.sleep(0.2)
        return os.getpid()


def test_processes_join_in_the_middle_and_are_up_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "WORTH_PROCESSES", 0.1)
    made = trials()
    team = crew(made)
    with team.at_work():
        found = made.results([Nap() for _ in range(3)])  # the other process has nothing to do yet
        assert team.hired == 2
        assert os.getpid() in found
        assert len(set(found)) == 2
        assert team.alone(lambda: all(h.ready is not None and h.ready.done() for h in team._hands))()


@dataclass(frozen=True)
class Die(Task):
    """A task that kills its process the first time."""

    folder: Path

    def do(self, trials: Trials) -> int:
        """Number of the attempt."""
        attempts = len(list(self.folder.iterdir()))
        (self.folder / str(attempts)).touch()
        if not attempts:
            os.kill(os.getpid(), signal.SIGKILL)
        return attempts


def test_a_lost_process_costs_its_task_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH_PROCESSES", -1.0)
    made = trials()
    with crew(made).at_work():
        first, second = made.results([Judge(SHRUNK, 0), Die(tmp_path)])
    assert second == 1
    assert np.array_equal(first[0], Judge(SHRUNK, 0).do(trials())[0])


def test_what_was_worked_out_is_not_worked_out_again(tmp_path: Path) -> None:
    wanted = tasks()[:6]
    found = []
    engines = [Counting(), Counting()]
    for engine in engines:
        made = test_trials.trials(engine=engine)
        name = identity(made.original, made.setup)
        engine.loaded.clear()
        with Crew(made, 1, name, Cache.open(tmp_path, name)).at_work():
            found.append([repr(result) for result in made.results(wanted)])
    assert found[0] == found[1]
    assert engines[0].loaded
    assert not engines[1].loaded


def test_identity_tells_models_samples_and_settings_apart() -> None:
    made = test_trials.trials()
    names = [identity(t.original, t.setup) for t in (made, test_trials.trials(), test_trials.trials(seed=1))]
    names.append(identity(made.original, replace(made.setup, data=made.setup.data.subset(range(299)))))
    names.append(identity(made.original, replace(made.setup, leave=("h",))))
    names.append(identity(made.full.stream.original, replace(made.setup, folds=3)))  # type: ignore[union-attr]
    changed = made.original.clone()
    changed.graph.node(0).name = "another"
    names.append(identity(changed, made.setup))
    assert names[0] == names[1]
    assert len(set(names)) == len(names) - 1


def test_old_results_go_and_damaged_files_are_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache.open(tmp_path, "a")
    cache.put({"x": [1.5, None], "y": {}})
    assert Cache.open(tmp_path, "a").get("x") == [1.5, None]
    assert Cache.open(tmp_path, "b").get("x") is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + KEPT_SECONDS + 60)
    assert Cache.open(tmp_path, "a").get("x") is None
    (tmp_path / "results.sqlite").write_bytes(b"no database" * 100)
    assert cache.get("y") is None
    cache.put({"y": 1})
    with pytest.raises(UsageError, match="cannot hold"):
        Cache.open(tmp_path, "a")


def test_the_user_ends_it_with_what_is_there() -> None:
    made = trials()
    asked = threading.Event()
    team = crew(made, 1, stopped=asked.is_set)
    with team.at_work():
        made.results([Judge(SHRUNK, 0)])
        asked.set()
        with pytest.raises(Stopped):
            made.results(tasks())
        assert comparable(made.results(tasks()))  # what is left to do is done
        assert team.alone(lambda: len(team._running))() == 0


def test_only_what_may_be_left_out_is_when_time_is_over() -> None:
    made = trials()
    with crew(made, 1, late=lambda: True).at_work():
        found = made.results([Judge(SHRUNK, 0), *(Measure("bits", "h", 4, (e / 100,)) for e in range(1, 20))])
    assert found[0] is not None
    assert None in found[1:]


def test_what_cannot_travel_is_worked_on_here(monkeypatch: pytest.MonkeyPatch, expected: list[Any]) -> None:
    monkeypatch.setattr(workers, "WORTH_PROCESSES", -1.0)
    monkeypatch.setattr(workers, "MOST_BYTES", 10)
    made = trials()
    team = crew(made)
    with team.at_work():
        assert comparable(made.results(tasks())) == expected
        assert not team.hired
    with (
        (far := crew(made, scheduler="tcp://127.0.0.1:1")).at_work(),
        pytest.raises(UsageError, match="too large"),
    ):
        far([Judge(SPLIT, 1)])


def test_gauges_are_made_once() -> None:
    made = trials()
    assert gauge_of(made, 4, (0.05,)) is gauge_of(made, 4, (0.05,))
    assert gauge_of(made, 8, (0.05,)) is not gauge_of(made, 4, (0.05,))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Address of a scheduler with two workers, and these."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    # Workers look for the tests' own classes where these tests lie.
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
    }
    quiet: dict[str, Any] = {
        "cwd": tmp_path,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": env,
    }
    command = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--no-dashboard",
        "--host",
        "127.0.0.1",
    ]
    scheduler = subprocess.Popen([*command, "--port", str(port)], **quiet)
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard", "--no-nanny"]
    team = [subprocess.Popen([*command, "--nthreads", "1"], **quiet) for _ in range(2)]
    try:
        yield address, team
    finally:
        for process in (*team, scheduler):
            process.kill()
            process.wait()


def test_a_cluster_gives_the_same_bits_though_a_worker_dies(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], expected: list[Any]
) -> None:
    address, team = cluster
    made = trials()
    with crew(made, scheduler=address).at_work():
        assert comparable(made.results(tasks())) == expected
        made.known.clear()
        killer = threading.Timer(0.1, team[0].kill)
        killer.start()
        assert comparable(made.results(tasks())) == expected
        killer.join()
    assert team[0].wait(10) != 0
    assert team[1].poll() is None


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepress.compressor.cluster.ANSWER_SECONDS", 1)
    made = trials()
    with (
        crew(made, scheduler="tcp://127.0.0.1:9").at_work(),
        pytest.raises(DeviceError, match="does not answer"),
    ):
        made.results(tasks())

"""A folder and what runs in it go together, with us or after us."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgepress.devices.guard import GuardedFolder


@pytest.fixture
def folder():
    guarded = GuardedFolder()
    yield guarded
    guarded.close()
    assert not guarded.path.exists()


def run(folder, *command, given=b"", limit_s=20.0):
    return folder.run(command, folder.path, {"PATH": os.environ["PATH"]}, given, limit_s)


def gone(pid, seconds=10.0):
    """Whether a process ends in time; one that nobody has waited for counts as ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_command_runs_in_the_folder_with_its_input(folder):
    done = run(folder, "sh", "-c", "pwd; cat; exit 3", given=b"said")
    assert done.returncode == 3
    assert done.stdout == f"{folder.path}\nsaid".encode()


def test_what_a_command_left_running_is_ended(folder):
    done = run(folder, "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!")
    assert gone(int(done.stdout))


def test_time_over_ends_all_of_it(folder):
    with pytest.raises(subprocess.TimeoutExpired):
        run(folder, "sh", "-c", "sleep 600 & echo $! > pid; wait", limit_s=0.5)
    assert gone(int((folder.path / "pid").read_text()))


def test_a_folder_full_of_anything_goes(folder):
    run(folder, "sh", "-c", "mkdir -p -- -x/y; touch -- -x/y/-z 'a b'; ln -s / link")
    assert (folder.path / "link").is_symlink()


def test_a_killed_owner_leaves_nothing(tmp_path):
    code = (
        "from edgepress.devices.guard import GuardedFolder\n"
        "g = GuardedFolder()\n"
        "g.run(['sh', '-c', 'echo $$ > ../pid; sleep 600'], g.path, {'PATH': '/usr/bin:/bin'}, b'', 600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    time.sleep(0.2)  # it tells its keeper of the process right after starting it
    owner.kill()
    owner.wait()
    assert gone(int((tmp_path / "pid").read_text()))
    end = time.monotonic() + 10
    while list(tmp_path.glob("edgepress-*")) and time.monotonic() < end:
        time.sleep(0.05)
    assert not list(tmp_path.glob("edgepress-*"))

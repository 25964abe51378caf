"""What ssh and adb have in common, over a shell of this machine: Ctrl-C at any line of it comes out as such."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = '''
import os, sys
from pathlib import Path

from edgepress.devices import shell
from edgepress.devices.base import DeviceTroubleError


class Here(shell.ShellDevice):
    """A shell of this machine behind a `cat`, as that of a board is behind ssh."""

    def _command(self, line, *, first=False):
        return ["sh", "-c", 'cat | sh -c "$0"', line]

    def _explained(self, said):
        return DeviceTroubleError(said)


def work(there):
    (there.parent / "file").write_bytes(b"content")
    device = Here("here", ())
    device.base = str(there)
    with device:
        device.put(there.parent / "file", "file")
        assert device.run(["cat", "file"]).out == b"content"
        device.get("file", there.parent / "back")


def interrupted(there, at):
    """Exit code of a process that is interrupted before so many lines of `shell.py`; and how many it ran."""
    heard, told = os.pipe()
    if child := os.fork():
        os.close(told)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with os.fdopen(heard) as lines:
            return code, int(lines.read() or 0)
    count, code = 0, 1

    def line(frame, event, _):
        nonlocal count
        if event == "line":
            count += 1
            if count == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return line

    sys.settrace(lambda frame, event, _: line if frame.f_code.co_filename == shell.__file__ else None)
    try:
        work(there)
        code = 0
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.settrace(None)
        os.write(told, str(count).encode())
        os._exit(code)


there, step = Path(sys.argv[1]), int(sys.argv[2])
code, lines = interrupted(there, 0)
print(code, lines)
for at in range(1, lines + 1, step):
    print(interrupted(there, at)[0])
'''


def left(there: Path) -> list[str]:
    """Folders there, and processes that have to do with them, where they do not go within seconds."""
    deadline = time.monotonic() + 20
    while True:
        found = [path.name for path in there.iterdir()]
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += [each.parent.name] if os.fsencode(there) in each.read_bytes() else []
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def test_ctrl_c_at_any_line_comes_out_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(there), "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    first, *codes = done.stdout.splitlines()
    code, lines = map(int, first.split())
    assert (code, lines > 100) == (0, True), done.stderr
    assert codes == ["130"] * -(-lines // 3), done.stderr
    assert left(there) == []

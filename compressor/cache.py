"""What was worked out before: results of tasks and timings, in one file that a killed process cannot damage.

A key begins with a digest of everything that a result hangs on (`workers.identity`), this package's own source
included, so that nothing has to be thrown away by hand.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from edgepress.compressor.errors import UsageError

FILE_NAME = "results.sqlite"
KEPT_SECONDS = 30 * 24 * 3600.0
"""What was not wanted for so long goes."""

_PACKAGES = ("numpy", "scipy", "onnx", "onnx-ir", "onnxruntime", "onnxscript")


@cache
def tool_digest() -> str:
    """SHA-256 (hexadecimal) of this package's source and of what it computes with."""
    found = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    for package in _PACKAGES:
        found.update(f"{package} {metadata.version(package)}".encode())
    return found.hexdigest()


@dataclass(frozen=True)
class Cache:
    """Results by key, as JSON.

    Attributes:
        path: of the file.
        identity: what all keys of this run begin with.
    """

    path: Path
    identity: str

    @classmethod
    def open(cls, folder: Path, identity: str) -> "Cache":
        """The cache in a folder; what is old in it is dropped.

        Raises:
            UsageError: the folder cannot be written to, or the file is no cache.
        """
        found = cls(folder / FILE_NAME, identity)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with closing(found._connect()) as connection, connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT NOT NULL, used REAL NOT NULL)"
                )
                connection.execute("DELETE FROM results WHERE used < ?", (time.time() - KEPT_SECONDS,))
        except (OSError, sqlite3.Error) as error:
            hint = "Name another --cache, or --no-cache."
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR"):  # SQLite tells no more
                hint = f"Make room on the disk or lift the limit on files (ulimit -f unlimited). Or: {hint}"
            raise UsageError(f"{folder} cannot hold what was worked out ({error}).", hint) from error
        return found

    def get(self, key: str) -> Any | None:
        """What `put` stored, or None."""
        full = self._full(key)
        try:
            with closing(self._connect()) as connection, connection:
                row = connection.execute("SELECT value FROM results WHERE key = ?", (full,)).fetchone()
                if row is not None:
                    connection.execute("UPDATE results SET used = ? WHERE key = ?", (time.time(), full))
            return None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError):
            return None

    def put(self, values: Mapping[str, Any]) -> None:
        """Store results by key, all or none; what does not fit on the disk is not stored."""
        rows = [(self._full(key), json.dumps(value), time.time()) for key, value in values.items()]
        try:
            with closing(self._connect()) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", rows)
        except sqlite3.Error:
            return

    def _full(self, key: str) -> str:
        return f"{self.identity} {key}"

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)

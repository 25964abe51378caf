"""Known vulnerabilities of the packages that this environment has: `make audit`.

    python benchmarks/audit.py

pip-audit asks the advisories of the Python Package Index, else OSV; it runs in an environment of its own
(`.venv-audit`), so that it is not among what it looks at. Exit code 1 where a package has a vulnerability. Where
there is no network, or an index without advisories, one line says that nothing was audited.
"""

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv-audit"
PACKAGE = "pip-audit>=2.9"
SERVICES = ("pypi", "osv")
OWN = "edgepress"


@dataclass(frozen=True)
class Audit:
    """What advisories say.

    Attributes:
        audited: packages that they know.
        skipped: names of those that they do not.
        found: `name version: advisory, mended in versions`.
    """

    audited: int
    skipped: tuple[str, ...]
    found: tuple[str, ...]


def read(document: Mapping[str, Any]) -> Audit:
    """What pip-audit's JSON says; our own package, which is on no index, is left out."""
    packages = [each for each in document["dependencies"] if each["name"] != OWN]
    known = [each for each in packages if "skip_reason" not in each]
    found = [
        f"{each['name']} {each['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'none'}"
        for each in known
        for fault in each["vulns"]
    ]
    return Audit(
        len(known),
        tuple(sorted({each["name"] for each in packages} - {e["name"] for e in known})),
        tuple(found),
    )


def told(audit: Audit | None) -> tuple[int, list[str]]:
    """Exit code and lines.

    Args:
        audit: None where no service answered.
    """
    if audit is None or not audit.audited:
        return 0, ["skipped: nothing was audited, for no advisories of packages can be reached from here"]
    lines = [*audit.found, f"{audit.audited} packages audited, {len(audit.found)} vulnerabilities"]
    if audit.skipped:
        lines.append(f"not audited, for the advisories do not know them: {', '.join(audit.skipped)}")
    return (1 if audit.found else 0), lines


def ask(service: str) -> Audit | None:
    """Let pip-audit look at this environment; None where the service does not answer."""
    place = sysconfig.get_path("purelib")
    command = [str(ENVIRONMENT / "bin" / "pip-audit"), "--path", place, "--format", "json"]
    command += ["--progress-spinner", "off", "--vulnerability-service", service, "--timeout", "20"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        return read(json.loads(done.stdout))
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return None


def main() -> int:
    """Run the script; returns its exit code."""
    if not (ENVIRONMENT / "bin" / "pip-audit").exists():
        venv.create(ENVIRONMENT, with_pip=True)
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--disable-pip-version-check", PACKAGE], check=False, capture_output=True)
    audit = None
    for service in SERVICES:
        audit = ask(service)
        if audit is not None and audit.audited:
            break
    code, lines = told(audit)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())

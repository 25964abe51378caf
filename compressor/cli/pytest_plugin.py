"""A fixture for those who gate in tests: `edgepress_gate(baseline, candidate, test=…, budget=2)`.

Loaded by pytest wherever edgepress is installed, so nothing heavy is imported before the fixture is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgepress.compressor.report.gate import Gate


@pytest.fixture
def edgepress_gate() -> Callable[..., "Gate"]:
    """Gate a candidate against its baseline; the test fails unless the gate passes.

    `edgepress_gate(baseline, candidate, test=…)` takes the options of `compress gate` by their names with underscores,
    and `config` for a budget file; what is not given comes from the `edgepress.toml` beside the models. Paths are
    relative to the working directory. `inconclusive="pass"` lets pass what cannot be told; by default the test fails
    then, too. It gives the record, as `--json` writes it.
    """

    def gate(
        baseline: str | Path | None = None,
        candidate: str | Path | None = None,
        *,
        config: str | Path | None = None,
        **options: Any,
    ) -> "Gate":
        from edgepress.compressor.cli.gate_run import run_gate
        from edgepress.compressor.cli.gate_settings import command_of, settings_of
        from edgepress.compressor.errors import EdgepressError
        from edgepress.compressor.report.gate_words import summary

        models = {"baseline": baseline, "candidate": candidate}
        given = {**options, **{name: Path(path) for name, path in models.items() if path is not None}}
        try:
            settings, path = settings_of(given, None if config is None else Path(config))
            record = run_gate(settings, command_of(given, path))
        except EdgepressError as error:
            pytest.fail(f"edgepress gate: {error} {error.hint}", pytrace=False)
        if record.exit_code != 0:
            pytest.fail(summary(record), pytrace=False)
        return record

    return gate

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import make, printed, side

from edgepress.compressor.errors import UsageError
from edgepress.compressor.report import words
from edgepress.compressor.report.record import (
    Report,
    dump_report,
    load_report,
    schema_text,
)


def test_a_record_survives_the_trip_to_its_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(dump_report(make()), encoding="utf-8")
    assert load_report(path) == make()
    assert dump_report(load_report(path)) == path.read_text(encoding="utf-8")


def test_the_file_has_every_field_that_readers_were_promised() -> None:
    document = json.loads(dump_report(make()))
    assert set(document) >= {
        *("schema_version", "verdict", "exit_code", "budget_percent", "metric", "target", "objective"),
        *("cost_kind", "n_test", "drop_interval_95", "baseline", "compressed", "steps", "engine", "threads"),
        *("seconds", "tool_peak_rss_bytes", "versions"),
    }
    for which in ("baseline", "compressed"):
        assert set(document[which]) >= {
            *("score", "size_bytes", "latency_ns_median", "latency_ns_ci95", "memory_peak_bytes"),
            *("activation_bytes", "parameters", "macs"),
        }
    assert set(document["steps"][0]) == {"pass", "site", "parameters", "damage", "gain", "kept", "why"}


def test_what_is_undefined_or_infinite_is_null_and_numpy_numbers_are_welcome() -> None:
    report = make(
        drop_interval_95=(float("nan"), 1.0),
        baseline=side(score=float("inf"), size_bytes=np.int64(7), latency_ns_median=np.float32(2.5)),
    )
    document = json.loads(dump_report(report), parse_constant=pytest.fail)
    assert document["drop_interval_95"] is None
    assert document["baseline"]["score"] is None
    assert document["baseline"]["size_bytes"] == 7
    assert document["baseline"]["latency_ns_median"] == 2.5


def test_the_committed_schema_is_current() -> None:
    committed = Path(sys.modules[Report.__module__].__file__ or "").with_name("schema.json")
    assert json.loads(committed.read_text(encoding="utf-8")) == json.loads(schema_text())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: "[" * 100_000, "not valid JSON"),
        (lambda text: "[1, 2]", "is not a report"),
        (lambda text: "{}", "is not a report"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "version 9"),
        (lambda text: text.replace('"verdict": "kept"', '"verdict": "great"'), "damaged at verdict"),
        (lambda text: text.replace('"threads"', '"thread"'), "damaged at thread"),
        (lambda text: text.replace('"size_bytes": 10444', '"size_bytes": "a lot"'), "compressed.size_bytes"),
        (lambda text: "\udc80", "not valid JSON"),
    ],
)
def test_a_damaged_report_is_refused_with_the_place(tmp_path: Path, damage: Any, says: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(damage(dump_report(make())).encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        load_report(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_report(tmp_path / "report.json")


def test_without_jinja2_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from edgepress.compressor.report import html\n"
        "try: html.render(None)\n"
        "except html.MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "report.html not written: pip install 'edgepress[report]'"


def test_the_terminal_table_fits_and_says_it_all() -> None:
    text = printed(make())
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for said in (
        "score (top1) 98.96 % 98.11 % 99.1 % kept",
        "size 1.72 MB 10.4 kB 165× smaller",
        "latency 310 µs 58.1 µs 5.34× faster",
        "peak memory 9.40 MB 2.10 MB 4.48× less",
        "parameters 431 k 7.56 k 57.0× fewer",
        "MACs 2.29 M 109 k 21.0× fewer",
        "2 % of the score may go, 0.86 % went",
        "Verdict kept. The budget is kept.",
        "Half of --data was set aside",
        "Results lenet5-compressed",
    ):
        assert said in flat


def test_the_terminal_table_has_colour_only_on_a_terminal_and_ascii_where_that_is_all() -> None:
    assert "\x1b" not in printed(make())
    assert "\x1b[" in printed(make(), terminal=True)
    plain = printed(make(model="modèle[red].onnx"), encoding="ascii")
    assert "5.34x faster" in plain
    assert "mod?le[red].onnx" in plain
    narrow = printed(make(), width=50)
    assert max(map(len, narrow.splitlines())) <= 50


@pytest.mark.parametrize(
    ("before", "after", "kind", "says"),
    [
        ((100.0, (98.0, 103.0)), (99.0, (97.0, 101.0)), "measured", ("no clear difference", None)),
        ((100.0, (98.0, 103.0)), (50.0, (49.0, 51.0)), "measured", ("2.00× faster", True)),
        ((50.0, (49.0, 51.0)), (100.0, (98.0, 103.0)), "measured", ("2.00× slower", False)),
        ((100.0, None), (50.0, None), "predicted", ("2.00× faster (predicted)", True)),
        ((100.0, (98.0, 103.0)), (None, None), "measured", ("", None)),
    ],
)
def test_latencies_that_cannot_be_told_apart_are_not_called_faster(
    before: Any, after: Any, kind: str, says: tuple[str, bool | None]
) -> None:
    sides = [side(latency_ns_median=median, latency_ns_ci95=ci) for median, ci in (before, after)]
    assert words.latency_change(make(cost_kind=kind, baseline=sides[0], compressed=sides[1])) == says


def test_the_headline_of_a_run_where_nothing_paid() -> None:
    same = make(compressed=make().baseline, cost_kind="predicted")
    assert words.headline(same) == "same size, as fast on x86, top1 98.96 % → 98.96 %"

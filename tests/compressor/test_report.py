import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edgepress.compressor.errors import UsageError
from edgepress.compressor.report import html, words
from edgepress.compressor.report.console import summary
from edgepress.compressor.report.record import (
    CandidateRow,
    Gain,
    LeftAlone,
    Report,
    Side,
    SiteCost,
    SiteRow,
    Step,
    dump_report,
    load_report,
    schema_text,
)

VOID = {"meta", "br", "hr", "img", "input", "link"}


def side(**changes: Any) -> Side:
    given: dict[str, Any] = {
        "score": 98.96,
        "size_bytes": 1_724_000,
        "latency_ns_median": 310_000.0,
        "latency_ns_ci95": (308_000.0, 313_000.0),
        "memory_peak_bytes": 9_400_000,
        "activation_bytes": 31_360,
        "parameters": 431_080,
        "macs": 2_293_000,
        "files": {"lenet5.onnx": 1_724_000},
    }
    return Side(**given | changes)


def make(**changes: Any) -> Report:
    """A record with something in every field."""
    given: dict[str, Any] = {
        "model": "lenet5.onnx",
        "verdict": "kept",
        "exit_code": 0,
        "budget_percent": 2,
        "drop_percent": 0.86,
        "drop_interval_95": (0.31, 1.42),
        "metric": "top1",
        "metric_unit": "%",
        "target": "x86",
        "objective": "latency",
        "cost_kind": "measured",
        "engine": "onnxruntime 1.31.1",
        "threads": 1,
        "seed": 0,
        "n_data": 500,
        "n_test": 2501,
        "baseline": side(),
        "compressed": side(
            score=98.11,
            size_bytes=10_444,
            latency_ns_median=58_100.0,
            latency_ns_ci95=(57_200.0, 59_000.0),
            memory_peak_bytes=2_100_000,
            activation_bytes=9_800,
            parameters=7_560,
            macs=109_000,
            files={"model.onnx": 10_444},
        ),
        "steps": [
            Step(
                pass_="shrink",  # noqa: S106
                site="conv2",
                parameters={"width": 12, "from": 50},
                damage=0.0123,
                gain=Gain(bytes=76_000, macs=1_216_000, latency_ns_predicted=91_000.0),
                kept=True,
                why="pays most per damage",
            ),
            Step(
                pass_="quantize",  # noqa: S106
                parameters={"weight_bits": 8, "leave": []},
                damage=0.02,
                gain=Gain(bytes=20_000, latency_ns_measured=-4_000.0),
                kept=False,
                why="slower here",
            ),
        ],
        "left_alone": [
            LeftAlone(site="fc2", reason="its outputs are the model's"),
            LeftAlone(site="flatten", reason="no weights"),
        ],
        "sites": [
            SiteRow(
                name="conv2",
                op="Conv",
                before=SiteCost(parameters=25_050, bytes=100_200, macs=1_600_000, latency_ns=110_000.0),
                after=SiteCost(parameters=612, bytes=2_448, macs=38_000, latency_ns=9_000.0),
                treatment="12 channels, rank 8",
            ),
            SiteRow(
                name="fc2",
                op="Gemm",
                before=SiteCost(parameters=5_010, bytes=20_040, macs=5_000, latency_ns=3_000.0),
                after=SiteCost(parameters=5_010, bytes=20_040, macs=5_000, latency_ns=3_000.0),
                treatment="as it was",
            ),
            SiteRow(name="drop", op="Conv", before=SiteCost(parameters=10, bytes=40), after=None),
        ],
        "candidates": [
            CandidateRow(
                label=f"c{index}",
                recipe=({"kind": "shrink", "widths": [["conv2", index]]},),
                damage_estimated=0.1 * index,
                score=99.0 - 0.3 * index,
                size_bytes=100_000 // index,
                latency_ns=90_000.0 / index if index > 2 else None,
                kept=index == 4,
                why="fastest within the budget" if index == 4 else "slower",
            )
            for index in range(1, 7)
        ],
        "recipe": ({"kind": "shrink", "widths": [["conv2", 12]]},),
        "warnings": ["Half of --data was set aside for the verdict."],
        "oldest_onnxruntime": "1.14",
        "seconds": {"load": 0.2, "search": 20.5, "total": 20.9},
        "tool_peak_rss_bytes": 412_000_000,
        "versions": {"edgepress": "0.1.0", "onnx": "1.20.0"},
        "environment": {"cpu": "some CPU", "features": ["avx2", "fma"], "governor": None},
    }
    return Report(**given | changes)


class Page(HTMLParser):
    """Text of a page and whether its tags nest; fails the test on a tag that closes nothing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def printed(report: Report, width: int = 80, terminal: bool = False, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, color_system="standard" if terminal else "auto")
    summary(report, console, Path("lenet5-compressed"))
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined, no-any-return]


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


def test_the_page_says_what_came_of_it() -> None:
    text = Page(html.render(make())).text
    for said in (
        "165× smaller, 5.34× faster on x86, top1 98.96 % → 98.11 %",
        "The budget is kept.",
        "2 % of the score may go, 0.86 % went (95 % interval 0.31 to 1.42), on 2501 unseen rows",
        "99.1 % kept",
        "left alone because: its outputs are the model's",
        "flatten no weights",
        "12 channels, rank 8",
        "40 B → gone",
        "removed",
        "slower here",
        "Half of --data was set aside",
        "onnxruntime 1.14 or newer",
        "compress replay manifest.json",
        "20.9 s (load 0.2, search 20.5)",
        "features avx2, fma",
    ):
        assert said in text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = Page(html.render(make()))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base"}
    assert not [attrs for _, attrs in page.tags if {"src", "href", "xlink:href"} & set(attrs)]
    assert "url(" not in html.render(make())
    assert "@import" not in html.render(make())


def test_bars_have_the_lengths_of_their_numbers() -> None:
    rects = [attrs for tag, attrs in Page(html.render(make())).tags if tag == "rect"]
    widths = [(each["class"], float(each["width"] or "")) for each in rects]
    # score, size, latency, memory, activations, parameters, MACs: 220 wide is the longer of the two.
    assert widths[2:4] == [("before", 220.0), ("after", pytest.approx(220 * 10_444 / 1_724_000, abs=0.06))]
    assert widths[4:6] == [("before", 220.0), ("after", pytest.approx(220 * 58.1 / 310, abs=0.06))]
    # conv2 is the longest layer; fc2 shares its scale.
    assert widths[14] == ("before", 150.0)
    assert widths[18] == ("before", pytest.approx(150 * 20_040 / 100_200, abs=0.06))


def test_the_plot_shows_every_candidate_with_both_numbers_and_marks_the_chosen_one() -> None:
    circles = [attrs["class"] for tag, attrs in Page(html.render(make())).tags if tag == "circle"]
    assert circles == ["other"] * 3 + ["chosen"] + ["other"] * 5 + ["chosen"]  # by latency, then by size
    none = make(candidates=[CandidateRow(label="only", score=1.0, size_bytes=3)])
    assert "circle" not in {tag for tag, _ in Page(html.render(none)).tags}


def test_names_from_the_model_are_text_and_never_markup() -> None:
    evil = "<script>alert('\"&')</script>"
    report = make(
        model=evil,
        metric=evil,
        warnings=[evil],
        target=evil,
        steps=[Step(pass_=evil, site=evil, parameters={evil: evil}, kept=True, why=evil)],
        sites=[SiteRow(name=evil, op=evil, before=SiteCost(), treatment=evil)],
        left_alone=[LeftAlone(site=evil + "2", reason=evil)],
        candidates=[CandidateRow(label=evil, score=n, size_bytes=n + 1, why=evil) for n in range(3)],
        environment={evil: evil},
        versions={evil: evil},
        seconds={evil: 1.0},
    )
    text = html.render(report)
    assert "<script" not in text
    assert Page(text).text.count(evil) > 15


def test_a_page_of_a_run_that_found_out_next_to_nothing() -> None:
    bare = Side(size_bytes=0, parameters=0)
    report = make(
        verdict="unverified",
        verdict_reason="no data was given",
        cost_kind="predicted",
        drop_percent=None,
        drop_interval_95=None,
        baseline=bare,
        compressed=bare,
        **dict.fromkeys(("steps", "left_alone", "sites", "candidates", "warnings"), ()),
    )
    text = Page(html.render(report)).text
    assert "Not verified: nothing to judge by. No data was given." in text
    assert "None: nothing paid" in text
    assert "unverified" in printed(report)


def test_equal_candidates_do_not_break_the_plot() -> None:
    same = [CandidateRow(label=str(n), score=0.0, size_bytes=5, latency_ns=1e-9) for n in range(3)]
    assert Page(html.render(make(candidates=same))).text


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

import base64
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from edgepress.compressor.errors import UsageError
from edgepress.compressor.report import embed, html, plots, several, words
from edgepress.compressor.report.console import summary
from edgepress.compressor.report.record import (
    Bearing,
    CandidateRow,
    FrontPoint,
    Gain,
    LayerError,
    LeftAlone,
    Report,
    Side,
    SiteCost,
    SiteRow,
    Step,
    ZeroRow,
    dump_report,
    load_report,
    schema_text,
)
from edgepress.compressor.report.tflite import Certificate, OutputParity, Tflite

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
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


def rich_report() -> Report:
    """The same with a front, samples of timings, sensitivity, errors, zeros and a certificate."""
    rng = np.random.default_rng(0)
    both = {
        which: getattr(make(), which).model_copy(
            update={"latency_samples_ns": tuple(scale * rng.gamma(100, 1, 300).round(3))}
        )
        for which, scale in (("baseline", 3100.0), ("compressed", 581.0))
    }
    return make(
        **both,
        front=[
            FrontPoint(number=0, label="original", within_budget=True, size_bytes=1_724_000, latency_ns=310e3),
            FrontPoint(
                number=1, label="int8", chosen=True, within_budget=True, drop_percent_estimated=0.8,
                margin_percent=0.3, size_bytes=10_444, latency_ns=58e3,
            ),
            FrontPoint(
                number=2, label="int8, smaller", within_budget=False, drop_percent_estimated=2.4,
                margin_percent=0.4, size_bytes=8_000, latency_ns=51e3,
            ),
        ],
        sensitivity=[
            Bearing(site="conv2", kind="width", full=50, values=(38, 25, 12), damage=(1e-6, 2e-3, 0.2), chosen=12),
            Bearing(site="conv2", kind="bits", full=8, values=(4, 2), damage=(0.004, None)),
        ],
        layer_errors=[LayerError(site="conv2", error_percent=1.25), LayerError(site="fc2", error_percent=0.5)],
        zeros=[
            ZeroRow(site="relu1", of="activations", before=40, after=55.5, values=100),
            ZeroRow(site="gone", of="activations", before=40, values=100),
        ],
        tflite=Tflite(
            size_bytes=9_000,
            operators={"CONV_2D": 2},
            certificate=Certificate(
                rows=64, engine="litert 2.3.0", delegate="XNNPACK", partitions=1, outside={},
                score=98.1, onnx_score=98.1,
                outputs=(OutputParity(name="y", elements=640, identical_percent=99.5, step=0.1, largest_steps=1.0),),
            ),
        ),
        environment={"cpu": "some CPU", 'a/b "c"': "odd"},
    )  # fmt: skip


class Page(HTMLParser):
    """Text of a page and whether its tags nest; fails the test on a tag that closes nothing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.code: dict[str, str] = {}
        self.record = ""
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
        kind = self.open[-1] if self.open else ""
        if kind in ("style", "script"):
            self.code[kind] = self.code.get(kind, "") + data
        else:
            self.words.append(data)
        if "pre" in self.open and kind == "span":
            self.record += data


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


def assert_alone(page: Page) -> None:
    """Nothing is fetched, and nothing runs but the one script that the page's own policy names by its hash."""
    tags = [tag for tag, _ in page.tags]
    assert not set(tags) & {"img", "iframe", "object", "base", "form"}
    assert tags.count("script") == tags.count("style") == 1
    addresses = [a.get(name) for _, a in page.tags for name in ("src", "href", "xlink:href") if name in a]
    assert all(each == "data:," or (each or "").startswith("#") for each in addresses)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "style"]
    policy = next(a["content"] or "" for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind, text in page.code.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
        assert "url(" not in text
        assert "@import" not in text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    assert_alone(Page(html.render(make())))


def resolve(document: Any, pointer: str) -> Any:
    """What a JSON pointer in an address leads to (RFC 6901)."""
    for part in pointer.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        document = document[int(name)] if isinstance(document, list) else document[name]
    return document


def test_every_number_links_to_its_place_in_the_record() -> None:
    report = rich_report()
    text = html.render(report)
    page, document = Page(text), json.loads(dump_report(report))
    places = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = re.findall(r'<a class="ref" href="#([^"]*)">([^<]*)</a>', text)
    assert len(links) > 100
    for pointer, _ in links:
        assert pointer in places
        resolve(document, pointer)
    said = dict(reversed(links))
    assert said["/compressed/size_bytes"] == "10.4 kB"
    assert said["/baseline/latency_ns_median"] == "310 µs"
    assert said["/sites/0/after/bytes"] == "2.45 kB"
    assert said["/layer_errors/1/error_percent"] == "0.50 %"
    assert said["/environment/a~1b%20%22c%22"] == "odd"
    assert said["/verdict"] == "kept"


def test_the_record_in_the_page_is_the_record() -> None:
    report = rich_report()
    page = Page(html.render(report))
    assert json.loads(page.record) == json.loads(dump_report(report))


@given(json_values)
@settings(max_examples=60, deadline=None)
def test_lines_of_a_record_are_json_and_pointers_lead_to_their_lines(value: Any) -> None:
    found = list(embed.lines(value))
    assert json.loads("\n".join(line.text for line in found)) == value
    pointers = [line.pointer for line in found[1:] if line.pointer]
    assert len(set(pointers)) == len(pointers)
    for line in found:
        if line.text.endswith(("{", "[")) or not line.pointer:
            continue
        assert line.text.removesuffix(",").endswith(
            json.dumps(resolve(value, line.pointer), ensure_ascii=False)
        )


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
    page = Page(html.render(report))
    assert_alone(page)
    assert page.text.count(evil) > 15


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


def test_marks_of_points_hide_nothing() -> None:
    """Boxes of the marks as they are drawn, against each other and against all other points."""
    rng = np.random.default_rng(3)
    points = [
        FrontPoint(
            number=n, label="", chosen=n == 17, within_budget=True, drop_percent_estimated=float(d),
            size_bytes=int(1000 * 2**s), latency_ns=1.0,
        )
        for n, (d, s) in enumerate(rng.uniform(0, 3, (120, 2)))
    ]  # fmt: skip
    (plot,) = (p for p in plots.fronts([make(front=points)]) if p.title == "size")
    assert [p.mark for p in plot.points if p.kept] == ["17"]
    assert 5 < sum(bool(p.mark) for p in plot.points) < 120
    boxes = []
    for point in plot.points:
        x, y = point.x * plot.width, (1 - point.y) * plot.height
        if point.mark:
            dx, dy = point.offset
            left = x + dx - (7 * len(point.mark) if dx < 0 else 0)
            boxes.append((point.mark, left, y + dy - 8, left + 7 * len(point.mark), y + dy))
        boxes.append((f"at {point.text}", x - 4, y - 4, x + 4, y + 4))
    for name, left, top, right, bottom in boxes:
        for other, *box in boxes:
            if name != other and not (name.startswith("at") and other.startswith("at")):
                assert left >= box[2] or box[0] >= right or top >= box[3] or box[1] >= bottom, (name, other)


def test_distributions_show_where_the_samples_are() -> None:
    report = rich_report()
    plot = plots.distributions(report)
    assert plot is not None
    for strip in plot.strips:
        inside = [left for left, _, _ in strip.columns]
        assert min(inside) <= strip.median <= max(inside) + 1 / plots.BINS
    before, after = plot.strips
    # Equal distances are equal ratios: of medians, and of the ticks.
    ratio = np.median(report.baseline.latency_samples_ns) / np.median(report.compressed.latency_samples_ns)
    ticks = {tick.text: tick.at for tick in plot.ticks}
    decade = (ticks["200 µs"] - ticks["100 µs"]) / math.log10(2)
    assert before.median - after.median == pytest.approx(math.log10(ratio) * decade, abs=0.03)
    assert "300 samples" in before.text
    one = make(baseline=side(latency_samples_ns=(1.0,)))
    assert plots.distributions(one) is None


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


numbers = st.floats() | st.integers(-(2**70), 2**70) | st.sampled_from([0, -1, 1e308, 5e-324])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_numbers_in_a_record_break_the_page(data: st.DataObject) -> None:
    document = json.loads(dump_report(rich_report()))
    places = [place for place in leaves(document) if place != ("schema_version",)]
    for place in data.draw(st.lists(st.sampled_from(places), max_size=12)):
        spot = document
        for key in place[:-1]:
            spot = spot[key]
        spot[place[-1]] = data.draw(numbers)
    try:
        report = Report.model_validate_json(json.dumps(document))
    except ValueError:
        return
    assert html.render(report).endswith("</html>")
    assert several.render([("a", report), ("b", report)]).endswith("</html>")


@pytest.mark.parametrize(
    ("before", "after"), [(5e-324, 1.0), (1.0, 5e-324), (5e-324, 1e308), (1e308, 5e-324)]
)
def test_a_factor_that_no_number_holds_is_not_told(before: float, after: float) -> None:
    assert words.factor(before, after, "smaller", "larger") == ("", None)

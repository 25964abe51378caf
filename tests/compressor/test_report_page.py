import json
import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import Page, assert_alone, make, printed, rich_report, side

from edgepress.compressor.report import embed, html, plots, several, words
from edgepress.compressor.report.record import (
    CandidateRow,
    FrontPoint,
    LeftAlone,
    Report,
    Side,
    SiteCost,
    SiteRow,
    Step,
    dump_report,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


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
    assert "Not verified: give samples with --data, and --test, for a verdict. No data was given." in text
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

"""The pages in a real browser: quiet, alone, sortable, readable by day and night, on a phone, and without a mouse."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from reports import make, rich_report

from edgepress.compressor.report import html, several
from edgepress.compressor.report.record import LeftAlone, SiteCost, SiteRow

EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
LONG = "a_name_without_any_place_to_break_it_" * 6


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of one run, of several, and of one whose names are out for mischief."""
    folder = tmp_path_factory.mktemp("pages")
    evil = rich_report().model_copy(
        update={
            "model": EVIL,
            "warnings": (EVIL, LONG),
            "sites": tuple(SiteRow(name=name, op="Conv", before=SiteCost(bytes=9)) for name in (EVIL, LONG)),
            "left_alone": (LeftAlone(site=LONG, reason=LONG),),
        }
    )
    texts = {
        "one": html.render(rich_report()),
        "several": several.render([("first", rich_report()), (LONG, make()), ("third", rich_report())]),
        "evil": html.render(evil),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(autouse=True)
def usual(window: Browser) -> None:
    """A wide window by day."""
    window.media()
    window.size(1200)


@pytest.mark.parametrize("page", ["one", "several", "evil"])
def test_a_page_opens_quietly_and_asks_for_nothing(
    window: Browser, pages: dict[str, Path], page: str
) -> None:
    window.open(pages[page])
    assert window.complaints() == []
    assert [each for each in window.requests() if not each.startswith("data:")] == [pages[page].as_uri()]
    assert window.run("return document.title") != "taken"
    assert window.run("return document.querySelectorAll('img').length") == 0


def test_the_policy_stops_what_would_get_in_all_the_same(window: Browser, pages: dict[str, Path]) -> None:
    spoilt = pages["one"].with_name("spoilt.html")
    text = pages["one"].read_text(encoding="utf-8")
    spoilt.write_text(
        text.replace("</main>", f"{EVIL}<img src='http://127.0.0.1:9/x'></main>"), encoding="utf-8"
    )
    window.open(spoilt)
    assert window.run("return document.title") != "taken"
    assert len(window.complaints()) >= 3
    assert [each for each in window.requests() if not each.startswith("data:")] == [spoilt.as_uri()]


def column(window: Browser, table: int, place: int) -> list[str]:
    rows = "return [...document.querySelectorAll('table.sortable')[arguments[0]].tBodies[0].rows]"
    found = window.run(f"{rows}.map(row => row.cells[arguments[1]].textContent.trim())", table, place)
    return [str(each) for each in found]


def test_tables_sort_by_mouse_and_keyboard_and_say_how(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["one"])
    headers = "document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells"
    sizes = ["1.72 MB", "10.4 kB", "8.00 kB"]
    assert column(window, 0, 3) == sizes
    window.run(f"{headers}[3].querySelector('button').click()")
    assert column(window, 0, 3) == sizes[::-1]
    assert window.run(f"return {headers}[3].ariaSort") == "ascending"
    window.run(f"{headers}[3].querySelector('button').focus()")
    window.press("\ue007")  # Enter
    assert column(window, 0, 3) == sizes
    assert window.run(f"return {headers}[3].ariaSort") == "descending"
    window.run(f"{headers}[1].querySelector('button').click()")
    assert column(window, 0, 1) == ["int8", "int8, smaller", "original"]
    assert window.run(f"return [...{headers}].filter(each => each.ariaSort).length") == 1
    # Where a number is missing the row stays last, whichever way.
    for _ in range(2):
        window.run("document.querySelectorAll('table.sortable')[1].tHead.rows[0].cells[4].firstChild.click()")
        assert column(window, 1, 4)[-1] == "–"


def test_without_its_script_a_page_shows_all_and_has_no_dead_buttons(
    window: Browser, pages: dict[str, Path]
) -> None:
    window.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        window.open(pages["one"])
    finally:
        window.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert window.run("return document.querySelectorAll('button').length") == 0
    assert "5.34× faster" in window.run("return document.body.innerText")


def test_a_number_leads_to_itself_in_the_record(window: Browser, pages: dict[str, Path]) -> None:
    window.open(pages["one"])
    assert not window.run("return document.getElementById('record').open")
    window.run("document.querySelector('a[href=\"#/compressed/size_bytes\"]').click()")
    assert window.run("return document.getElementById('record').open")
    target = "const at = document.querySelector(':target');"
    assert window.run(f"{target} return at.textContent.trim()") == '"size_bytes": 10444,'
    assert window.run(f"{target} const y = at.getBoundingClientRect().top; return y >= 0 && y < innerHeight")


@pytest.mark.parametrize(("page", "marks"), [("one", ["1"]), ("several", ["A1", "C1"])])
def test_the_plot_shows_the_chosen_point(
    window: Browser, pages: dict[str, Path], page: str, marks: list[str]
) -> None:
    window.open(pages[page])
    seen: Any = window.run(
        """const svg = document.querySelector("svg.plot"), frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("circle.chosen")].map(each => {
          const {left, right, top, bottom} = each.getBoundingClientRect();
          const across = frame.left <= left && left < right && right <= frame.right;
          return [across && frame.top <= top && bottom <= frame.bottom, getComputedStyle(each).fill, each.textContent];
        })"""
    )
    assert [inside for inside, _, _ in seen] == [True] * len(marks)
    assert [text.split(",")[0] for _, _, text in seen] == marks
    others = window.run(
        "return getComputedStyle(document.querySelector('svg.plot circle:not(.chosen)')).fill"
    )
    assert all(fill != others for _, fill, _ in seen) or page == "several"
    described = window.run("return document.querySelector('svg.plot').getAttribute('aria-label')")
    assert all(f"{mark}, int8" in described for mark in marks)


@pytest.mark.parametrize("page", ["one", "several", "evil"])
def test_a_phone_needs_no_scrolling_sideways(window: Browser, pages: dict[str, Path], page: str) -> None:
    window.size(360)
    window.open(pages[page], "#/0")
    window.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert window.run("return document.documentElement.scrollWidth") <= 360
    assert window.run("return innerWidth") == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["one", "several"])
def test_people_with_other_eyes_and_hands_find_no_barrier(
    window: Browser, pages: dict[str, Path], page: str, scheme: str
) -> None:
    window.media(prefers_color_scheme=scheme)
    window.open(pages[page])
    window.run("for (const each of document.querySelectorAll('details')) each.open = true")
    back = window.run("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    assert window.barriers() == []


def test_paper_is_white_also_at_night_and_has_no_navigation(window: Browser, pages: dict[str, Path]) -> None:
    window.media(media="print", prefers_color_scheme="dark")
    window.open(pages["one"])
    assert window.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert window.run("return getComputedStyle(document.querySelector('nav')).display") == "none"

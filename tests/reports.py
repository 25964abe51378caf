"""Reports of runs that never were, and a reader of pages."""

import base64
import hashlib
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

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
)
from edgepress.compressor.report.tflite import Certificate, OutputParity, Tflite

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

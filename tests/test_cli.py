"""What a user of the command line sees: files, tables, exit codes, and the same bytes again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from clicase import Case, rows

from edgepress.compressor.cli import host, run
from edgepress.compressor.model import to_proto
from edgepress.compressor.passes import ALL
from edgepress.compressor.recipe import json_schema
from edgepress.compressor.report import manifest
from edgepress.compressor.report.record import load_report

ZOO = Path(__file__).parent.parent / "benchmarks" / "zoo" / "digits_cnn"


def edges(path: Path) -> list[Any]:
    """Names, types and dimensions of inputs and outputs."""
    graph = onnx.load(path).graph
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
        )
        for v in (*graph.input, *graph.output)
    ]


def test_the_result_is_whole_smaller_and_runs_like_the_original(case: Case) -> None:
    outcome = case.compress("--budget", 5, format=None)
    assert outcome.code == 0
    assert {path.name for path in case.out.iterdir()} == {
        "model.onnx", "model.tflite", "report.json", "report.html", "pareto.json", "manifest.json",
    }  # fmt: skip
    assert manifest.verify(case.out) == []
    assert edges(case.out / "model.onnx") == edges(case.model)
    assert (case.out / "model.onnx").stat().st_size < case.model.stat().st_size
    session = ort.InferenceSession(case.out / "model.onnx", providers=["CPUExecutionProvider"])
    test = rows(2, 60)
    (scores,) = session.run(None, {"x": test["x"]})
    right = 100 * float((np.asarray(scores).argmax(1) == test["y"]).mean())
    report = load_report(case.out / "report.json")
    assert report.compressed.score == pytest.approx(right)
    assert right >= 95
    assert "smaller" in outcome.out
    assert "kept" in outcome.out


def test_the_report_holds_every_field_that_is_promised(case: Case) -> None:
    case.compress("--budget", 10)
    report = json.loads((case.out / "report.json").read_text())
    assert {
        "verdict", "exit_code", "budget_percent", "metric", "target", "objective", "cost_kind", "n_test",
        "drop_interval_95", "baseline", "compressed", "steps", "engine", "threads", "seconds",
        "tool_peak_rss_bytes", "versions",
    } <= set(report)  # fmt: skip
    assert report["cost_kind"] == "predicted"
    for side in ("baseline", "compressed"):
        assert all(
            report[side][name] is not None
            for name in (
                "score", "size_bytes", "latency_ns_median", "memory_peak_bytes", "activation_bytes",
                "parameters", "macs",
            )
        )  # fmt: skip
        assert "latency_ns_ci95" in report[side]
    low, high = report["drop_interval_95"]
    assert low <= report["drop_percent"] <= high
    turned = next(step for step in report["steps"] if step["site"])
    assert turned["damage"] >= 0
    assert turned["gain"]["macs"] > 0
    assert turned["gain"]["bytes"] > 0
    total = report["baseline"]["size_bytes"] - report["compressed"]["size_bytes"]
    assert report["steps"][-1]["gain"]["bytes"] == total


def test_measured_on_this_machine(case: Case) -> None:
    assert case.compress("--quiet", target="local").code == 0
    report = load_report(case.out / "report.json")
    assert report.cost_kind == "measured"
    for side in (report.baseline, report.compressed):
        assert side.latency_ns_ci95 is not None
        assert side.latency_ns_median is not None
        assert side.latency_ns_ci95[0] <= side.latency_ns_median <= side.latency_ns_ci95[1]
    assert report.compressed.latency_ns_ci95 is not None
    assert report.baseline.latency_ns_ci95 is not None
    assert report.compressed.latency_ns_ci95[0] <= 1.02 * report.baseline.latency_ns_ci95[1]


def test_without_samples_nothing_is_verified(case: Case) -> None:
    outcome = case.compress(data=None, test=None)
    assert outcome.code == 4
    assert "unverified" in outcome.out
    assert edges(case.out / "model.onnx") == edges(case.model)
    assert (case.out / "model.onnx").stat().st_size <= case.model.stat().st_size


def test_model_that_cannot_be_run_here_comes_back_as_it_is(case: Case) -> None:
    def unknown(proto: onnx.ModelProto) -> None:
        proto.graph.node[1].domain = "my.own"
        proto.opset_import.append(onnx.helper.make_opsetid("my.own", 1))

    case.change_model(unknown)
    outcome = case.compress(data=None, test=None)
    assert outcome.code == 4
    assert "my.own" in outcome.err
    assert (case.out / "model.onnx").read_bytes() == case.model.read_bytes()


def test_what_cannot_shrink_comes_back_no_larger(case: Case) -> None:
    case.model.write_bytes(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[N, 6] x) => (float[N, 6] y) { y = Relu(x) }'
        ).SerializeToString()
    )
    path = case.samples("plain.npz", x=rows(5, 90)["x"])
    assert case.compress(data=path, test=None).code == 0
    assert (case.out / "model.onnx").stat().st_size <= case.model.stat().st_size


def test_external_data_counts_as_size_and_the_result_needs_none(case: Case) -> None:
    onnx.save(
        to_proto(models.mlp(400)), case.model, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert case.compress("--budget", 0, data=None, test=None).code == 4
    report = load_report(case.out / "report.json")
    assert report.baseline.size_bytes == case.model.stat().st_size + (case.folder / "w.bin").stat().st_size
    assert set(report.baseline.files) == {"model.onnx", "w.bin"}
    named = {entry.role for entry in manifest.read(case.out).inputs}
    assert named == {"model", "external_data"}
    onnx.checker.check_model(str(case.out / "model.onnx"))
    (case.folder / "w.bin").unlink()
    ort.InferenceSession(case.out / "model.onnx", providers=["CPUExecutionProvider"])


def test_the_default_folder_lies_beside_the_model(case: Case) -> None:
    case.compress(out=None)
    assert manifest.verify(case.folder / "model-compressed") == []


def test_options_may_come_before_the_model(case: Case) -> None:
    words = ["--target", "arm", "--out", case.out, "--data", case.folder / "calib.npz", case.model]
    assert case.run(*words).code == 0


def test_quiet_says_nothing(case: Case) -> None:
    outcome = case.compress("--quiet", test=None)
    assert (outcome.out, outcome.err) == ("", "")


def test_warnings_go_to_stderr(case: Case) -> None:
    outcome = case.compress("--leave", "nothing_like_it", test=None)
    assert "warning: No --test" in outcome.err
    assert "'nothing_like_it' matches no site" in outcome.err
    assert "warning:" not in outcome.out


def test_json_prints_the_report(case: Case) -> None:
    outcome = case.compress("--json")
    assert json.loads(outcome.out) == json.loads((case.out / "report.json").read_text())


def test_copies_of_rows_never_lie_on_both_sides(case: Case) -> None:
    twice = {name: np.concatenate([array, array]) for name, array in rows(1, 80).items()}
    outcome = case.compress(data=case.samples("twice.npz", **twice), test=None)
    assert "80 rows of --data are copies" in outcome.err
    report = load_report(case.out / "report.json")
    assert (report.n_data, report.n_test) == (40, 40)


def test_stored_timings_give_the_same_model_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    first = case.compress("--timings", "t.json", "--quiet", target="local")
    assert first.code == 0
    data, stored = (case.out / "model.onnx").read_bytes(), Path("t.json").read_text()
    timings = json.loads(stored)["timings_ns"]
    # Another machine's clock: were anything timed again for the search, the stored numbers would not stay.
    assert case.compress("--timings", "t.json", "--quiet", target="local").code == 0
    assert (case.out / "model.onnx").read_bytes() == data
    assert json.loads(Path("t.json").read_text())["timings_ns"] == timings


def test_timings_of_another_model_are_refused(case: Case) -> None:
    case.compress("--timings", "t.json")
    onnx.save(to_proto(models.mlp(16)), case.model)
    outcome = case.compress("--timings", "t.json")
    assert outcome.code == 2
    assert "another model" in outcome.err


def test_time_limit_still_gives_a_model(case: Case) -> None:
    assert case.compress("--time-limit", 1e-6).code == 0
    assert load_report(case.out / "report.json").time_limit_hit


def test_sites_to_leave_are_left(case: Case) -> None:
    assert case.compress("--leave", ".", "--budget", 50).code == 0
    report = load_report(case.out / "report.json")
    assert report.compressed.macs == report.baseline.macs
    assert report.compressed.parameters == report.baseline.parameters


def test_shape_fixes_a_dimension(case: Case) -> None:
    assert case.compress("--shape", "x=1,6").code == 0
    assert edges(case.out / "model.onnx")[0][2] == [1, 6]


def test_objective_size(case: Case) -> None:
    assert case.compress("--objective", "size").code == 0
    assert load_report(case.out / "report.json").objective == "size"


def test_recipe_is_followed_and_a_broken_budget_still_gives_the_model(case: Case) -> None:
    name = case.run("inspect", case.model, "--json").out
    site = json.loads(name)["sites"][0]["site"]
    Path("recipe.toml").write_text(f'[[pass]]\nkind = "shrink"\nwidths = [["{site}", 1]]\n')
    outcome = case.compress("--recipe", "recipe.toml")
    assert outcome.code == 1
    assert "broken" in outcome.out
    report = load_report(case.out / "report.json")
    assert report.verdict == "broken"
    assert report.recipe[0]["kind"] == "shrink"
    assert edges(case.out / "model.onnx") == edges(case.model)


def test_a_recipe_may_name_what_an_earlier_pass_of_it_made(case: Case) -> None:
    Path("recipe.toml").write_text(
        '[[pass]]\nkind = "low_rank"\nranks = [["h", 2]]\n'
        '[[pass]]\nkind = "quantize"\nleave = ["h_v"]\nsites = ["^h_v$", "^h$", "y"]\n'
    )
    assert "no site" not in case.compress("--recipe", "recipe.toml").err
    assert len(load_report(case.out / "report.json").recipe) == 2


def test_a_recipe_may_name_parts_that_it_does_not_make(case: Case) -> None:
    """As recipes do that were copied out of a report."""
    Path("recipe.toml").write_text('[[pass]]\nkind = "store"\nbits = [["h_v", 4]]\n')
    assert case.compress("--recipe", "recipe.toml").code == 0


def test_second_output_can_be_judged(case: Case) -> None:
    case.model.write_bytes(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[N, 6] x) => (float[N, 6] y, float[N, 6] z)'
            "{ y = Relu(x) z = Exp(x) }"
        ).SerializeToString()
    )
    path = case.samples("plain.npz", x=rows(5, 90)["x"])
    assert case.compress("--output", "z", "--metric", "fidelity", data=path, test=None).code == 0


def test_metric_function(case: Case) -> None:
    (case.folder / "rightness.py").write_text(
        "def score(outputs, labels):\n    return (outputs['y'].argmax(1) == labels) * 1.0\n"
    )
    assert case.compress("--metric", "rightness:score").code == 0
    assert load_report(case.out / "report.json").metric == "rightness:score"


def test_ours_is_swapped_and_notes_in_it_stay(case: Case) -> None:
    case.compress()
    (case.out / "notes.txt").write_text("keep me")
    assert case.compress().code == 0
    assert (case.out / "notes.txt").read_text() == "keep me"
    assert manifest.verify(case.out) == []


# replay


def replay_of_zoo(case: Case, *words: object) -> Any:
    named = [word for role in ("model.onnx", "calib.npz", "test.npz") for word in (ZOO / role,)]
    options = dict(zip(("--model", "--data", "--test"), named, strict=True))
    return case.run("replay", *words, *[word for pair in options.items() for word in pair])


def test_replay_gives_the_same_bytes(case: Case) -> None:
    words = ["--data", ZOO / "calib.npz", "--test", ZOO / "test.npz", "--target", "arm", "--out", case.out]
    assert case.run(ZOO / "model.onnx", *words).code in (0, 1)
    outcome = replay_of_zoo(case, case.out / "manifest.json", "--out", "again")
    assert "byte for byte" in outcome.out
    assert Path("again/model.onnx").read_bytes() == (case.out / "model.onnx").read_bytes()


def test_replay_finds_inputs_that_lie_beside_the_result(case: Case) -> None:
    case.compress()
    assert case.run("replay", case.out, "--out", "again").code == 0


def test_replay_wants_the_same_inputs(case: Case) -> None:
    case.compress()
    case.samples("calib.npz", **rows(9, 80))
    outcome = case.run("replay", case.out, "--out", "again")
    assert outcome.code == 2
    assert "not the data of that run" in outcome.err
    assert not Path("again").exists()


def test_replay_that_gives_other_bytes_writes_nothing(case: Case) -> None:
    case.compress()
    path = case.out / "manifest.json"
    document = json.loads(path.read_text())
    document["files"]["model.onnx"] = "0" * 64
    document["versions"]["onnx"] = "0.0.1"
    path.write_text(json.dumps(document))
    outcome = case.run("replay", path, "--out", "again")
    assert outcome.code == 2
    assert "onnx 0.0.1 → " in outcome.err
    assert not Path("again").exists()


# passes


def test_passes_lists_each_kind_with_its_fields_and_what_they_are_for(case: Case) -> None:
    outcome = case.run("passes")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 100
    paragraphs = {text.partition(":")[0]: text for text in outcome.out.split("\n\n")}
    for kind in ALL:
        assert kind.kind in paragraphs
        for field in dataclasses.fields(kind):
            assert f"  {field.name} " in paragraphs[kind.kind]
    assert '"channels" | "space"' in paragraphs["low_rank"]
    assert "share of the output" in paragraphs["low_rank"]


def test_passes_as_json_is_the_schema_of_a_recipe(case: Case) -> None:
    outcome = case.run("passes", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == json.loads(json.dumps(json_schema()))


# inspect


def test_inspect_fits_a_hundred_columns_and_names_every_site(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    plain = case.run("inspect", ZOO / "model.onnx")
    known = case.run("inspect", ZOO / "model.onnx", "--data", ZOO / "calib.npz")
    assert plain.code == known.code == 0
    for said in (plain.out, known.out):
        assert max(map(len, said.splitlines())) <= 100
    facts = json.loads(case.run("inspect", ZOO / "model.onnx", "--json").out)
    assert all(row["site"] in plain.out for row in facts["sites"])
    assert facts["parameters"] == sum(
        int(np.prod(tensor.dims)) for tensor in onnx.load(ZOO / "model.onnx").graph.initializer
    )
    assert all(row["site"] in known.out for row in facts["sites"])
    assert "saves latency" in known.out
    assert "saves latency" not in plain.out


def test_inspect_leaves_no_files(case: Case) -> None:
    before = sorted(case.folder.iterdir())
    case.run("inspect", case.model, "--data", case.folder / "calib.npz")
    assert sorted(case.folder.iterdir()) == before


# help


def test_help_names_commands_and_exit_codes(case: Case) -> None:
    outcome = case.run("--help")
    assert outcome.code == 0
    for word in ("inspect", "passes", "replay", "doctor", "130 interrupted"):
        assert word in outcome.out
    assert "--budget" in case.run("run", "--help").out
    assert case.run("--version").out.startswith("compress")


def test_progress_is_told_in_order(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    plain = host.make_host

    def listening(*arguments: Any, **more: Any) -> Any:
        return plain(*arguments[:-1], lambda stage, share, detail: told.append(stage), **more)

    monkeypatch.setattr(run, "make_host", listening)
    assert case.compress().code == 0
    assert set(told) <= set(run.STAGES)
    firsts = [told.index(stage) for stage in ("samples", "normalise", "options", "search", "export", "judge")]
    assert firsts == sorted(firsts)

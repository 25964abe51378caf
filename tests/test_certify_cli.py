"""`compress certify` as a user meets it."""

import json
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from clicase import Case, files_below

from edgepress.compressor.model import load, to_proto
from edgepress.compressor.sites import find_sites, replace_constant


def pruned(case: Case, *words: object) -> dict[str, Any]:
    """The certificate of a net with weights reset under 20 %."""
    given = ("--box", "-1,1", "--limit", "20%", "--data", case.folder / "calib.npz", "--out", case.out)
    said = case.run("certify", case.model, *given, *words)
    assert said.code == 0, said.err
    found = json.loads((case.out / "certificate.json").read_text())
    assert isinstance(found, dict)
    return found


def nudged(case: Case, by: float = 1e-3) -> str:
    """Another model file, with one weight changed."""
    model = load(case.model)
    site = find_sites(model)[0]
    weight = site.weight.copy()
    weight.flat[0] += by
    replace_constant(site.node, 1, weight)
    onnx.save(to_proto(model), case.folder / "other.onnx")
    return str(case.folder / "other.onnx")


def test_weights_go_and_the_certificate_holds(case: Case) -> None:
    found = pruned(case)
    assert {"model.onnx", "certificate.json", "manifest.json"} <= set(files_below(case.out))
    assert found["kind"] == "certified"
    assert 0 < found["share_reset"] < 1
    model, changed = load(case.model), load(case.out / "model.onnx")
    zeros = sum(int((site.weight == 0).sum()) for site in find_sites(changed))
    assert zeros == sum(found["weights_reset"].values())
    x = np.random.default_rng(0).choice([-1.0, 1.0], (500, 6)).astype(np.float32)
    moved = np.abs(models.run(changed, {"x": x})["y"] - models.run(model, {"x": x})["y"]).max(0)
    assert moved.max() > 0
    for output, seen in zip(found["outputs"], moved, strict=True):
        assert seen <= max(-output["least"], output["most"]) + 1e-5 <= output["limit"] + 2e-5
    assert found["certified_change_max"] == max(max(-o["least"], o["most"]) for o in found["outputs"])


@pytest.mark.parametrize(
    ("words", "how"),
    [
        (("--method", "plain"), "in exact arithmetic"),
        ((), "by linear forms, with the code that made it"),
        (("--arithmetic", "float32", "--method", "plain"), "by plain intervals, with the code that made it"),
    ],
)
def test_a_certificate_is_proved_again_and_said_how(case: Case, words: tuple[str, ...], how: str) -> None:
    pruned(case, *words)
    checked = ("certify", case.model, case.out / "model.onnx", "--check", case.out / "certificate.json")
    said = case.run(*checked)
    assert said.code == 0
    assert "Proved again" in said.out
    assert how in " ".join(said.out.split())


@pytest.mark.parametrize("middle", ["Sigmoid(h)", "DequantizeLinear(q, s, z)"])
def test_curves_and_quantizers_are_proved_again_exactly(case: Case, middle: str) -> None:
    """And by nothing that made the certificate: no smaller claim holds, and no other weights."""
    header, kept = "(float[N, 6] x) => (float[N, 4] y)", models.constants(1, w=(6, 5), v=(5, 4))
    files = [case.folder / "one.onnx", case.folder / "two.onnx"]
    first, *extra = ("q = QuantizeLinear(h, s, z)", "s", "z") if "Linear" in middle else ("",)
    grid = {"s": np.float32(0.05), "z": np.uint8(100)}
    for file, gap, there in ((files[0], 0.0, not extra), (files[1], 1e-3, True)):
        weights = kept | {"w": kept["w"] + np.float32(gap)} | ({k: grid[k] for k in extra} if there else {})
        body = f"h = MatMul(x, w) {first} r = {middle}" if there else "h = MatMul(x, w) r = Identity(h)"
        onnx.save(to_proto(models.text(header, f"{body} y = MatMul(r, v)", weights)), file)
    words = ("certify", *files, "--box", "0,1", "--method", "plain", "--out", case.out)
    assert case.run(*words).code == 0
    check = ("certify", *files, "--check", case.out)
    said = case.run(*check)
    assert said.code == 0
    assert "in exact arithmetic" in " ".join(said.out.split())
    path = case.out / "certificate.json"
    found = json.loads(path.read_text())
    outputs = [each | {"most": each["most"] * 0.1} for each in found["outputs"]]
    path.write_text(json.dumps(found | {"outputs": outputs}))
    said = case.run(*check)
    assert said.code == 1
    assert "NOT proved" in said.out


@pytest.mark.parametrize("what", ["outputs", "certified_change_max"])
def test_a_certificate_that_claims_too_much_is_found_out(case: Case, what: str) -> None:
    found = pruned(case)
    if what == "outputs":
        found["outputs"][0] |= {"least": -1e-6, "most": 1e-6}
    else:
        found["certified_change_max"] *= 0.9
    (case.out / "certificate.json").write_text(json.dumps(found))
    said = case.run("certify", case.model, case.out / "model.onnx", "--check", case.out)
    assert said.code == 1
    assert "NOT proved" in said.out


def test_a_plain_claim_that_exact_arithmetic_belies_is_not_proved_by_rounding(case: Case) -> None:
    """What it claims too little is less than what bounds may differ by from one machine to another."""
    found = pruned(case, "--method", "plain")
    for output in found["outputs"]:
        output |= {"least": output["least"] * (1 - 1e-8), "most": output["most"] * (1 - 1e-8)}
    (case.out / "certificate.json").write_text(json.dumps(found))
    said = case.run("certify", case.model, case.out / "model.onnx", "--check", case.out)
    assert said.code == 1
    assert "NOT proved" in said.out


def test_a_certificate_that_another_shape_inside_belies_is_found_out(case: Case) -> None:
    """The two differ in the target of a Reshape and in nothing else; a forger says that they are the same."""
    header = "(float[N, 16] x) => (float[N, 32] y)"
    body = "r = Reshape(x, s) c = Conv <pads = [1, 1, 1, 1]> (r, k) y = Flatten(c)"
    kept, files = models.constants(3, k=(2, 1, 3, 3)), [case.folder / "one.onnx", case.folder / "two.onnx"]
    for file, sizes in zip(files, ((-1, 1, 4, 4), (-1, 1, 2, 8)), strict=True):
        onnx.save(to_proto(models.text(header, body, {**kept, "s": np.array(sizes)})), file)
    assert case.run("certify", *files, "--box", "0,1", "--out", case.out).code == 0
    found = json.loads((case.out / "certificate.json").read_text())
    assert found["compared"] == "apart"
    assert case.run("certify", *files, "--check", case.out).code == 0
    found["certified_change_max"] = 0.0
    found["outputs"] = [each | {"least": 0.0, "most": 0.0} for each in found["outputs"]]
    for change in ({}, {"certified_change_max": float("nan")}):
        (case.out / "certificate.json").write_text(json.dumps(found | change))
        said = case.run("certify", *files, "--check", case.out)
        assert said.code == 1
        assert "NOT proved" in said.out


def test_a_certificate_of_other_files_is_refused(case: Case) -> None:
    pruned(case)
    said = case.run("certify", case.model, nudged(case), "--check", case.out)
    assert said.code == 2
    assert "other.onnx is not the model.onnx" in said.err


def test_observed_ranges_are_no_certificate(case: Case) -> None:
    found = pruned(case, "--ranges", "observed")
    assert found["kind"] == "observed"
    assert found["certified_change_max"] is None
    assert found["observed_change_max"] > 0
    said = case.run("certify", case.model, case.out / "model.onnx", "--check", case.out)
    assert said.code == 2


def test_two_models_are_compared_and_held_to_a_limit(case: Case) -> None:
    other = nudged(case)
    words = ("certify", case.model, other, "--box", "-1,1", "--json")
    said = case.run(*words)
    assert said.code == 0
    found = json.loads(said.out)
    assert found["compared"] == "together"
    assert 0 < found["certified_change_max"] < 0.01
    assert case.run(*words, "--limit", "1e-9").code == 1
    assert case.run(*words, "--limit", "0.01").code == 0


def test_a_box_of_samples_is_said_to_be_one_and_kept(case: Case) -> None:
    words = ("certify", case.model, nudged(case), "--box", case.folder / "calib.npz", "--margin", "0.1")
    assert case.run(*words, "--out", case.out).code == 0
    found = json.loads((case.out / "certificate.json").read_text())
    assert found["box"]["source"] == "statistical"
    assert case.run("certify", case.model, nudged(case), "--check", case.out).code == 0
    np.savez(case.out / "box.npz", low=np.zeros((1, 6)), high=np.zeros((1, 6)))
    assert case.run("certify", case.model, nudged(case), "--check", case.out).code == 2


def test_classes_that_provably_stay_are_counted(case: Case) -> None:
    words = (
        "certify",
        case.model,
        nudged(case),
        "--box",
        "-4,4",
        "--test",
        case.folder / "test.npz",
        "--json",
    )
    near = json.loads(case.run(*words, "--near", "1/255").out)["top1"]
    far = json.loads(case.run(*words, "--near", "0.5").out)["top1"]
    assert near["rows"] == 60
    assert near["rows_certified"] > far["rows_certified"]
    assert near["share_certified"] == near["rows_certified"] / 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--box"),
        (("--box", "0,1"), "--limit and --out"),
        (("--box", "1,0", "--limit", "1", "--out", "o"), "least comes first"),
        (("--box", "a,b", "--limit", "1", "--out", "o"), "no numbers"),
        (("--box", "0,1", "--limit", "1%", "--out", "o"), "without --data"),
        (("--box", "0,1", "--limit", "none", "--out", "o"), "write 1%"),
        (("--check", "c.json"), "without CANDIDATE"),
    ],
)
def test_nonsense_is_refused_at_once(case: Case, words: tuple[str, ...], said: str) -> None:
    outcome = case.run("certify", case.model, *words)
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_what_is_not_covered_is_named(case: Case) -> None:
    body = "r = Erf(x) y = MatMul(r, w)"
    net = models.text("(float[N, 6] x) => (float[N, 4] y)", body, models.constants(1, w=(6, 4)))
    onnx.save(ir.to_proto(net), case.model)
    outcome = case.run("certify", case.model, "--box", "0,1", "--limit", "1", "--out", case.out)
    assert outcome.code == 2
    assert "Erf" in outcome.err
    assert not case.out.exists()

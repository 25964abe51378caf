import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgepress.compressor.errors import OutputError, UsageError
from edgepress.compressor.report import manifest as manifests


def make(**changes: Any) -> manifests.Manifest:
    given: dict[str, Any] = {
        "tool_version": "0.1.0",
        "versions": {"onnx": "1.20.0"},
        "seed": 3,
        "options": {"budget": 2.0, "leave": ["/block1/.*"], "output": None},
        "recipe": ({"kind": "shrink", "widths": [["conv", 8]]},),
        "inputs": (
            manifests.Input(role="model", name="../net.onnx", sha256="a" * 64),
            manifests.Input(role="data", name="mydata:load", sha256=None),
        ),
        "files": {},
        "timings_ns": {"c1": 51_000.0},
    }
    return manifests.Manifest(**given | changes)


def folder_with(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    manifests.write(make(files=manifests.hash_files(tmp_path)), tmp_path)
    return tmp_path


def test_a_manifest_survives_the_trip_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    path = manifests.write(make(), tmp_path)
    first = path.read_bytes()
    assert manifests.read(path) == make()
    assert manifests.read(tmp_path) == make()
    shuffled = make(options=dict(reversed(make().options.items())))
    assert manifests.write(shuffled, tmp_path).read_bytes() == first


def test_verify_names_what_was_changed_or_taken_away(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, model="m", report="r", other="o")
    assert manifests.verify(folder) == []
    (folder / "model").write_text("M")
    (folder / "other").unlink()
    (folder / "notes").write_text("not ours")
    assert manifests.verify(folder) == ["model", "other"]


def test_hashes_are_sha256_of_every_file_but_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"b" * 3_000_000)  # more than one block
    manifests.write(make(), tmp_path)
    assert manifests.hash_files(tmp_path) == {"deep/b": hashlib.sha256(b"b" * 3_000_000).hexdigest()}


def test_the_hash_of_a_folder_knows_names_and_contents_and_not_where_it_lies(tmp_path: Path) -> None:
    def build(name: str, label: str, text: str) -> str:
        (tmp_path / name / label).mkdir(parents=True)
        (tmp_path / name / label / "1.png").write_text(text)
        (tmp_path / name / os.fsdecode(b"\xff.png")).write_text("a name that is no UTF-8")
        return manifests.sha256_path(tmp_path / name)

    first = build("a", "cat", "x")
    assert build("b", "cat", "x") == first
    assert build("c", "dog", "x") != first
    assert build("d", "cat", "y") != first
    assert manifests.sha256_path(tmp_path / "a" / "cat" / "1.png") == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    "name", ["/home/me/net.onnx", "C:\\net.onnx", "\\\\server\\net.onnx", "C:net.onnx", ""]
)
def test_absolute_names_cannot_be_written(name: str) -> None:
    with pytest.raises(ValidationError, match="not a relative name"):
        manifests.Input(role="model", name=name, sha256=None)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../../b", "..\\b", "/etc/passwd"])
def test_a_manifest_cannot_make_us_read_files_outside_its_folder(tmp_path: Path, name: str) -> None:
    document = make().model_dump(mode="json") | {"files": {name: "0" * 64}}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="damaged at files"):
        manifests.verify(tmp_path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("proj/out/model.onnx", "model.onnx"),
        ("proj/net.onnx", "../net.onnx"),
        ("proj/images/calib", "../images/calib"),
        ("elsewhere/net.onnx", "net.onnx"),
        ("proj", "proj"),
    ],
)
def test_names_of_inputs_are_relative_and_tell_nothing_of_the_machine(
    tmp_path: Path, path: str, says: str
) -> None:
    assert manifests.portable_name(tmp_path / path, tmp_path / "proj" / "out") == says
    assert manifests.portable_name(Path("/home/me/net.onnx"), Path("/out")) == "net.onnx"
    odd = Path(os.fsdecode(b"/x/n\xff.onnx"))
    assert make(
        inputs=[manifests.Input(role="model", name=manifests.portable_name(odd, tmp_path), sha256=None)]
    )


def test_our_folder_is_known_whatever_the_version_of_its_manifest(tmp_path: Path) -> None:
    assert manifests.files_of(tmp_path) is None
    folder_with(tmp_path, model="m")
    assert manifests.files_of(tmp_path) == {"model", "manifest.json"}
    (tmp_path / "manifest.json").write_text('{"tool": "edgepress", "schema_version": 7, "files": ["?"]}')
    assert manifests.files_of(tmp_path) == {"manifest.json"}
    for text in ('{"tool": "make"}', "[]", "", "[" * 100_000):
        (tmp_path / "manifest.json").write_text(text)
        assert manifests.files_of(tmp_path) is None


def test_errors_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        manifests.read(tmp_path / "manifest.json")
    with pytest.raises(UsageError, match="No such file") as missing:
        manifests.sha256_file(tmp_path / "gone")
    assert missing.value.hint
    with pytest.raises(OutputError, match="No such file"):
        manifests.write(make(), tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text(json.dumps(make().model_dump(mode="json") | {"seed": "x"}))
    with pytest.raises(UsageError, match="damaged at seed"):
        manifests.read(tmp_path)

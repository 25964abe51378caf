"""Names that no file should have, numbers that no option should be, and what no file may replace: told in a line."""

import json
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
from clicase import Case, refused


@pytest.mark.parametrize("model", ["", ".", "/"])
def test_a_model_without_a_name(case: Case, model: str) -> None:
    refused(case.run(model), "is a folder")
    refused(case.run("export", model), "is a folder")


@pytest.mark.parametrize("place", ["/", "."])
def test_evolution_goes_to_no_folder_without_a_name(case: Case, place: str) -> None:
    words = ("--data", "calib.npz", "--layers", "6,5,4", "--epochs", 1, "--out", place)
    refused(case.run("evolve", *words), "output folder")
    assert not list(case.folder.glob(".checkpoint*"))


def test_links_that_lead_to_each_other(case: Case) -> None:
    Path("a.onnx").symlink_to("b.onnx")
    Path("b.onnx").symlink_to("a.onnx")
    for words in (("a.onnx",), ("export", "a.onnx", "--out", "c.tflite"), ("inspect", "a.onnx")):
        told = case.run(*words)
        refused(told)
        assert "Links lead to each other" in told.err or "no such file" in told.err, "as of Python 3.13"


@pytest.mark.parametrize("words", [(), ("inspect",), ("bench",)])
def test_a_file_whose_name_is_no_text(case: Case, words: tuple[str, ...]) -> None:
    odd = os.fsdecode(b"m\xff.onnx")
    shutil.copy("model.onnx", odd)
    refused(case.run(*words, odd), "a name that is not UTF-8 text", "Give the file or its folder another")


@pytest.mark.parametrize(
    "words",
    [
        ("bench", "model.onnx", "--seconds"),
        ("gate", "model.onnx", "model.onnx", "--seconds"),
        ("inspect", "model.onnx", "--time-limit"),
        ("model.onnx", "--time-limit"),
        ("model.onnx", "--budget"),
        ("devices", "profile", "--time-limit"),
        ("evolve", "--data", "calib.npz", "--layers", "6,5,4", "--epsilon"),
    ],
)
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_numbers_that_are_none(case: Case, words: tuple[str, ...], number: str) -> None:
    refused(case.run(*words, number), f"Invalid value for '{words[-1]}'")


@pytest.mark.parametrize("words", [("model.onnx",), ("bench", "model.onnx"), ("selftest",)])
def test_more_threads_than_any_machine_has(case: Case, words: tuple[str, ...]) -> None:
    refused(case.run(*words, "--threads", 10**12), "1<=x<=1024")


def test_a_pipe_is_written_to_and_stays_one(case: Case) -> None:
    os.mkfifo("pipe.json")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe.json").read_text()), daemon=True)
    reader.start()
    told = case.run("bench", "model.onnx", "--seconds", 0.05, "--json", "pipe.json", "--quiet")
    reader.join(60)
    assert told.code == 0, told
    assert json.loads(read[0])["models"]
    assert stat.S_ISFIFO(Path("pipe.json").stat().st_mode)


def test_no_pipe_is_replaced_by_a_model(case: Case) -> None:
    os.mkfifo("pipe.tflite")
    words = ("export", "model.onnx", "--format", "tflite", "--out", "pipe.tflite", "--force")
    refused(case.run(*words), "is no file")
    assert stat.S_ISFIFO(Path("pipe.tflite").stat().st_mode)

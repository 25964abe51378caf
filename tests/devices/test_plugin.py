"""The instruction counter: which class an instruction is in, and which emulators it is built for."""

import ctypes
import os
from importlib import resources
from pathlib import Path

import pytest

from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.plugin import KNOWN_APIS, api_in, compiled, plugin

ALL, FMA, DOT, LOAD_STORE = range(4)
SOURCE = resources.files("edgepress.devices").joinpath("plugin.c").read_text()

# As assemblers encode them; the text is what they were given.
ENCODED = [
    (0x4E22CC20, FMA, "fmla v0.4s, v1.4s, v2.4s"),
    (0x4EA2CC20, FMA, "fmls v0.4s, v1.4s, v2.4s"),
    (0x4E62CC20, FMA, "fmla v0.2d, v1.2d, v2.2d"),
    (0x4F821020, FMA, "fmla v0.4s, v1.4s, v2.s[0]"),
    (0x4FA21820, FMA, "fmla v0.4s, v1.4s, v2.s[3]"),
    (0x4F825020, FMA, "fmls v0.4s, v1.4s, v2.s[0]"),
    (0x4E420C20, FMA, "fmla v0.8h, v1.8h, v2.8h"),
    (0x4F021020, FMA, "fmla v0.8h, v1.8h, v2.h[0]"),
    (0x1F020C20, FMA, "fmadd s0, s1, s2, s3"),
    (0x4E829420, DOT, "sdot v0.4s, v1.16b, v2.16b"),
    (0x6E829420, DOT, "udot v0.4s, v1.16b, v2.16b"),
    (0x4F82E020, DOT, "sdot v0.4s, v1.16b, v2.4b[0]"),
    (0x6FA2E820, DOT, "udot v0.4s, v1.16b, v2.4b[3]"),
    (0x4E829C20, DOT, "usdot v0.4s, v1.16b, v2.16b"),
    (0x4F02F020, DOT, "sudot v0.4s, v1.16b, v2.4b[0]"),
    (0x4E82A420, DOT, "smmla v0.4s, v1.16b, v2.16b"),
    (0x6E82A420, DOT, "ummla v0.4s, v1.16b, v2.16b"),
    (0xF9400020, LOAD_STORE, "ldr x0, [x1]"),
    (0xB9000020, LOAD_STORE, "str w0, [x1]"),
    (0x3DC00020, LOAD_STORE, "ldr q0, [x1]"),
    (0xAD400440, LOAD_STORE, "ldp q0, q1, [x2]"),
    (0xA9BF7BFD, LOAD_STORE, "stp x29, x30, [sp, #-16]!"),
    (0x4C407820, LOAD_STORE, "ld1 {v0.4s}, [x1]"),
    (0x4D40C820, LOAD_STORE, "ld1r {v0.4s}, [x1]"),
    (0x8B020020, ALL, "add x0, x1, x2"),
    (0x9B020C20, ALL, "madd x0, x1, x2, x3"),
    (0xD65F03C0, ALL, "ret"),
    (0xD503201F, ALL, "nop"),
    (0x54000000, ALL, "b.eq ."),
    (0x6E22DC20, ALL, "fmul v0.4s, v1.4s, v2.4s"),
    (0x4E22D420, ALL, "fadd v0.4s, v1.4s, v2.4s"),
    (0x4F829020, ALL, "fmul v0.4s, v1.4s, v2.s[0]"),
    (0x0E628020, ALL, "smlal v0.4s, v1.4h, v2.4h"),
    (0x0F422020, ALL, "smlal v0.4s, v1.4h, v2.h[0]"),
    (0x4EA29420, ALL, "mla v0.4s, v1.4s, v2.4s"),
    (0x6F820020, ALL, "mla v0.4s, v1.4s, v2.s[0]"),
    (0x4E22C020, ALL, "smull2 v0.8h, v1.16b, v2.16b"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = compiled(SOURCE, tmp_path_factory.mktemp("plugin") / "plugin.so", 1)
    return ctypes.CDLL(str(path), mode=os.RTLD_LAZY)  # QEMU's functions are missing, and not called


@pytest.mark.parametrize(("word", "kind", "text"), ENCODED, ids=[row[2] for row in ENCODED])
def test_an_instruction_is_in_its_class(library, word, kind, text):
    library.classify.argtypes = [ctypes.c_uint32]
    assert library.classify(word) == kind


@pytest.mark.parametrize("api", KNOWN_APIS)
def test_it_compiles_for_every_api_that_it_knows(api, tmp_path):
    path = compiled(SOURCE, tmp_path / "plugin.so", api)
    library = ctypes.CDLL(str(path), mode=os.RTLD_LAZY)
    assert ctypes.c_int.in_dll(library, "qemu_plugin_version").value == api


def test_an_emulator_names_its_api_when_it_refuses():
    said = "TCG plugin p.so requires API version 9, but this QEMU supports only up to version 4"
    assert api_in(said) == 4
    assert api_in("qemu: unknown option 'plugin'") is None


def emulator(folder: Path, says: str) -> list[str]:
    program = folder / "qemu-aarch64"
    program.write_text(f"#!/bin/sh\necho '{says}' >&2; exit 1\n")
    program.chmod(0o755)
    return [str(program)]


def test_a_later_api_is_told(tmp_path):
    with pytest.raises(
        DeviceTroubleError, match=r"plugin API version 9; the instruction counter knows 1 to 5"
    ):
        plugin(emulator(tmp_path, "this QEMU supports only up to version 9"), tmp_path / "built")
    assert not list((tmp_path / "built").iterdir())


def test_an_emulator_without_plugins_is_told(tmp_path):
    with pytest.raises(DeviceTroubleError, match="takes no plugins") as caught:
        plugin(emulator(tmp_path, "unknown option"), tmp_path / "built")
    assert "qemu-user" in caught.value.hint


def test_a_plugin_is_built_once(tmp_path):
    command = emulator(tmp_path, "this QEMU supports only up to version 4")
    built = plugin(command, tmp_path / "built")
    before = built.stat().st_mtime_ns
    assert plugin(command, tmp_path / "built") == built
    assert built.stat().st_mtime_ns == before
    assert list((tmp_path / "built").iterdir()) == [built]


def test_without_a_compiler_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceTroubleError, match="no C compiler") as caught:
        compiled(SOURCE, tmp_path / "plugin.so", 1)
    assert "apt-get install gcc" in caught.value.hint


def test_what_the_compiler_refuses_is_told(tmp_path):
    with pytest.raises(DeviceTroubleError, match="cannot be compiled"):
        compiled("#include <no_such_header.h>", tmp_path / "plugin.so", 1)

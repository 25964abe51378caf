from dataclasses import replace
from importlib import resources
from pathlib import Path

import onnxruntime
import pytest

from edgepress.devices.profile import (
    DeviceSpec,
    ProfileError,
    dump_profile,
    is_host,
    known_profiles,
    load_profile,
    local_profile,
    nearest_profile,
    remark,
)
from edgepress.runtime.environment import Environment, describe

SHIPPED = {
    "android-arm64": "data sheet",
    "arm": "emulated",
    "cortex-a53": "emulated",
    "cortex-a72": "emulated",
    "cortex-a76": "emulated",
    "cortex-m": "data sheet",
    "cortex-m4": "data sheet",
    "cortex-m7": "data sheet",
    "neoverse-n1": "emulated",
    "x86": "measured",
    "x86-avx2": "data sheet",
}
NAMES = sorted([*SHIPPED, "local"])
VNNI = ("avx2", "avx512_vnni")


def machine(arch: str, *features: str, cpu: str = "some processor") -> Environment:
    return Environment(arch, cpu, features, 4, None, 0.0, "Linux", "3.11", {})


def write(folder, name, text):
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_promised_profiles_are_there_and_load():
    assert known_profiles() == NAMES
    for name in NAMES:
        spec = load_profile(name)
        assert spec.name == name
        assert spec.macs_per_ns_int8 > spec.macs_per_ns_fp32 > 0


def test_each_says_what_its_numbers_rest_on():
    assert {name: load_profile(name).source for name in SHIPPED} == SHIPPED
    for name in SHIPPED:
        text = resources.files("edgepress.devices.profiles").joinpath(f"{name}.toml").read_text("utf-8")
        alias = not any(line.startswith("macs") for line in text.splitlines())
        assert text.startswith("# ") or alias, "where they come from"


def test_changed_numbers_do_not_keep_the_source_of_the_old(tmp_path):
    assert load_profile(write(tmp_path, "a", 'base = "x86"\ndescription = "mine"')).source == "measured"
    assert load_profile(write(tmp_path, "b", 'base = "x86"\nmacs_per_ns_fp32 = 3')).source == ""
    own = 'base = "x86"\nsource = "data sheet"\nmacs_per_ns_fp32 = 3'
    assert load_profile(write(tmp_path, "c", own)).source == "data sheet"


def test_a_phone_is_reached_by_adb_and_never_emulated_in_its_place():
    phone = load_profile("android-arm64")
    assert (phone.transport, phone.arch) == ("adb", "aarch64")
    assert not is_host(phone, machine("aarch64", cpu="Cortex-A76"))


def test_every_file_that_is_packed_is_a_profile():
    files = {entry.name for entry in resources.files("edgepress.devices.profiles").iterdir()}
    assert {f"{name}.toml" for name in NAMES if name != "local"} <= files


def test_activations_are_signed_on_arm_and_unsigned_on_x86():
    assert {load_profile(name).activation_dtype for name in ("x86", "x86-avx2")} == {"uint8"}
    arms = [name for name in SHIPPED if not name.startswith("x86")]
    assert {load_profile(name).activation_dtype for name in arms} == {"int8"}


def test_arm_is_cortex_a72_under_the_name_that_was_asked_for():
    arm, a72 = load_profile("arm"), load_profile("cortex-a72")
    assert arm.name == "arm"
    assert (arm.cpu, arm.macs_per_ns_int8, arm.runtime_version) == (a72.cpu, a72.macs_per_ns_int8, "1.23")


def test_dot_product_cores_gain_more_from_8_bits():
    def gain(spec: DeviceSpec) -> float:
        return spec.macs_per_ns_int8 / spec.macs_per_ns_fp32

    assert gain(load_profile("cortex-a53")) == pytest.approx(1.24, abs=0.05)
    assert gain(load_profile("cortex-a76")) == pytest.approx(3.3, abs=0.1)


def test_x86_and_local_have_the_runtime_that_is_installed():
    release = ".".join(onnxruntime.__version__.split(".")[:2])
    assert load_profile("x86").runtime_version == load_profile("local").runtime_version == release


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        (("avx2", "avx512f", "avx512_vnni"), 8),
        (("avx2", "avx_vnni"), 8),
        (("avx2", "avx512f"), 7),
        (("avx2",), 7),
        ((), 7),
    ],
)
def test_weights_get_7_bits_where_products_saturate(features, bits):
    spec = local_profile(machine("x86_64", *features))
    assert (spec.name, spec.weight_bits, spec.activation_dtype) == ("local", bits, "uint8")
    assert spec.channel_multiple == (16 if "avx512f" in features else 8)
    assert is_host(spec, machine("x86_64", *features))
    fitting = load_profile(nearest_profile(machine("x86_64", *features)))
    assert fitting.name == ("x86" if bits == 8 else "x86-avx2")
    assert (spec.macs_per_ns_int8, spec.weight_bits) == (fitting.macs_per_ns_int8, fitting.weight_bits)


def test_local_on_arm_looks_for_the_dot_product():
    assert local_profile(machine("aarch64", "asimd", "asimddp")).macs_per_ns_int8 > 40
    plain = local_profile(machine("aarch64", "asimd"))
    assert plain.macs_per_ns_int8 < 10
    assert (plain.weight_bits, plain.activation_dtype, plain.arch) == (8, "int8", "aarch64")


def test_local_on_another_architecture_is_refused():
    with pytest.raises(ProfileError, match="riscv64"):
        local_profile(machine("riscv64"))


@pytest.mark.parametrize(
    ("name", "host", "measured"),
    [
        ("x86", machine("x86_64", *VNNI), True),
        ("x86", machine("x86_64", "avx2"), False),
        ("x86-avx2", machine("x86_64", "avx2"), True),
        ("x86-avx2", machine("x86_64", *VNNI), False),
        ("x86-avx2", machine("x86_64"), True),
        ("arm", machine("x86_64"), False),
        ("x86", machine("aarch64"), False),
        ("arm", machine("aarch64", cpu="Cortex-A72"), True),
        ("cortex-a53", machine("aarch64", cpu="Cortex-A72"), False),
    ],
)
def test_measuring_here_stands_only_for_the_same_kind_of_processor(name, host, measured):
    assert is_host(load_profile(name), host) is measured


@pytest.mark.parametrize(
    ("name", "host", "says"),
    [
        ("x86", machine("x86_64", "avx2"), "8-bit weights may saturate"),
        ("x86", machine("x86_64", *VNNI), ""),
        ("x86-avx2", machine("x86_64", *VNNI), "predicted"),
        ("x86-avx2", machine("x86_64", "avx2"), ""),
        ("arm", machine("x86_64", "avx2"), ""),
        ("x86", machine("aarch64"), ""),
    ],
)
def test_a_remark_where_8_bit_products_are_made_in_another_way_here(name, host, says):
    found = remark(load_profile(name), host)
    assert says in found
    assert bool(found) == bool(says)


def test_local_is_this_machine():
    assert is_host(load_profile("local"))


def test_an_unknown_name_lists_what_is_known(tmp_path):
    write(tmp_path, "my-board", 'base = "arm"')
    with pytest.raises(ProfileError, match="unknown device profile 'my-bord'") as caught:
        load_profile("my-bord", [tmp_path])
    assert list(caught.value.known) == sorted([*NAMES, "my-board"])


def test_users_profiles_come_by_name_or_path_and_build_on_ours(tmp_path):
    path = write(tmp_path, "my-board", 'base = "cortex-a53"\nmacs_per_ns_fp32 = 3\nruntime_version = "1.24"')
    by_name = load_profile("my-board", [tmp_path / "absent", tmp_path])
    assert by_name == load_profile(path)
    assert (by_name.name, by_name.macs_per_ns_fp32, by_name.runtime_version) == ("my-board", 3.0, "1.24")
    assert by_name.macs_per_ns_int8 == load_profile("cortex-a53").macs_per_ns_int8


def test_a_missing_file_or_broken_text_is_said(tmp_path):
    with pytest.raises(ProfileError, match="no such profile file"):
        load_profile(tmp_path / "none.toml")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(write(tmp_path, "broken", "= 3"))
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(path)


def test_profiles_in_a_circle_are_refused(tmp_path):
    write(tmp_path, "one", 'base = "two"')
    write(tmp_path, "two", 'base = "one"')
    with pytest.raises(ProfileError, match="one → two → one"):
        load_profile("one", [tmp_path])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("speed = 3", "unknown key speed"),
        ("weight_bits = 9", "weight_bits must be 7 or 8"),
        ('weight_bits = "8"', "weight_bits must be a whole number"),
        ("weight_bits = true", "weight_bits must be a whole number"),
        ("macs_per_ns_fp32 = -1.0", "positive"),
        ("bytes_per_ns = nan", "positive"),
        ("node_overhead_ns = inf", "finite"),
        ("channel_multiple = 0", "positive"),
        ('source = "hearsay"', "source must be measured or emulated or data sheet"),
        ('activation_dtype = "float16"', "uint8 or int8"),
        ('arch = "mips"', "x86_64 or aarch64"),
        ("runtime_version = 1.23", "runtime_version must be text"),
        ('runtime_version = "new"', "look like 1.23"),
        ('name = "other"', "unknown key name"),
    ],
)
def test_wrong_fields_are_named(tmp_path, line, said):
    path = write(tmp_path, "mine", f'base = "arm"\n{line}\n')
    with pytest.raises(ProfileError, match=said):
        load_profile(path)
    with pytest.raises(ProfileError, match="base must be"):
        load_profile(write(tmp_path, "odd", "base = 3"))


def test_missing_fields_are_named(tmp_path):
    with pytest.raises(ProfileError, match=r"missing activation_dtype, .*weight_bits"):
        load_profile(write(tmp_path, "mine", 'arch = "x86_64"'))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('transport = "carrier pigeon"', "transport must be local or ssh or adb or qemu"),
        ('transport = "ssh"', "transport ssh needs an address"),
        ('address = "-oProxyCommand=rm"', "is no option"),
        ('address = "a b"', "must be one word"),
        ('address = "a\\u0000b"', "must be one word"),
        ('transport = "local"\naddress = "board"', "takes no address"),
        ('transport = "qemu"\naddress = "board"', "takes no address"),
        ('address = "board"\npython = "\'"', "python is no command"),
        ("address = 3", "address must be text"),
    ],
)
def test_a_way_that_leads_nowhere_is_refused(tmp_path: Path, lines: str, says: str) -> None:
    (tmp_path / "board.toml").write_text(f'base = "arm"\n{lines}\n', encoding="utf-8")
    with pytest.raises(ProfileError, match=says):
        load_profile(tmp_path / "board.toml")


def test_a_board_is_not_this_machine_however_alike(tmp_path: Path) -> None:
    here = describe()
    spec = replace(local_profile(here), name="board")
    assert is_host(spec, here)
    for far in (replace(spec, address="board"), replace(spec, transport="adb")):
        assert not is_host(far, here)
        (tmp_path / "board.toml").write_text(dump_profile(far), encoding="utf-8")
        assert load_profile(tmp_path / "board.toml") == far
    assert is_host(replace(spec, transport="local"), here)

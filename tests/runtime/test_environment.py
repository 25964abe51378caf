import platform

import pytest

from edgepress.runtime.environment import (
    Condition,
    architecture,
    condition,
    describe,
    parse_cpuinfo,
    warnings,
)

X86 = """processor\t: 0
model name\t: Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz
flags\t\t: fpu sse2 avx avx2 fma

processor\t: 1
model name\t: Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz
flags\t\t: fpu sse2 avx avx2 fma avx512f
"""

BIG_LITTLE = """processor\t: 0
Features\t: fp asimd asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 1
Features\t: fp asimd asimddp i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Hardware\t: Some board
"""


def test_features_are_what_every_core_can_do():
    assert parse_cpuinfo(X86) == ("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", ("avx2", "fma"))
    assert parse_cpuinfo(BIG_LITTLE) == ("Cortex-A76", ("asimd", "asimddp"))


def test_unknown_processors_get_their_numbers_or_unknown():
    text = "processor : 0\nFeatures : asimd\nCPU implementer : 0x61\nCPU part : 0x22\n"
    assert parse_cpuinfo(text) == ("Arm 0x61:0x22", ("asimd",))
    assert parse_cpuinfo("") == ("unknown", ())
    assert parse_cpuinfo("processor : 0\nCPU implementer : odd\nCPU part : 1\n") == ("unknown", ())


def test_one_name_per_architecture():
    assert [architecture(name) for name in ("AMD64", "arm64", "x86_64", "riscv64")] == [
        "x86_64",
        "aarch64",
        "x86_64",
        "riscv64",
    ]


def test_this_machine_is_described():
    found = describe()
    assert found.arch == architecture()
    assert found.cores >= 1
    assert found.python == platform.python_version()
    assert "onnxruntime" in found.engines
    assert found.cpu


def board(folder, frequencies, temperatures):
    for number, (now, top) in enumerate(frequencies):
        cpu = folder / f"devices/system/cpu/cpu{number}/cpufreq"
        cpu.mkdir(parents=True)
        (cpu / "scaling_cur_freq").write_text(f"{now}\n")
        (cpu / "scaling_max_freq").write_text(f"{top}\n")
    for number, text in enumerate(temperatures):
        zone = folder / f"class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(text)
    return folder


def test_the_condition_is_of_the_fastest_core_and_the_hottest_zone(tmp_path):
    system = board(
        tmp_path, [(600000, 1500000), (1400000, 1800000)], ["41000\n", "72500\n", "", "-40000\n", "9e9"]
    )
    found = condition(system)
    assert (found.frequency_mhz, found.top_frequency_mhz, found.temperature_c) == (1400, 1800, 72.5)
    nothing = condition(tmp_path / "none")
    assert (nothing.frequency_mhz, nothing.top_frequency_mhz, nothing.temperature_c) == (None, None, None)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ((1500, 1500, 50, 0.1), (1480, 1500, 55, 1), []),
        ((1500, 1500, 50, 0.1), (900, 1500, 81, 1), ["slowed from 1500 to 900 MHz, at 81 °C: cool it"]),
        ((600, 1500, None, 0.1), (600, 1500, None, 1), ["ran at 600 of 1500 MHz: set the governor"]),
        ((None, None, None, 3.5), (None, None, None, 9), ["load 3.5 on 4 cores"]),
        ((None, None, None, None), (None, None, None, None), []),
    ],
)
def test_what_spoils_times_is_told_with_the_remedy(before, after, says):
    found = warnings(Condition(*before), Condition(*after), 4)
    assert len(found) == len(says)
    assert all(part in line for part, line in zip(says, found, strict=True))

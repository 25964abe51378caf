import platform

from edgepress.runtime.environment import architecture, describe, parse_cpuinfo

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

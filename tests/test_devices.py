"""Which CPUs multiply faster in bfloat16, from what is said of them."""

import pytest

from unime.devices_unime import fast_bfloat16, has_amx, is_amd

SAPPHIRE = {"cpu_name": "Intel Xeon", "avx512_f": True, "avx512_bf16": True, "amx_bf16": True}
COOPER = {"cpu_name": "Intel Xeon", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}
GENOA = {"cpu_name": "AMD EPYC", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}
MILAN = {"cpu_name": "AMD EPYC", "avx2": True}


@pytest.mark.parametrize(
    "capabilities, limit, amx, fast",
    [
        (SAPPHIRE, "", True, True),
        (SAPPHIRE, "default", True, True),
        (SAPPHIRE, "AVX512_CORE_AMX", True, True),
        (SAPPHIRE, "AVX512_CORE_BF16", False, False),
        (COOPER, "", False, False),
        (GENOA, "", False, True),
        (GENOA, "AVX512_CORE_BF16", False, True),
        (GENOA, "AVX2", False, False),
        (MILAN, "", False, False),
        ({}, "", False, False),
    ],
)
def test_amx_and_amd_are_fast_unless_they_are_switched_off(capabilities, limit, amx, fast, monkeypatch):
    assert (has_amx(capabilities, limit), fast_bfloat16(capabilities, limit)) == (amx, fast)

    # the environment says it too
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert (has_amx(capabilities), fast_bfloat16(capabilities)) == (amx, fast)


def test_the_maker_of_a_cpu_is_in_its_name():
    assert is_amd(GENOA) and not is_amd(SAPPHIRE) and not is_amd({})

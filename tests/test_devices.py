"""Which CPUs multiply faster in bfloat16, from what is said of them."""

import warnings

import pytest
import torch

from unime import UniMEModel, devices_unime
from unime.devices_unime import chosen_dtype, fast_bfloat16, has_amx, is_amd, warn_of_slow_dtype

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


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(devices_unime, "_has_accelerator", lambda: False)


def test_auto_is_float32_where_bfloat16_is_slow(no_accelerator):
    assert chosen_dtype("auto", COOPER, "") == torch.float32
    assert chosen_dtype("auto", GENOA, "") == "auto" and chosen_dtype("auto", SAPPHIRE, "") == "auto"
    assert chosen_dtype("bfloat16", COOPER, "") == "bfloat16" and chosen_dtype(None, COOPER, "") is None


def test_a_gpu_leaves_auto_alone(monkeypatch):
    monkeypatch.setattr(devices_unime, "_has_accelerator", lambda: True)
    assert chosen_dtype("auto", COOPER, "") == "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_dtype(torch.bfloat16, COOPER, "")


def test_loading_chooses_and_warns(no_accelerator, embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(devices_unime, "cpu_capabilities", lambda: COOPER)
    embedder.to(torch.bfloat16).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="is slower in bfloat16 than in float32: load the model with dtype="):
        assert UniMEModel.from_pretrained(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert UniMEModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.float32

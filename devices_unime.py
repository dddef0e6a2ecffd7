"""What the CPU at hand computes fast."""

import os
import warnings
from collections.abc import Mapping

import torch


def cpu_capabilities() -> Mapping:
    """Names of instruction sets and whether the CPU has them; empty where torch is too old to say."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def has_amx(capabilities: Mapping | None = None, limit: str | None = None) -> bool:
    """Whether matrix products in bfloat16 run on AMX, several times faster than in float32.

    Args:
        capabilities (`Mapping`, *optional*): those of [`cpu_capabilities`] by default.
        limit (`str`, *optional*): the greatest instruction set that oneDNN may use; by default the value of the
            environment variable `ONEDNN_MAX_CPU_ISA`, and all of them if it is empty.
    """
    capabilities = cpu_capabilities() if capabilities is None else capabilities
    return bool(capabilities.get("amx_bf16")) and _allows("AMX", limit)


def fast_bfloat16(capabilities: Mapping | None = None, limit: str | None = None) -> bool:
    """Whether the CPU multiplies matrices faster in bfloat16 than in float32.

    That needs AMX, or the AVX-512 of an AMD processor, which takes bfloat16 at 2.3 times the rate of float32. Intel's
    AVX-512 knows bfloat16 too, but is slower with it, and other CPUs imitate it.

    Args: as [`has_amx`].
    """
    capabilities = cpu_capabilities() if capabilities is None else capabilities
    if has_amx(capabilities, limit):
        return True
    return is_amd(capabilities) and bool(capabilities.get("avx512_bf16")) and _allows("BF16", limit)


def is_amd(capabilities: Mapping | None = None) -> bool:
    """Whether AMD made the CPU.

    Args: as [`has_amx`].
    """
    capabilities = cpu_capabilities() if capabilities is None else capabilities
    return "AMD" in str(capabilities.get("cpu_name", ""))


def chosen_dtype(dtype, capabilities: Mapping | None = None, limit: str | None = None):
    """What a dtype for loading stands for here: `"auto"` for float32, where only a slow CPU would compute in less.

    Args:
        dtype: as transformers takes it; only `"auto"` may become another.
        capabilities, limit: as [`has_amx`].
    """
    if dtype == "auto" and not _has_accelerator() and not fast_bfloat16(capabilities, limit):
        return torch.float32
    return dtype


def warn_of_slow_dtype(dtype: torch.dtype, capabilities: Mapping | None = None, limit: str | None = None):
    """Warns of a model in half precision on a CPU that is faster in float32.

    Args:
        dtype (`torch.dtype`): of the model.
        capabilities, limit: as [`has_amx`].
    """
    if dtype.itemsize >= 4 or _has_accelerator() or fast_bfloat16(capabilities, limit):
        return
    warnings.warn(
        f"this CPU is slower in {str(dtype).removeprefix('torch.')} than in float32: load the model with "
        'dtype="float32", or with dtype="auto", which chooses; either takes twice the memory.',
        stacklevel=4,
    )


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def _allows(feature: str, limit: str | None) -> bool:
    """Whether oneDNN may use a feature under a limit, such as `"AVX512_CORE_BF16"`; the limits' names grow."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "") if limit is None else limit
    if limit.upper() in ("", "ALL", "DEFAULT"):
        return True
    return feature in limit.upper() or "AMX" in limit.upper()


__all__ = ["chosen_dtype", "cpu_capabilities", "fast_bfloat16", "has_amx", "is_amd", "warn_of_slow_dtype"]

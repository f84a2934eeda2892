"""How many bits of an int8 weight the CPU at hand multiplies right.

x86 CPUs without VNNI have one instruction for products of 8-bit numbers, VPMADDUBSW, which adds two of them in 16 bits
and saturates without a word: 2 * 255 * 127 does not fit, 2 * 255 * 63 does. onnxruntime and OpenVINO both use it.
"""

from __future__ import annotations

from planner.setting import Setting

_EXACT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def saturates(cpu_flags: frozenset[str]) -> bool:
    """Whether products with 8-bit weights overflow on a CPU with these features, as Linux names them."""
    return "sse2" in cpu_flags and not cpu_flags & _EXACT


def weight_bits(setting: Setting) -> dict[str, bool]:
    """Return the option of int8 converters that keeps weights to what this CPU multiplies right."""
    return {"reduce_range": True} if saturates(setting.cpu_flags) else {}


def why_so_many(setting: Setting) -> str:
    """Return the sentence that follows a step's reason; empty where the CPU is not known or not of x86."""
    if saturates(setting.cpu_flags):
        return " Weights have 7 bits: without VNNI, which this CPU lacks, sums of two products of 8 bits overflow."
    if setting.cpu_flags & _EXACT:
        return " Weights have 8 bits, so serve it on CPUs with VNNI, as here: others of x86 overflow and answer worse."
    return ""

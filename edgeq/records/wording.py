"""How figures are written: the same in the console, the page and the gates."""

from __future__ import annotations

from edgeq.numerics import SQNR_END
from edgeq.records.schema import COMPILES, Accuracy, Conformance, Decoding, LeftToCpu, OnNpu


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits, without exponent where that stays short."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}".replace(",", " ") if "e" in text else text


def seconds_text(seconds: float) -> str:
    """1.53 s, 2.44 ms, 800 us; longer times as 2 min 05 s or 1 h 02 min."""
    if seconds <= 0:
        return "0 s"
    if seconds >= 3600:
        return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"
    if seconds >= 100:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size * 0.9995:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-9)} ns"


def joules_text(joules: float) -> str:
    """1.5 J, 820 uJ, 12 nJ."""
    for unit, size in (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6), ("nJ", 1e-9)):
        if joules >= size * 0.9995:
            return f"{number(joules / size)} {unit}"
    return f"{number(joules / 1e-12)} pJ"


def bytes_text(count: float) -> str:
    """999 B, 3.51 MB: decimal units, as disks and flash parts are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size * 0.9995:
            return f"{number(count / size)} {unit}"
    return f"{count:.0f} B"


def count_text(count: int) -> str:
    """3.5 M, 301 M, 12.1 k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * 0.9995:
            return f"{number(count / size)} {unit}"
    return str(count)


def times_text(factor: float) -> str:
    """1.92x"""
    return f"{factor:.2f}x" if factor < 100 else f"{factor:.0f}x"


def score_text(score: float | None, accuracy: Accuracy) -> str:
    """A score with its unit: 79.6 %, 0.412 mAP."""
    if score is None:
        return "-"
    if accuracy.unit == "%":
        return f"{score:.2f} %"
    return f"{number(score, 4)} {accuracy.unit}".rstrip()


def sqnr_text(db: float | None) -> str:
    """33.1 dB, or in words where nothing differs."""
    return "-" if db is None else "equal to float" if db >= SQNR_END else f"{db:.1f} dB"


def drop_text(drop: float, accuracy: Accuracy) -> str:
    """A drop with its unit: 0.40 points, 0.0021 mAP, 1.30 % (of disagreement)."""
    drop += 0.0
    if accuracy.drop is None:
        return f"{drop:.2f} %"
    if accuracy.unit == "%":
        return f"{drop:.2f} points"
    return f"{number(drop)} {accuracy.unit}".rstrip()


def conformance_text(found: Conformance) -> str:
    """not executed; holds TensorRT's rules for explicit quantization (16 of 16, as documented)"""
    broken = len({breach.rule for breach in found.breaches} - {COMPILES})
    held = f"{found.rules - broken} of {found.rules}, as documented"
    compiled = f"; compiled by {found.compiled_by}" if found.compiled_by else ""
    if not found.breaches:
        return f"not executed{compiled}; holds {found.rulebook} ({held})"
    if found.refusals:
        return f"not executed; breaks {found.rulebook} ({held})" if broken else "not executed; the compiler refuses it"
    places = "; ".join(f"{breach.node}: {breach.cause}" for breach in found.breaches[:3])
    more = "" if len(found.breaches) <= 3 else f"; {len(found.breaches) - 3} more"
    return f"not executed{compiled}; holds {found.rulebook} ({held}), and is slower than it might be: {places}{more}"


def npu_text(npu: OnNpu) -> str:
    """What a compiler estimates: 100.0 % of the MACs and 16 of 16 operators on the NPU, 94.5 k cycles (189 us), ..."""
    memories = {"SRAM": npu.sram_bytes, "DRAM": npu.dram_bytes, "flash": npu.flash_bytes}
    used = ", ".join(f"{bytes_text(count)} {name}" for name, count in memories.items() if count)
    whole = npu.operators + len(npu.left_to_cpu)
    split = f"{npu.mac_percent:.1f} % of the MACs and {npu.operators} of {whole} operators on the NPU"
    return f"{split}, {count_text(npu.cycles)} cycles ({seconds_text(npu.seconds)}), {used}; {npu.system}"


def left_text(left: LeftToCpu) -> str:
    """gelu (Gelu): Operation has tensor with unsupported DataType Float32"""
    return f"{left.name} ({left.op}): {left.reason}"


def decoding_text(found: Decoding, peak_bytes: int | None) -> str:
    """38.1 tokens a second behind 128 (float 12.4), ... in words."""
    memory = ""
    if peak_bytes is not None and found.float_peak_memory_bytes is not None:
        memory = f"; {bytes_text(peak_bytes)} of memory ({bytes_text(found.float_peak_memory_bytes)})"
    speed, float_speed = (number(1 / one.p50) for one in (found.token, found.float_token))
    first, float_first = (seconds_text(one.p50) for one in (found.first_token, found.float_first_token))
    read = number(found.prompt / found.first_token.p50)
    return (
        f"{speed} tokens a second behind {found.context} (float {float_speed}); {first} to the first token after "
        f"{found.prompt}, {read} a second (float {float_first}){memory}"
    )

"""Finds in what GPUs did during a repeat the reasons not to trust it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_moeperf.records import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_moeperf.records import GpuReading

__all__ = ["gpu_findings"]

REASONS = {
    "hw_thermal_slowdown": "heat (hardware)",
    "hw_power_brake_slowdown": "the power supply (hardware)",
    "hw_slowdown": "the hardware",
    "sw_thermal_slowdown": "heat (driver)",
}
"""In words. To be kept in step with another GPU is none: that other one is found. Nor is the power
limit: under heavy load every GPU of a class meets it, and measuring again would not change that;
what it costs stands in the readings, and a limit that was lowered in the environment."""
ALWAYS_WITH = {"hw_slowdown": ("hw_thermal_slowdown", "hw_power_brake_slowdown")}
"""The driver tells the first one, too, whenever it tells one of the others."""


def gpu_findings(readings: Sequence[GpuReading]) -> tuple[Finding, ...]:
    """Every reason that the GPUs give not to judge a repeat; one finding a kind."""
    found = (_throttled(readings), _foreign(readings), _not_idle(readings))
    return tuple(finding for finding in found if finding is not None)


def _throttled(readings: Sequence[GpuReading]) -> Finding | None:
    return _finding(
        "throttled",
        "a GPU was throttled: ",
        [f"{_name(each)} by {held}" for each in readings if (held := _held_down(each))],
        "look at nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER: cooling, power limit, neighbours",
    )


def _held_down(reading: GpuReading) -> str:
    """`heat (hardware) in 12 % of the samples, down to 1,215 MHz`; empty if by nothing."""
    shares = {
        reason: reading.throttled.get(reason, 0.0)
        for reason in REASONS
        if not any(reading.throttled.get(other) for other in ALWAYS_WITH.get(reason, ()))
    }
    parts = [
        f"{REASONS[reason]} in {100 * share:.0f} % of the samples"
        for reason, share in shares.items()
        if share > 0
    ]
    if parts and reading.sm_clock_mhz_min is not None:
        parts.append(f"down to {reading.sm_clock_mhz_min:,.0f} MHz")
    return ", ".join(parts)


def _foreign(readings: Sequence[GpuReading]) -> Finding | None:
    return _finding(
        "foreign_process",
        "others computed on a GPU of the server: ",
        [f"{', '.join(each.foreign)} on {_name(each)}" for each in readings if each.foreign],
        "end them (nvidia-smi lists them), or leave that GPU out with CUDA_VISIBLE_DEVICES",
    )


def _not_idle(readings: Sequence[GpuReading]) -> Finding | None:
    return _finding(
        "gpu_not_idle",
        "work was still running when the repeat began: ",
        [f"on {_name(each)}" for each in readings if not each.idle_before],
        "look at nvidia-smi for what runs there; the server itself should rest between repeats",
    )


def _finding(code: str, what: str, parts: Iterable[str], advice: str) -> Finding | None:
    text = "; ".join(parts)
    return Finding(code=code, message=what + text, advice=advice) if text else None


def _name(reading: GpuReading) -> str:
    """Enough of the UUID to find it in `nvidia-smi -L`."""
    return reading.uuid[:12]

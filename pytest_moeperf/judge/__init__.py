"""Turns starts of an engine and a reference into a verdict with a sentence that says why: pure.

The server start is the sampling unit. `noise` says how much starts differ, `contrast` what that
makes of a difference, `steadiness` whether they can be compared at all, `assess` what to say of
it, `night` how sure it has to be among all the gates of a session.
"""

from pytest_moeperf.judge.assess import Assessment, Need, assess
from pytest_moeperf.judge.evidence import SCREENING_STARTS, Evidence, StoredStart
from pytest_moeperf.judge.night import Night
from pytest_moeperf.judge.noise import (
    Noise,
    Prior,
    Spread,
    StartValue,
    default_prior,
    fit_prior,
    noise_of,
    spread_of,
    start_value,
)
from pytest_moeperf.judge.plain import (
    cold_start,
    incomparable,
    invalid,
    judge_bounds,
    no_baseline,
    recorded,
    same_words,
)

__all__ = [
    "SCREENING_STARTS",
    "Assessment",
    "Evidence",
    "Need",
    "Night",
    "Noise",
    "Prior",
    "Spread",
    "StartValue",
    "StoredStart",
    "assess",
    "cold_start",
    "default_prior",
    "fit_prior",
    "incomparable",
    "invalid",
    "judge_bounds",
    "no_baseline",
    "noise_of",
    "recorded",
    "same_words",
    "spread_of",
    "start_value",
]

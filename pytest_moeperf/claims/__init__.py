"""Holds figures that others published against our own: confirmed, refuted or not tested.

The published figures and the cells that answer them are data (`docs/claims/published.json`), and
so is what was measured before there were baselines (`docs/claims/measured.json`).
`scripts/write_claims.py` reads both and the stored baselines, and writes `docs/claims.md`.
"""

from __future__ import annotations

from pytest_moeperf.claims.answers import Answer, Result, answers
from pytest_moeperf.claims.estimates import Estimate, Outcome
from pytest_moeperf.claims.published import Published, read_published
from pytest_moeperf.claims.stored import Stored, from_baseline, read_measured

__all__ = [
    "Answer",
    "Estimate",
    "Outcome",
    "Published",
    "Result",
    "Stored",
    "answers",
    "from_baseline",
    "read_measured",
    "read_published",
]

"""What the outcomes of verdicts mean to a test and to its reader."""

from __future__ import annotations

from pytest_moeperf.records import Outcome

__all__ = ["FAILING", "GOOD", "failing"]

GOOD = frozenset({Outcome.PASS, Outcome.IMPROVED, Outcome.RECORDED})
"""Nobody has to look."""

FAILING = frozenset(
    {
        Outcome.REGRESSED,
        Outcome.UNSTABLE,
        Outcome.NO_BASELINE,
        Outcome.INVALID,
        Outcome.UNEXPECTED_PASS,
    }
)
"""Outcomes that fail any test."""


def failing(*, release: bool) -> frozenset[Outcome]:
    """Outcomes that fail a test; before a release an open question does, too."""
    return FAILING | {Outcome.INCONCLUSIVE} if release else FAILING

"""Rules that are in use elsewhere, on the same nights: arrays in, red gates out.

`baseline` and `today` have the shape (cells, gates, starts, repeats) and hold logarithms. Others do
not know of compilations: they get the repeats as they were played.
"""

import numpy as np
from scipy import special, stats


def single_run(threshold):
    def red(baseline, today):
        return np.exp(today[:, :, 0, 0]) < (1 - threshold) * _mean(baseline)

    return red


def mean_of_three(threshold):
    def red(baseline, today):
        return _mean(today[:, :, :3]) < (1 - threshold) * _mean(baseline)

    return red


def compare_fail(threshold):
    """pytest-benchmark: the mean of one saved run against the mean of this one."""

    def red(baseline, today):
        return _mean(today[:, :, :1]) < (1 - threshold) * _mean(baseline[:, :, -1:])

    return red


def mann_whitney(alpha):
    def red(baseline, today):
        return _mann_whitney(baseline, today) < alpha

    return red


def welch(alpha):
    def red(baseline, today):
        return _welch(baseline, today) < alpha

    return red


def welch_controlled(q):
    """With false-discovery control over the night (Benjamini and Hochberg)."""

    def red(baseline, today):
        return stats.false_discovery_control(_welch(baseline, today)) <= q

    return red


def _mean(values):
    return np.nanmean(np.exp(values), axis=(2, 3))


def _pooled(values):
    return np.exp(values).reshape(*values.shape[:2], -1)


def _welch(baseline, today):
    """As `scipy.stats.ttest_ind(equal_var=False, alternative="less")`, ten times as fast."""
    old, new = _pooled(baseline), _pooled(today[:, :, :3])
    of_old, of_new = (each.var(axis=2, ddof=1) / each.shape[2] for each in (old, new))
    t = (new.mean(axis=2) - old.mean(axis=2)) / np.sqrt(of_old + of_new)
    df = (of_old + of_new) ** 2 / (of_old**2 / (old.shape[2] - 1) + of_new**2 / (new.shape[2] - 1))
    return special.stdtr(df, t)


def _mann_whitney(baseline, today):
    """The normal approximation, as scipy and numpy users take it for so many values."""
    old, new = _pooled(baseline), _pooled(today[:, :, :3])
    n_old, n_new = old.shape[2], new.shape[2]
    above = (new[:, :, :, None] > old[:, :, None, :]).sum(axis=(2, 3))
    deviation = np.sqrt(n_old * n_new * (n_old + n_new + 1) / 12)
    return special.ndtr((above - n_old * n_new / 2 + 0.5) / deviation)


RULES = {
    "one run, −5 % of the baseline's mean": (single_run(0.05), 1),
    "one run, −10 %": (single_run(0.10), 1),
    "one run, −20 %": (single_run(0.20), 1),
    "mean of three starts, −5 %": (mean_of_three(0.05), 3),
    "mean of three starts, −10 %": (mean_of_three(0.10), 3),
    "pytest-benchmark, compare-fail=mean:5%": (compare_fail(0.05), 1),
    "Mann-Whitney, repeats pooled, p < 0.01": (mann_whitney(0.01), 3),
    "Welch, repeats pooled, p < 0.01": (welch(0.01), 3),
    "Welch, repeats pooled, false-discovery rate 3 %": (welch_controlled(0.03), 3),
}
"""By name: the rule, and the server starts that it takes of a cell."""

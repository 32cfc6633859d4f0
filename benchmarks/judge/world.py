"""Draws nights: what starts, repeats, sessions, compilations and bad starts do to a figure."""

from dataclasses import dataclass, replace

import numpy as np

CELLS, GATES = 30, 2
BASELINE_SESSIONS, STARTS_A_SESSION = 5, 2
REPEATS = 3
SHARED = 0.7
"""Correlation of the start noise of a cell's two gates."""
TWO_MODES_SHARE, TWO_MODES_LOSS = 0.2, 0.2
MAX_INVALID = 2
"""So many repeats of a start are measured again, as the product does."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What disturbs the figures. Shares are of starts or of repeats, losses relative."""

    name: str
    session: float = 0.0
    """Standard deviation between sessions; half of its variance is common to all cells."""
    bad_starts: float = 0.0
    """Share of starts that are 5 to 10 % slow."""
    hits: float = 0.0
    """Share of repeats that a compilation slows by 15 to 40 %."""
    checked: bool = True
    """Whether repeats that a stall hit are found invalid and measured again."""
    two_modes: int = 0
    """Cells of which every fifth start is 20 % slow."""
    noise: float = 1.0
    """Factor on the noise of starts and repeats."""

    @property
    def nights(self):
        """Worlds of equal name here draw equal nights."""
        return f"{self.session} {self.bad_starts} {self.hits} {self.two_modes} {self.noise}"


CLEAN = World(name="quiet")
USUAL = World(name="usual", session=0.005, bad_starts=0.01)
DRIFTING = World(name="drifting", session=0.01, bad_starts=0.01)
NOISY = replace(USUAL, name="noisy", noise=1.5)
COMPILING = World(name="compiling", session=0.005, bad_starts=0.01, hits=0.05)
UNCHECKED = replace(COMPILING, name="compiling, not looked for", checked=False)
TWO_MODES = World(name="two modes", session=0.005, bad_starts=0.01, two_modes=2)
WORLDS = (CLEAN, USUAL, DRIFTING, NOISY, COMPILING, UNCHECKED, TWO_MODES)


@dataclass(frozen=True)
class Noise:
    """Of every gate, shape (cells, gates): standard deviations on the log scale."""

    start: np.ndarray
    repeat: np.ndarray

    @classmethod
    def drawn(cls, rng, kinds, *, spread, factor=1.0):
        """Cells of all kinds in turns, each somewhat more or less noisy than its kind."""
        of = [kinds[cell % len(kinds)] for cell in range(CELLS)]
        each = factor * np.exp(rng.normal(0.0, spread, (CELLS, 1)))
        return cls(
            each * np.array([[gate.start for gate in gates] for gates in of]),
            each * np.array([[gate.repeat for gate in gates] for gates in of]),
        )


@dataclass(frozen=True)
class Burst:
    """How long a sound repeat is silent before its first token."""

    silence: float
    """Share of its duration."""
    jitter: float
    """Log standard deviation."""


def stalls(silences, durations):
    """`validity.stalls` for many starts at a time, a row each: which plays are found."""
    ordered = np.sort(silences, axis=-1)
    usual = ordered[..., [1 if silences.shape[-1] >= 4 else 0]]
    return (silences > 1.5 * usual) & (silences - usual > 0.03 * durations)


class Machine:
    """Draws starts of all cells; every value is a logarithm, larger is better."""

    def __init__(self, rng, world, noise, burst):
        self.rng, self.world, self.noise, self.burst = rng, world, noise, burst
        self.hit = self.found = self.starts_drawn = self.starts_invalid = 0

    def session(self):
        """How far one session is off, by cell."""
        deviation = self.world.session / np.sqrt(2)
        return self.rng.normal(0.0, deviation) + self.rng.normal(0.0, deviation, CELLS)

    def starts(self, count, session):
        """Repeats of `count` starts in one session: shape (cells, gates, starts, repeats).

        NaN: a start with so many invalid repeats that it gave no value.
        """
        rng = self.rng
        common = rng.normal(0.0, 1.0, (CELLS, 1, count))
        own = rng.normal(0.0, 1.0, (CELLS, GATES, count))
        mixed = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
        level = self.noise.start[:, :, None] * mixed + np.asarray(session)[:, None, None]
        level += self._slow(self.world.bad_starts, 0.05, 0.10, (CELLS, 1, count))
        if self.world.two_modes:
            slow = rng.random((self.world.two_modes, 1, count)) < TWO_MODES_SHARE
            level[: self.world.two_modes] += np.where(slow, np.log1p(-TWO_MODES_LOSS), 0.0)
        repeats = rng.normal(0.0, 1.0, (CELLS, GATES, count, REPEATS))
        drawn = level[..., None] + self.noise.repeat[:, :, None, None] * repeats
        return drawn + self._compilations(count) if self.world.hits else drawn

    def _slow(self, share, least, most, shape):
        losses = np.log1p(-self.rng.uniform(least, most, shape))
        return np.where(self.rng.random(shape) < share, losses, 0.0)

    def _compilations(self, count):
        """Losses of the repeats that are judged in the end; they hit both gates of a cell."""
        losses = self._slow(self.world.hits, 0.15, 0.40, (CELLS * count, REPEATS + MAX_INVALID))
        kept = self._checked(losses) if self.world.checked else losses[:, :REPEATS]
        return kept.reshape(CELLS, 1, count, REPEATS)

    def _checked(self, losses):
        """Play until three repeats are valid, as the product does; NaN where too many are not."""
        jitter = self.rng.normal(0.0, self.burst.jitter, losses.shape)
        durations = np.exp(-losses)
        silences = self.burst.silence * np.exp(jitter) + durations - 1
        kept = np.full((len(losses), REPEATS), np.nan)
        waiting = np.arange(len(losses))
        for plays in range(REPEATS, REPEATS + MAX_INVALID + 1):
            played = losses[waiting, :plays]
            found = stalls(silences[waiting, :plays], durations[waiting, :plays])
            # One that was found beside few may be as usual beside more: then there are four.
            done = (~found).sum(axis=1) >= REPEATS
            # Every start that ends here, and in the last round every start, has its hits counted.
            ended = done if plays < losses.shape[1] else np.ones_like(done)
            self.hit += int((played[ended] < 0).sum())
            self.found += int((found[ended] & (played[ended] < 0)).sum())
            first = np.argsort(found[done], axis=1, kind="stable")[:, :REPEATS]
            kept[waiting[done]] = np.take_along_axis(played[done], first, axis=1)
            waiting = waiting[~done]
        self.starts_drawn += len(losses)
        self.starts_invalid += len(waiting)
        return kept

    def baseline(self):
        """Starts of several sessions, as a reviewed baseline has them."""
        made = [self.starts(STARTS_A_SESSION, self.session()) for _ in range(BASELINE_SESSIONS)]
        return np.concatenate(made, axis=2)

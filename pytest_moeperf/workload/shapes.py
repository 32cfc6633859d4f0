"""The kinds of workload: how requests arrive and how long they are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from pytest_moeperf.checks import check_choice, check_number, check_path, check_whole, misuse
from pytest_moeperf.errors import UsageError
from pytest_moeperf.workload.prompts import (
    WORKLOAD,
    Prompts,
    RandomTokens,
    SharedPrefix,
    file_slug,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Arrivals",
    "Burst",
    "ClosedLoop",
    "OpenLoop",
    "Think",
    "Trace",
    "TraceEntry",
    "TraceReplay",
    "Workload",
    "rate_ladder",
]

# pytest leaves these frames out: a traceback ends at the suite's own line.
__tracebackhide__ = True

Arrivals = Literal["poisson", "constant", "gamma"]
"""How the gaps between requests of an open loop are distributed."""

Think = Literal["constant", "exponential"]
"""How the rests between the requests of a closed loop are distributed."""


class TraceEntry(NamedTuple):
    """One request of a recorded trace."""

    at_ns: int
    """When it came; only differences between entries matter."""
    input_tokens: int
    output_tokens: int


Trace = tuple[TraceEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What the kinds of arrival share whose requests are all of one length."""

    isl: int
    """Prompt tokens of each request."""
    osl: int
    """Output tokens that each request asks for, exactly."""
    requests: int
    prompts: Prompts = field(default_factory=RandomTokens)

    def __post_init__(self) -> None:
        check_whole(WORKLOAD, isl=self.isl, osl=self.osl, requests=self.requests)
        if not isinstance(self.prompts, Prompts):
            raise misuse(
                WORKLOAD, "prompts", self.prompts, "give ShareGPT(…), SharedPrefix(…) or nothing"
            )
        if isinstance(self.prompts, SharedPrefix):
            self.prompts.check_shared(requests=self.requests, isl=self.isl)

    def prefix_hit_rate(self, block_tokens: int) -> float:
        """Share of prompt tokens that a prefix cache in blocks of that size should give back."""
        return self.prompts.expected_hit_rate(
            requests=self.requests, isl=self.isl, block_tokens=block_tokens
        )

    @property
    def _lengths(self) -> str:
        return f"isl{self.isl}-osl{self.osl}"

    @property
    def _content(self) -> str:
        return f"{self.isl} in, {self.osl} out{self.prompts.label}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop(_Shape):
    """`concurrency` clients, each sending its next request when the last one has ended."""

    concurrency: int
    think_s: float = 0.0
    """Seconds that each client rests before its next request, on average."""
    think: Think = "constant"
    think_seed: int = 0
    """Draws exponential rests. It is the workload's own, not the repeat's, as `arrivals_seed`."""

    def __post_init__(self) -> None:
        # A class with slots is made anew, and super() would look for the first one.
        _Shape.__post_init__(self)
        check_whole(WORKLOAD, concurrency=self.concurrency)
        check_number(WORKLOAD, or_zero=True, think_s=self.think_s)
        check_choice(WORKLOAD, get_args(Think), think=self.think)

    @property
    def slug(self) -> str:
        """Stable id, e.g. `closed-c1-isl32-osl48-n8`."""
        return (
            f"closed-c{self.concurrency}-{self._lengths}-n{self.requests}"
            f"{self._rests}{self.prompts.slug}"
        )

    @property
    def label(self) -> str:
        """How a table names it."""
        rests = f" after {self.think_s:g} s each" if self.think_s else ""
        return f"{self.concurrency} at a time{rests}, {self._content}"

    @property
    def _rests(self) -> str:
        if not self.think_s:
            return ""
        seed = f"-s{self.think_seed}" if self.think_seed else ""
        return f"-think{'-exp' if self.think == 'exponential' else ''}{self.think_s:g}{seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst(_Shape):
    """All requests at once."""

    @property
    def concurrency(self) -> int:
        """All of them."""
        return self.requests

    @property
    def slug(self) -> str:
        """Stable id, e.g. `burst-n16-isl32-osl32`."""
        return f"burst-n{self.requests}-{self._lengths}{self.prompts.slug}"

    @property
    def label(self) -> str:
        """How a table names it."""
        return f"burst of {self.requests}, {self._content}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop(_Shape):
    """Requests that arrive by their own clock, however slow the server is."""

    request_rate: float
    """Requests per second, on average; with `end_rate`, at the start."""
    end_rate: float | None = None
    """Requests per second at the end of a ramp: the rate changes linearly with time."""
    arrivals: Arrivals = "poisson"
    burstiness: float = 1.0
    """Shape of the gamma distribution of gaps: 1 is Poisson, below 1 comes in bursts, above 1 is
    more even than Poisson. As in `vllm bench serve`."""
    arrivals_seed: int = 0
    """Draws the schedule. It is the workload's own, not the repeat's: every repeat and every
    start meets the same queues, so that they differ only in how the server copes."""

    def __post_init__(self) -> None:
        _Shape.__post_init__(self)
        check_number(WORKLOAD, request_rate=self.request_rate, burstiness=self.burstiness)
        if self.end_rate is not None:
            check_number(WORKLOAD, end_rate=self.end_rate)
        check_choice(WORKLOAD, get_args(Arrivals), arrivals=self.arrivals)
        if self.arrivals != "gamma" and self.burstiness != 1.0:
            raise UsageError(
                f"burstiness = {self.burstiness:g} has no effect on {self.arrivals} arrivals: "
                "set arrivals='gamma'"
            )

    @property
    def concurrency(self) -> None:
        """None: arrivals decide how many run at once."""
        return

    @property
    def slug(self) -> str:
        """Stable id, e.g. `poisson-r4-isl32-osl32-n16`."""
        arrivals = f"gamma{self.burstiness:g}" if self.arrivals == "gamma" else self.arrivals
        ramp = "" if self.end_rate is None else f"to{self.end_rate:g}"
        schedule = f"-s{self.arrivals_seed}" if self.arrivals_seed else ""
        return (
            f"{arrivals}-r{self.request_rate:g}{ramp}-{self._lengths}-n{self.requests}"
            f"{schedule}{self.prompts.slug}"
        )

    @property
    def label(self) -> str:
        """How a table names it."""
        ramp = "" if self.end_rate is None else f" to {self.end_rate:g}"
        return f"{self.arrivals}, {self.request_rate:g}{ramp} req/s, {self._content}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceReplay:
    """Requests as a trace recorded them: times and lengths; its entries are handed to `plan`."""

    path: str
    """Of the file, for `datasets.load_trace` and for the id."""
    speed: float = 1.0
    """2: twice as fast as recorded."""
    requests: int | None = None
    """So many of the earliest; None: all."""
    prompts: RandomTokens = field(default_factory=RandomTokens)

    def __post_init__(self) -> None:
        check_path(WORKLOAD, path=self.path)
        check_number(WORKLOAD, speed=self.speed)
        if self.requests is not None:
            check_whole(WORKLOAD, requests=self.requests)
        if not isinstance(self.prompts, RandomTokens):
            raise misuse(WORKLOAD, "prompts", self.prompts, "a trace takes RandomTokens() alone")

    @property
    def concurrency(self) -> None:
        """None: the trace decides how many run at once."""
        return

    @property
    def slug(self) -> str:
        """Stable id, e.g. `trace-azure-code-x2-n100`."""
        speed = "" if self.speed == 1.0 else f"-x{self.speed:g}"
        requests = "" if self.requests is None else f"-n{self.requests}"
        return f"trace-{file_slug(self.path)}{speed}{requests}"

    @property
    def label(self) -> str:
        """How a table names it."""
        speed = "" if self.speed == 1.0 else f" at {self.speed:g} times its speed"
        return f"trace {PurePath(self.path).name}{speed}"

    def prefix_hit_rate(self, block_tokens: int) -> float:  # noqa: ARG002 - as of the other kinds
        """0: no two prompts begin alike."""
        return 0.0


Workload = ClosedLoop | Burst | OpenLoop | TraceReplay


def rate_ladder(workload: OpenLoop, rates: Iterable[float]) -> dict[float, OpenLoop]:
    """`workload` at each of `rates`, by rate, with the requests that keep its duration."""
    seconds = workload.requests / workload.request_rate
    rungs = {}
    for rate in rates:
        check_number(WORKLOAD, request_rate=rate)
        requests = max(1, round(seconds * rate))
        rungs[rate] = replace(workload, request_rate=rate, requests=requests)
    return rungs

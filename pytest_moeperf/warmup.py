"""What is played on a server before anything counts, and when that was enough.

On a GPU an engine compiles a kernel when it first meets a shape, for a second or two, and logs only
the first such compilation. So there the warm-up meets the shapes of a workload one by one, and ends
when a play is as fast as the best one. A CPU has no such shapes; there only noise goes both ways.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pytest_moeperf.records import RequestSpec
from pytest_moeperf.validity import stalls
from pytest_moeperf.workload import Plan, RandomTokens
from pytest_moeperf.workload.prompts import draw_tokens

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from pytest_moeperf.validity import Pace

__all__ = ["KEPT", "Drill", "Met", "Once", "Proof", "Rule", "Steady", "drill_plan", "drills"]

KEPT = (
    "output_throughput",
    "total_throughput",
    "request_throughput",
    "ttft_ms.p50",
    "itl_token_ms.p50",
)
"""What is stored of a warm-up play: enough to tell how much slower a cold server is."""

OUTPUT_TOKENS = 2
"""Of each prompt of a drill: the second one comes from a step of decoding."""
DIVISOR = 16
"""Triton compiles a kernel anew for an integer argument that 16 divides, or no longer divides."""
REMAINDERS = (0, 1, 4, 8)
"""Of the tokens of a step, divided by 16. A MoE kernel is told tokens × experts per token, and that
plus padding: by the remainder, 16 divides both, one or none of them."""
MOST_AT_ONCE = 256
"""Further requests than an engine usually runs at once make no further shape."""
CHARACTERS_A_TOKEN = 4
"""For prompts that are text; the ladder of sizes needs no better."""


@dataclass(slots=True)
class Met:
    """The shapes that a server has met since it started."""

    batches: set[int] = field(default_factory=set)
    """Prompts at once."""
    steps: set[int] = field(default_factory=set)
    """Prompt tokens of one step: a power of two stands for the sizes up to the next one."""

    def add(self, drill: Drill) -> None:
        """Remember what a drill made the server meet."""
        self.batches.add(drill.at_once)
        self.steps.update(drill.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """A play that only makes a server meet shapes."""

    prompts: tuple[int, ...]
    """Tokens of each."""
    at_once: int
    """Prompts in flight; 1: one after the other, so that each is one step of prefilling."""
    steps: tuple[int, ...] = ()
    """What `Met.steps` has afterwards."""


def drills(plan: Plan, met: Met, *, context_tokens: int | None) -> tuple[Drill, ...]:
    """What a server that has met `met` must still meet before it is given `plan`.

    Single prompts of 2^k tokens and a few more, from the shortest prompt up to all that can be
    prefilled together or fit the context; then 2, 4, 8, … up to all prompts at once, with their
    tokens together once a multiple of 16 and once not.
    """
    lengths = [_tokens(request) for request in plan.requests]
    context = context_tokens or max(lengths) + OUTPUT_TOKENS + DIVISOR
    at_once = min(plan.concurrency or len(lengths), len(lengths), MOST_AT_ONCE)
    usual = max(1, min(round(statistics.median(lengths)), context - OUTPUT_TOKENS))
    sizes = _powers(min(lengths), at_once * usual)
    steps = tuple(step for step in sizes if step not in met.steps)
    singles = (tokens for step in steps for tokens in _around(step, most=context - OUTPUT_TOKENS))
    alone = Drill(prompts=tuple(dict.fromkeys(singles)), at_once=1, steps=steps)
    bursts = [
        Drill(prompts=prompts, at_once=batch)
        for batch in (*_powers(2, at_once - 1), at_once)
        if batch > 1 and batch not in met.batches
        for prompts in _burst(batch, usual, most=context - OUTPUT_TOKENS)
    ]
    return (alone, *bursts) if steps else tuple(bursts)


def drill_plan(drill: Drill, ids: range, generator: random.Random) -> Plan:
    """The requests of a drill, with random tokens out of `ids`."""
    lengths = [(tokens, OUTPUT_TOKENS) for tokens in drill.prompts]
    return Plan(
        requests=tuple(
            RequestSpec(index=index, prompt=prompt, output_tokens=output_tokens)
            for index, (prompt, output_tokens) in enumerate(
                draw_tokens(RandomTokens(), lengths, ids, generator)
            )
        ),
        concurrency=drill.at_once,
    )


def _tokens(request: RequestSpec) -> int:
    if isinstance(request.prompt, str):
        return max(1, len(request.prompt) // CHARACTERS_A_TOKEN)
    return len(request.prompt)


def _powers(least: int, most: int) -> list[int]:
    """The powers of two that stand for the sizes from `least` to `most`."""
    if most < least:
        return []
    return [1 << power for power in range(least.bit_length() - 1, most.bit_length())]


def _around(step: int, *, most: int) -> Iterator[int]:
    """Prompts of about `step` tokens with every remainder, none above `most`."""
    base = min(step, (most - max(REMAINDERS)) // DIVISOR * DIVISOR)
    yield from (base + more for more in REMAINDERS if 0 < base + more <= most)


def _burst(batch: int, usual: int, *, most: int) -> Iterator[tuple[int, ...]]:
    """Prompts of `usual` tokens; the last one makes the sum a multiple of 16, and then not."""
    over = batch * usual % DIVISOR
    fitting = usual - over if usual > over else usual + DIVISOR - over
    for last in (fitting, usual if over else usual - 1):
        if 0 < last <= most:
            yield (*[usual] * (batch - 1), last)


@dataclass(slots=True)
class Rule(ABC):
    """Decides from the plays so far whether warm-up is over."""

    plays: list[Pace] = field(default_factory=list)
    evidence: str = ""
    """Why it is; empty while it is not, and where only the bound ended it."""
    most: ClassVar[int]
    """Plays after which it is over in any case."""

    def observe(self, play: Pace) -> None:
        """Take in the next play."""
        self.plays.append(play)
        self.evidence = self._evidence()

    @property
    def over(self) -> bool:
        """Whether no further play is needed."""
        return bool(self.evidence) or len(self.plays) >= self.most

    @property
    def reason(self) -> str:
        """Why warm-up ended."""
        return self.evidence or f"not steady after {len(self.plays)} plays, the most there may be"

    @abstractmethod
    def _evidence(self) -> str:
        """What shows that the server is warm; empty if nothing does."""


class Once(Rule):
    """For a warm server: one play, so that it has met the workload."""

    most = 1

    def _evidence(self) -> str:
        return "the server was warm before"


class Steady(Rule):
    """For a CPU: until a play is no faster than the fastest before it, by more than 10 %.

    A cold server gets faster from play to play; noise goes both ways. A warm server thus needs two
    plays, and the rule cannot wait for a quiet that a noisy machine never has.
    """

    most = 5
    TOLERANCE: ClassVar[float] = 0.10

    def _evidence(self) -> str:
        *earlier, last = (play.duration_s for play in self.plays)
        if not earlier or last < min(earlier) * (1 - self.TOLERANCE):
            return ""
        return f"the last play was no faster than the best one by {100 * self.TOLERANCE:.0f} %"


class Proof(Rule):
    """For a GPU: until a play is as fast as the best one, and nothing compiled or stalled in it.

    The first play, before the shapes, and what compiled are no measure: two such plays may be
    equally slow. What is compared is the mean latency of a request, which an open loop has as
    well, whose throughput is that of its arrivals.
    """

    most = 8
    TOLERANCE: ClassVar[float] = 0.05

    def _evidence(self) -> str:
        earlier, last = self.plays[1:-1], self.plays[-1]
        known = [
            play.latency_ms for play in earlier if play.latency_ms is not None and not play.compiled
        ]
        if last.latency_ms is None or not known or last.compiled:
            return ""
        change = last.latency_ms / min(known) - 1
        if abs(change) > self.TOLERANCE or stalls(self.plays)[-1] is not None:
            return ""
        return (
            f"the last play's latency was {100 * change:+.1f} % from the best one's, "
            "without a compilation or a stall"
        )

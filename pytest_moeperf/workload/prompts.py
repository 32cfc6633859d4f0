"""What the prompts of a workload are made of."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from pytest_moeperf.checks import check_path, check_whole
from pytest_moeperf.errors import UsageError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator

__all__ = [
    "Conversation",
    "Conversations",
    "Drawn",
    "Prompts",
    "RandomTokens",
    "ShareGPT",
    "SharedPrefix",
    "draw_tokens",
    "file_slug",
    "sample_conversations",
]

# pytest leaves these frames out: a traceback ends at the suite's own line.
__tracebackhide__ = True

WORKLOAD = "a workload"

Conversation = tuple[str, int | None]
"""A prompt as text and the tokens of its recorded answer, None where nobody counted them."""

Conversations = tuple[Conversation, ...]

Drawn = tuple[Sequence[int] | str, int]
"""A prompt and the output tokens to ask for."""


@dataclass(frozen=True, slots=True)
class RandomTokens:
    """Prompts of exact length, of token ids drawn evenly and anew for each request and seed."""

    @property
    def slug(self) -> str:
        """Nothing: the usual prompts need no mention in an id."""
        return ""

    @property
    def label(self) -> str:
        """Nothing, for the same reason."""
        return ""

    def expected_hit_rate(self, *, requests: int, isl: int, block_tokens: int) -> float:  # noqa: ARG002 - as of the other prompts
        """0: no two prompts begin alike."""
        return 0.0


@dataclass(frozen=True, slots=True)
class ShareGPT:
    """Prompts from a ShareGPT JSON file, as text; its conversations are handed to `plan`.

    `isl` then only bounds what a prompt may take, `osl` what is asked for where the recorded
    answer is longer or was not counted.
    """

    path: str

    def __post_init__(self) -> None:
        check_path(WORKLOAD, path=self.path)

    @property
    def slug(self) -> str:
        """`-sharegpt-` and the file's name, as the end of a workload's id."""
        return f"-sharegpt-{file_slug(self.path)}"

    @property
    def label(self) -> str:
        """What a table adds to the workload's name."""
        return f", prompts from {PurePath(self.path).name}"

    def expected_hit_rate(self, *, requests: int, isl: int, block_tokens: int) -> float:  # noqa: ARG002 - as of the other prompts
        """0: conversations that begin alike for a whole block are rare."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """Random prompts that begin alike within a group, as those of one system prompt do.

    Requests belong to the groups in turns. The rest of each prompt, up to `isl`, is its own.
    """

    groups: int
    prefix: int
    """Tokens that the prompts of a group share."""

    def __post_init__(self) -> None:
        check_whole(WORKLOAD, groups=self.groups, prefix=self.prefix)

    def check_shared(self, *, requests: int, isl: int) -> None:
        """Raise UsageError where no two of so many prompts of that length share a prefix."""
        if self.prefix > isl:
            raise UsageError(
                f"prefix = {self.prefix} in {WORKLOAD}: prompts have only isl = {isl} tokens"
            )
        if self.groups >= requests:
            raise UsageError(
                f"groups = {self.groups} in {WORKLOAD}: with requests = {requests} no two share a "
                "prefix; take fewer groups, or more requests"
            )

    @property
    def slug(self) -> str:
        """`-prefix4x512` for four groups, as the end of a workload's id."""
        return f"-prefix{self.groups}x{self.prefix}"

    @property
    def label(self) -> str:
        """What a table adds to the workload's name."""
        return f", {self.groups} shared prefixes of {self.prefix}"

    def expected_hit_rate(self, *, requests: int, isl: int, block_tokens: int) -> float:
        """Share of prompt tokens that a prefix cache, empty at first, can give back.

        A cache keeps whole blocks of `block_tokens` (vLLM: 16 unless told otherwise; SGLang's
        radix tree: 1), and the last token of a prompt is always computed. The first request of
        each group fills the cache for the others:
        (requests - groups) x floor(min(prefix, isl - 1) / block) x block / (requests x isl).
        A cache too small for all prefixes gives less, and so does a group whose second request
        comes before the first one was prefilled.
        """
        followers = max(requests - self.groups, 0)
        cached = min(self.prefix, isl - 1) // block_tokens * block_tokens
        return followers * cached / (requests * isl)


Prompts = RandomTokens | ShareGPT | SharedPrefix


def file_slug(path: str) -> str:
    """The name of a file as a part of an id: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", PurePath(path).stem.lower()).strip("-")


def draw_tokens(
    prompts: RandomTokens | SharedPrefix,
    lengths: Iterable[tuple[int, int]],
    ids: range,
    generator: random.Random,
) -> Iterator[Drawn]:
    """One prompt of token ids for each pair of prompt and output length."""
    if not ids:
        raise UsageError(f"no token ids to draw prompts from between {ids.start} and {ids.stop}")
    prefixes: list[list[int]] = [[]]
    if isinstance(prompts, SharedPrefix):
        prefixes = [generator.choices(ids, k=prompts.prefix) for _ in range(prompts.groups)]
    for index, (isl, osl) in enumerate(lengths):
        prefix = prefixes[index % len(prefixes)]
        # A plan of a long run holds millions of tokens: 4 bytes each, not 36.
        yield array("I", prefix + generator.choices(ids, k=isl - len(prefix))), osl


def sample_conversations(
    conversations: Conversations, longest_outputs: Iterable[int], generator: random.Random
) -> Iterator[Drawn]:
    """Use every conversation once before any comes again."""
    left: list[Conversation] = []
    for longest in longest_outputs:
        left = left or generator.sample(conversations, len(conversations))
        text, answer_tokens = left.pop()
        yield text, min(answer_tokens or longest, longest)

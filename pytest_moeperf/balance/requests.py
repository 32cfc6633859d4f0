"""What an engine told of requests, token by token, as counts of prefill and of decode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pytest_moeperf.balance.counts import ExpertCounts, count_routes, merged
from pytest_moeperf.errors import RoutingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

__all__ = ["RoutedRequest", "RoutingCounts"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutedRequest:
    """The experts that each token of one request took; a wrong shape is a RoutingError.

    The last token that came out was never put in, so that prompt + output − 1 tokens have routes.
    """

    prompt_tokens: int
    output_tokens: int
    routes: npt.NDArray[np.integer]
    """[prompt + output − 1 tokens, layers, k], read-only: first those of the prompt, then those
    that were decoded; a layer without a router is there and says nothing."""
    prompt_ids: tuple[int, ...] | None = None
    """The tokens of the prompt; None for a text."""
    output_ids: tuple[int, ...] | None = None
    """The tokens that came out; None where the engine does not tell them."""

    def __post_init__(self) -> None:
        routes = np.array(self.routes)
        if routes.ndim != 3 or not np.issubdtype(routes.dtype, np.integer):  # noqa: PLR2004 - as said
            raise RoutingError(
                f"routes of shape {list(routes.shape)} as {routes.dtype}: expected whole numbers, "
                f"[tokens, layers, k]"
            )
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise RoutingError(
                f"a request of {self.prompt_tokens} + {self.output_tokens} tokens: expected at "
                f"least 1 of prompt and of output"
            )
        expected = self.prompt_tokens + self.output_tokens - 1
        if len(routes) != expected:
            raise RoutingError(
                f"routes of {len(routes)} tokens: {self.prompt_tokens} of the prompt and "
                f"{self.output_tokens} of the output have {expected}, as the last is not put in; "
                f"count without prefix cache and speculation, and one server at a time"
            )
        routes.flags.writeable = False
        object.__setattr__(self, "routes", routes)

    @property
    def put_in(self) -> tuple[int, ...] | None:
        """The tokens that have routes; None where they are not known."""
        if self.prompt_ids is None or self.output_ids is None:
            return None
        return (*self.prompt_ids, *self.output_ids[:-1])

    @property
    def prefill(self) -> npt.NDArray[np.integer]:
        """Routes of the prompt."""
        return self.routes[: self.prompt_tokens]

    @property
    def decode(self) -> npt.NDArray[np.integer]:
        """Routes of what was put in after it; none of them where one token came out."""
        return self.routes[self.prompt_tokens :]


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutingCounts:
    """Tokens by layer and expert, of several requests to one model.

    Raises RoutingError, when it is asked for counts, where these cannot be true.
    """

    requests: tuple[RoutedRequest, ...]
    experts: int
    """Experts of a layer, shared ones left out."""
    layers: tuple[int, ...]
    """The layers that have a router, by their number in the model."""

    def __post_init__(self) -> None:
        if not self.requests:
            raise RoutingError("no request was counted: send at least 1")

    @cached_property
    def prefill(self) -> ExpertCounts:
        """Of all prompts."""
        return self._count(request.prefill for request in self.requests)

    @cached_property
    def decode(self) -> ExpertCounts | None:
        """Of all tokens that came out and were put in again; None where there are none."""
        decoded = [request.decode for request in self.requests if len(request.decode)]
        return self._count(decoded) if decoded else None

    @cached_property
    def total(self) -> ExpertCounts:
        """Of prefill and decode."""
        return merged([self.prefill] if self.decode is None else [self.prefill, self.decode])

    @cached_property
    def by_request(self) -> tuple[ExpertCounts, ...]:
        """Of each request by itself, as `cluster_interval` draws them."""
        return tuple(self._count([request.routes]) for request in self.requests)

    def _count(self, parts: Iterable[npt.NDArray[np.integer]]) -> ExpertCounts:
        routes = _joined(list(parts))
        return count_routes(routes, experts=self.experts, layers=self.layers)


def _joined(parts: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.integer]:
    forms = {part.shape[1:] for part in parts}
    if len(forms) > 1:
        shown = " and ".join(f"{layers} layers × top {top_k}" for layers, top_k in sorted(forms))
        raise RoutingError(f"routes of {shown}: count requests of one model")
    return np.concatenate(parts)

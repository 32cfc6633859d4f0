"""What the stream of one request says, event by event."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_moeperf.testing.dialects import Dialect

__all__ = ["Generation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One request as the fake engine sees it."""

    number: int
    model: str
    dialect: Dialect
    prompt: tuple[int, ...]
    output_tokens: int
    token_ids: bool
    usage: bool
    continuous_usage: bool

    def chunk(self, first: int, count: int) -> bytes:
        """The event that carries output tokens `first` to `first + count - 1`."""
        choice: dict[str, Any] = {
            "index": 0,
            "text": " a" * count,
            "logprobs": None,
            "finish_reason": "length" if first + count == self.output_tokens else None,
            **self.dialect.choice,
        }
        if self.token_ids:
            choice["token_ids"] = list(range(first, first + count))
            choice["prompt_token_ids"] = list(self.prompt) if first == 0 else None
        usage = self._usage(first + count) if self.continuous_usage else None
        return self._event([choice], usage)

    def end(self) -> bytes:
        """The events after the last token."""
        usage = self._event([], self._usage(self.output_tokens)) if self.usage else b""
        return usage + b"data: [DONE]\n\n"

    def whole(self, of_choice: Mapping[str, Any], of_answer: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request that does not stream, with further fields."""
        choice = {"index": 0, "text": " a" * self.output_tokens, "finish_reason": "length"}
        if self.token_ids:
            choice |= {"token_ids": self._output_ids}
        return {
            "id": f"cmpl-{self.number}",
            "object": "text_completion",
            "model": self.model,
            "choices": [choice | dict(of_choice)],
            "usage": self._usage(self.output_tokens),
            **of_answer,
        }

    def native(self, of_meta: Mapping[str, Any]) -> dict[str, Any]:
        """SGLang's own answer."""
        counts = self._usage(self.output_tokens)
        meta = {name: counts[name] for name in ("prompt_tokens", "completion_tokens")}
        return {
            "text": " a" * self.output_tokens,
            "output_ids": self._output_ids,
            "meta_info": {"id": f"{self.number:032x}", **meta, **of_meta},
        }

    @property
    def _output_ids(self) -> list[int]:
        return list(range(self.output_tokens))

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": len(self.prompt),
            "completion_tokens": output_tokens,
            "total_tokens": len(self.prompt) + output_tokens,
            **self.dialect.usage,
        }

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        body: dict[str, Any] = {
            "id": f"cmpl-{self.number}",
            "object": "text_completion",
            "created": 0,
            "model": self.model,
            "choices": choices,
        }
        if usage is not None:
            body["usage"] = usage
        return b"data: " + json.dumps(body).encode() + b"\n\n"

"""What the engines' ways to tell routes have in common: arrays in JSON, and what rules them out."""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING, Any

from pytest_moeperf.engines.base import Generated
from pytest_moeperf.engines.flags import flag_names, int_flag
from pytest_moeperf.errors import RoutingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt

    from pytest_moeperf.engines.base import Launch
    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.records import ServerSpec

__all__ = [
    "counting_env",
    "decoded",
    "npy_array",
    "of_architecture",
    "refuse",
    "refuse_flags",
    "tokens_of",
]

BROKEN = "the engine's answer is not whole; count again, and report the engine's version"


def refuse(spec: ServerSpec, why: str, instead: str) -> UsageError:
    """The error of a server that cannot count experts."""
    return UsageError(f"{spec.label}: experts cannot be counted: {why}; {instead}")


def counting_env(launch: Launch) -> dict[str, str]:
    """What a server that counts experts has in its environment besides.

    The probe is on its import path alone: nothing is put into an engine's environment, and a server
    that is timed can never find it.
    """
    if launch.counting is None:
        return {}
    path = {"PYTHONPATH": str(launch.probe_path)} if launch.counting.probe else {}
    return {**launch.counting.env, **path}


def refuse_flags(
    spec: ServerSpec, *, pipeline: Iterable[str], data: Iterable[str], speculative: Iterable[str]
) -> None:
    """Raise `UsageError` for what makes routes incomplete, under the engine's names for it.

    Routes come from one pipeline stage and one replica, and drafts have routes as well.
    """
    words = spec.flags
    given = set(flag_names(words))
    plain = "leave it out here, the model's routes are the same without"
    for what, names in (("pipeline", tuple(pipeline)), ("data", tuple(data))):
        size = int_flag(words, *names)
        if size > 1:
            raise refuse(spec, f"{names[0]} {size} tells those of one {what} rank", plain)
    for flag in speculative:
        if flag in given:
            raise refuse(spec, f"under {flag} drafts are routed too", plain)


def decoded(text: Any) -> bytes:
    """The bytes of a base64 string; RoutingError if it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise RoutingError(f"routed experts that are no base64 ({error}): {BROKEN}") from None


def npy_array(text: Any) -> npt.NDArray[Any]:
    """The array of a `.npy` file in base64; RoutingError if it is none."""
    import numpy as np  # noqa: PLC0415 - only where experts are counted

    try:
        array: npt.NDArray[Any] = np.load(io.BytesIO(decoded(text)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RoutingError(f"routed experts that are no .npy ({error}): {BROKEN}") from None
    return array


def of_architecture(
    routes: npt.NDArray[Any], architecture: Architecture
) -> npt.NDArray[np.integer[Any]]:
    """The routes as they came; RoutingError unless they are [tokens, layers, k] of the model."""
    expected = (architecture.layers, architecture.top_k)
    if routes.ndim != len(expected) + 1 or routes.shape[1:] != expected:
        raise RoutingError(
            f"routed experts of shape {list(routes.shape)}: the model has {expected[0]} layers and "
            f"takes {expected[1]} experts a token, expected [tokens, {expected[0]}, {expected[1]}]"
        )
    return routes


def tokens_of(usage: Any, *, output_ids: Any) -> Generated:
    """Token counts by OpenAI's names, which SGLang's own answers have as well, and token ids."""
    counts = usage if isinstance(usage, dict) else {}
    return Generated(
        prompt_tokens=counts.get("prompt_tokens"),
        output_tokens=counts.get("completion_tokens"),
        output_ids=tuple(output_ids) if isinstance(output_ids, list) else None,
    )

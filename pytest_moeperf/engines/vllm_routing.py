"""How vLLM tells which experts its tokens took, by version and hardware; read from its sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from pytest_moeperf.engines.base import CountingRoute, Generated, Question
from pytest_moeperf.engines.flags import flag_names
from pytest_moeperf.engines.routing import (
    npy_array,
    of_architecture,
    refuse,
    refuse_flags,
    tokens_of,
)
from pytest_moeperf.errors import RoutingError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pytest_moeperf.memory import Architecture
    from pytest_moeperf.records import RequestSpec, ServerSpec

__all__ = ["VllmRouting"]

FIRST_WITH_HOOK = Version("0.20")
"""On a GPU: `BaseRouter.set_capture_fn`, which the probe listens by."""
FIRST_WITH_ANSWERS = Version("0.21")
"""`routed_experts` in completions: lists, from 0.23 at the latest an array."""
FIRST_FROM_PREFIX_CACHE = Version("0.31")
"""0.32, and perhaps 0.31, keeps routes with the blocks of the prefix cache, and needs it on."""
FIRST_CPU_WITH_HOOK = Version("0.30")
"""Before it, the CPU's kernels chose experts themselves."""

PROBE_CLASS = "moeperf_probe.vllm.RoutingProbe"
TAKE = Question(path="/collective_rpc", body={"method": "moeperf_take_routes"})


class VllmRouting:
    """The part of the engine that counts experts; see `base.Engine`."""

    def counting_route(
        self, spec: ServerSpec, *, version: str | None, on_gpu: bool, model_type: str
    ) -> CountingRoute:
        """Let answers carry routes where the version can, else listen in the worker.

        Listening needs eager mode, as graphs would bypass it, and tokens that are really computed,
        each once.
        """
        del model_type  # All models of vLLM choose experts in the same place.
        refuse_flags(
            spec,
            pipeline=("--pipeline-parallel-size", "-pp"),
            data=("--data-parallel-size", "-dp"),
            speculative=("--speculative-config", "-sc", "--spec-method", "--spec-model"),
        )
        found = _version(spec, version)
        if on_gpu and found >= FIRST_WITH_ANSWERS:
            cached = ("--enable-prefix-caching",) if found >= FIRST_FROM_PREFIX_CACHE else ()
            return CountingRoute(
                name="routed experts in vLLM's answers",
                flags=("--enable-return-routed-experts", *cached),
            )
        first = FIRST_WITH_HOOK if on_gpu else FIRST_CPU_WITH_HOOK
        if found < first:
            where = "on a GPU" if on_gpu else "on a CPU"
            raise refuse(
                spec, f"vLLM {version} {where} does not tell them", f"use {first} or newer"
            )
        asynchronous = "--async-scheduling" in flag_names(spec.flags)
        return CountingRoute(
            name="a probe in vLLM's worker",
            flags=(
                *("--worker-extension-cls", PROBE_CLASS),
                *("--enforce-eager", "--no-enable-prefix-caching"),
                # It runs a step ahead, for tokens that nobody asked for.
                *(("--no-async-scheduling",) if on_gpu or asynchronous else ()),
            ),
            probe=True,
            one_at_a_time=True,
            collect=TAKE,
        )

    def counted_request(self, request: RequestSpec, *, model: str) -> Question:
        """A completion; it needs no field for routes."""
        text = isinstance(request.prompt, str)
        body = {
            "model": model,
            "prompt": request.prompt if text else list(request.prompt),
            "max_tokens": request.output_tokens,
            "min_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "return_token_ids": True,
        }
        return Question(path="/v1/completions", body=body)

    def read_generated(self, answer: Any) -> Generated:
        """See `base.Engine`; versions without `return_token_ids` tell no tokens."""
        return tokens_of(answer.get("usage"), output_ids=_choice(answer).get("token_ids"))

    def read_routes(self, answer: Any, architecture: Architecture) -> npt.NDArray[np.integer[Any]]:
        """Of the probe, of an array in the answer, or of lists where the prompt's are apart."""
        if "results" in answer:
            return _probed(answer["results"], architecture)
        told = _choice(answer).get("routed_experts")
        if told is None:
            raise RoutingError(
                "vLLM's answer has no routed experts; it was not started to tell them, or this "
                "version does not for this model"
            )
        if isinstance(told, str):
            return of_architecture(npy_array(told), architecture)
        return of_architecture(_listed(answer, told), architecture)


def _version(spec: ServerSpec, version: str | None) -> Version:
    try:
        found = Version(version or "")
    except InvalidVersion:
        raise refuse(
            spec, f"vLLM's version is not known ({version!r})", "use an installed release"
        ) from None
    # A build on the way to a release has what that will have.
    return Version(found.base_version)


def _choice(answer: Any) -> Any:
    choices = answer.get("choices") or [{}]
    return choices[0]


def _listed(answer: Any, told: Any) -> npt.NDArray[Any]:
    """0.21: nested lists, those of the prompt beside the choices."""
    import numpy as np  # noqa: PLC0415 - only where experts are counted

    try:
        return np.array([*(answer.get("prompt_routed_experts") or []), *told])
    except (TypeError, ValueError) as error:
        raise RoutingError(f"routed experts that are no table of numbers: {error}") from None


def _probed(results: Any, architecture: Architecture) -> npt.NDArray[np.integer[Any]]:
    """What the first worker heard: under tensor parallelism all choose the same experts."""
    import numpy as np  # noqa: PLC0415 - only where experts are counted

    told = results[0] if isinstance(results, list) and results else None
    if not isinstance(told, dict) or "routes" not in told:
        said = told.get("error") if isinstance(told, dict) else told
        raise RoutingError(f"the probe in vLLM's worker tells no routes: {said}")
    layers, routes = tuple(told.get("layers", ())), npy_array(told["routes"])
    if layers != architecture.expert_layers:
        raise RoutingError(
            f"the probe heard routers in layers {list(layers)}; the model has them in "
            f"{list(architecture.expert_layers)}"
        )
    if routes.ndim != 3 or routes.shape[1:] != (len(layers), architecture.top_k):  # noqa: PLR2004 - [tokens, layers, k]
        raise RoutingError(
            f"routes of shape {list(routes.shape)} from the probe: expected "
            f"[tokens, {len(layers)}, {architecture.top_k}]"
        )
    spread = np.zeros((len(routes), architecture.layers, architecture.top_k), dtype=routes.dtype)
    spread[:, list(layers), :] = routes
    return spread

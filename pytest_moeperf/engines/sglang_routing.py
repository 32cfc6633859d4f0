"""How SGLang tells which experts its tokens took; read from the sources of 0.5.11 and 0.5.16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from pytest_moeperf.engines.base import CountingRoute, Generated, Question
from pytest_moeperf.engines.flags import flag_names
from pytest_moeperf.engines.routing import (
    BROKEN,
    decoded,
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

__all__ = ["SglangRouting"]

FIRST_WITH_ANSWERS = Version("0.5.11")
"""The oldest version that was looked at."""

WITHOUT_LAYER = {
    "mixtral": "sglang.srt.models.mixtral.MixtralMoE",
    "olmoe": "sglang.srt.models.olmoe.OlmoeMoE",
}
"""Blocks that do not tell their router which layer it is in; a server that is to record routes
then fails while it starts, with an assertion in 0.5.11 and a shape that does not fit in 0.5.16."""
BLOCK_VARIABLE = "MOEPERF_SGLANG_BLOCK"
"""Read by our plugin."""


class SglangRouting:
    """The part of the engine that counts experts; see `base.Engine`."""

    def counting_route(
        self, spec: ServerSpec, *, version: str | None, on_gpu: bool, model_type: str
    ) -> CountingRoute:
        """Let answers carry routes, with our plugin for the models that need it.

        Without the overlap scheduler: from 0.5.16 on, it copies the routes of a step to main memory
        while the next step already writes over them.
        """
        refuse_flags(
            spec,
            pipeline=("--pp-size", "--pipeline-parallel-size"),
            data=("--dp-size", "--data-parallel-size"),
            speculative=("--speculative-algorithm",),
        )
        try:
            old = Version(Version(version or "").base_version) < FIRST_WITH_ANSWERS
        except InvalidVersion:
            raise refuse(
                spec, f"SGLang's version is not known ({version!r})", "use an installed release"
            ) from None
        if old:
            raise refuse(spec, f"SGLang {version} is too old", f"use {FIRST_WITH_ANSWERS} or newer")
        if not on_gpu:
            raise refuse(
                spec, "SGLang keeps routes in memory that only a GPU has", "use vLLM on a CPU"
            )
        flags = ["--enable-return-routed-experts", "--disable-overlap-schedule"]
        if model_type == "gpt_oss" and "--moe-runner-backend" not in flag_names(spec.flags):
            # Its usual kernels choose experts where nobody records them.
            flags += ["--moe-runner-backend", "triton"]
        block = WITHOUT_LAYER.get(model_type)
        return CountingRoute(
            name="routed experts in SGLang's answers",
            flags=tuple(flags),
            env={} if block is None else {BLOCK_VARIABLE: block},
            probe=block is not None,
        )

    def counted_request(self, request: RequestSpec, *, model: str) -> Question:
        """SGLang's own request: its completions do not tell the tokens that came out."""
        del model  # A server has one.
        text = isinstance(request.prompt, str)
        prompt = {"text": request.prompt} if text else {"input_ids": list(request.prompt)}
        sampling = {
            "max_new_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        body = {**prompt, "sampling_params": sampling, "return_routed_experts": True}
        return Question(path="/generate", body=body)

    def read_generated(self, answer: Any) -> Generated:
        """See `base.Engine`."""
        return tokens_of(answer.get("meta_info"), output_ids=answer.get("output_ids"))

    def read_routes(self, answer: Any, architecture: Architecture) -> npt.NDArray[np.integer[Any]]:
        """The bytes of 32-bit integers, without their shape."""
        import numpy as np  # noqa: PLC0415 - only where experts are counted

        told = (answer.get("meta_info") or {}).get("routed_experts")
        if told is None:
            raise RoutingError(
                "SGLang's answer has no routed experts; it was not started to tell them, or this "
                "version does not for this model"
            )
        data, token = decoded(told), 4 * architecture.layers * architecture.top_k
        if not data or len(data) % token:
            raise RoutingError(
                f"routed experts of {len(data)} bytes: {architecture.layers} layers × "
                f"{architecture.top_k} experts are {token} a token; {BROKEN}"
            )
        shape = (-1, architecture.layers, architecture.top_k)
        return of_architecture(np.frombuffer(data, dtype="<i4").reshape(shape), architecture)

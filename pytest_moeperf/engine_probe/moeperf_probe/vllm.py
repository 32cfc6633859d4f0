"""In vLLM's workers: what `--worker-extension-cls` mixes into their class."""

from __future__ import annotations

import base64
import io
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RoutingProbe"]


class RoutingProbe:
    """Hears which experts each router of a worker chooses, forward pass by forward pass.

    Names have a prefix because a worker must not have them already.
    """

    def moeperf_take_routes(self) -> dict[str, Any]:
        """Give what was heard since the last call, and forget it; the first one begins to listen.

        The answer has `layers` and `routes`, a `.npy` file in base64, [tokens, layers, k]; or
        `error`, in words. It goes through JSON. All workers of a group choose the same experts, so
        that only the first one listens.
        """
        if getattr(self, "rank", 0):
            return {}
        heard: dict[int, list[Any]] = getattr(self, "_moeperf_heard", {})
        listening: dict[int, list[Any]] = {layer: [] for layer, _ in _routers(self)}
        for layer, router in _routers(self):
            router.set_capture_fn(partial(_hear, listening[layer]))
        self._moeperf_heard = listening
        if not listening:
            return {"error": "no router of this model can be listened to"}
        return _told(heard or {layer: [] for layer in listening})


def _routers(worker: Any) -> Iterator[tuple[int, Any]]:
    """Layer and router, in the order of the layers."""
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    modules = worker.vllm_config.compilation_config.static_forward_context.values()
    found = {
        module.layer_id: module.router
        for module in modules
        if isinstance(getattr(module, "router", None), BaseRouter)
    }
    yield from sorted(found.items())


def _hear(heard: list[Any], ids: Any) -> None:
    """Keep a copy of [tokens, k]: the kernels go on with the tensor itself."""
    heard.append(ids.detach().to(device="cpu", copy=True))


def _told(heard: dict[int, list[Any]]) -> dict[str, Any]:
    import numpy as np

    nothing = np.zeros((0, 1), dtype="<i4")
    layers = [
        np.concatenate([ids.numpy() for ids in parts]) if parts else nothing
        for parts in heard.values()
    ]
    tokens = sorted({len(layer) for layer in layers})
    if len(tokens) > 1:
        return {"error": f"layers heard of different numbers of tokens: {tokens}"}
    file = io.BytesIO()
    np.save(file, np.stack(layers, axis=1).astype("<i4"))
    return {"layers": list(heard), "routes": base64.b64encode(file.getvalue()).decode("ascii")}

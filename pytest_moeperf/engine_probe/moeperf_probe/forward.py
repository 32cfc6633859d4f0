"""What a model's routers would choose, computed by PyTorch and transformers without any engine.

`python -m moeperf_probe.forward MODEL REQUEST.npz ANSWER.npz`. The request has `tokens`, those put
in by all sequences one after the other, `lengths` of the sequences, and `routes`, [tokens, layers,
k]: the choices that are to be checked. The answer has the numbers of the `layers` with a router and
their logits, [tokens, layers, experts], as `exact` in 32-bit and `rounded` in 16-bit arithmetic.

The experts that compute are those of `routes`, whatever the router here prefers. Else one choice
that rounding decides would change all layers after it, and the tokens that look back on it.

For routers that take the softmax of one product: Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE and gpt-oss.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["main"]


def main(model: str, request_path: str, answer_path: str) -> None:
    """Compute both passes; what torch says goes to stderr."""
    import numpy as np
    import torch

    with np.load(request_path, allow_pickle=False) as request:
        tokens = torch.from_numpy(request["tokens"].astype("i8"))
        lengths = request["lengths"].tolist()
        routes = torch.from_numpy(request["routes"].astype("i8"))
    layers, exact = _router_logits(model, tokens, lengths, routes, dtype=torch.float32)
    _, rounded = _router_logits(model, tokens, lengths, routes, dtype=torch.bfloat16)
    np.savez(answer_path, layers=np.array(layers), exact=exact, rounded=rounded)


def _router_logits(
    model: str, tokens: Any, lengths: list[int], routes: Any, *, dtype: Any
) -> tuple[list[int], Any]:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, attn_implementation="eager", local_files_only=True
    ).eval()
    routers = {
        next(int(part) for part in name.split(".") if part.isdecimal()): _Router(module)
        for name, module in network.named_modules()
        if type(module).__name__.endswith("TopKRouter")
    }
    if not routers:
        raise SystemExit(f"{type(network).__name__}: no router that this check knows")
    with torch.inference_mode():
        parts = zip(torch.split(tokens, lengths), torch.split(routes, lengths), strict=True)
        for sequence, chosen in parts:
            for layer, router in routers.items():
                router.chosen = chosen[:, layer]
            network(input_ids=sequence[None], use_cache=False)
    layers = sorted(routers)
    logits = [torch.cat(routers[layer].logits) for layer in layers]
    return layers, torch.stack(logits, dim=1).numpy()


class _Router:
    """Keeps the logits of one router and has given experts compute in place of its own choice."""

    def __init__(self, module: Any) -> None:
        self.logits: list[Any] = []
        self.chosen: Any = None
        """[tokens, k] of the sequence that comes next."""
        module.register_forward_hook(self._choose)

    def _choose(self, _module: Any, _given: Any, made: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        import torch

        logits, weights, indices = made
        self.logits.append(logits.detach().float().clone())
        shares = torch.softmax(logits.float(), dim=-1).gather(1, self.chosen)
        total = weights.float().sum(dim=-1, keepdim=True)
        if torch.allclose(total, torch.ones_like(total), atol=1e-2):
            # This router's weights add up to 1.
            shares /= shares.sum(dim=-1, keepdim=True)
        return logits, shares.to(weights.dtype), self.chosen.to(indices.dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])

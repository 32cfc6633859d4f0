"""The experts that a fake engine says its tokens took, in the forms of vLLM and SGLang."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from pytest_moeperf.testing.dialects import Dialect
    from pytest_moeperf.testing.script import Script

    Routes = npt.NDArray[np.integer[Any]]

__all__ = ["Heard", "completion_fields", "counting_script", "native_routes", "routes"]

EXPERT_KEYS = ("num_local_experts", "num_experts")
NARROW = 256
"""So many experts fit a byte, which vLLM then uses."""
TELL = "--enable-return-routed-experts"
LISTEN = "--worker-extension-cls"
PLUGINS = "sglang.srt.plugins"
WITHOUT_LAYER = ("mixtral", "olmoe")


def routes(script: Script, *, prompt_tokens: int, output_tokens: int) -> Routes:
    """[tokens, layers, k] of one request, with the script's fault if it has one.

    Token p takes experts p + layer, p + layer + 1, … modulo their number, unless the script says
    how often each is chosen.
    """
    import numpy as np  # noqa: PLC0415 - only where experts are counted

    tokens = prompt_tokens + output_tokens - 1
    table = [
        [_chosen(script, token, layer) for layer in range(script.routed_layers)]
        for token in range(tokens)
    ]
    found = np.array(table, dtype=np.int32)
    match script.routing_fault:
        case "zeros":
            found[:] = 0
        case "short":
            found = found[:-1]
        case "layers":
            found = found[:, :-1]
        case "range":
            found[0, 0, 0] = script.routed_experts
    return found


def _chosen(script: Script, token: int, layer: int) -> list[int]:
    experts, top_k = script.routed_experts, script.routed_top_k
    if layer in script.collapsed_layers:
        return list(range(top_k))
    if not script.expert_weights:
        return [(token + layer + place) % experts for place in range(top_k)]
    # Each expert draws a number; the weighted ones draw the larger ones (Efraimidis, Spirakis).
    draw = random.Random(f"{layer} {token}")  # noqa: S311 - a script, no secret
    keys = [draw.random() ** (1 / weight) for weight in script.expert_weights]
    return sorted(range(len(keys)), key=lambda expert: -keys[expert])[:top_k]


def completion_fields(
    script: Script, found: Routes, *, prompt_tokens: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What vLLM adds to a choice, and to the whole answer."""
    if script.routing_fault == "missing" or script.routing not in {"answers", "lists"}:
        return {}, {}
    if script.routing == "answers":
        narrow = "u1" if script.routed_experts <= NARROW else "<u2"
        return {"routed_experts": _npy(found.astype(narrow))}, {}
    prompt, output = found[:prompt_tokens].tolist(), found[prompt_tokens:].tolist()
    return {"routed_experts": output}, {"prompt_routed_experts": prompt}


def native_routes(script: Script, found: Routes) -> dict[str, Any]:
    """What SGLang adds to an answer's `meta_info`: bytes of 32-bit integers."""
    if script.routing_fault == "missing" or script.routing != "answers":
        return {}
    return {"routed_experts": base64.b64encode(found.astype("<i4").tobytes()).decode("ascii")}


class Heard:
    """What a probe in the worker hears."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listening = False
        self._parts: list[Routes] = []

    def hear(self, found: Routes) -> None:
        """Of one request."""
        if self._listening:
            self._parts.append(found)

    def take(self) -> dict[str, Any]:
        """The answer to `/collective_rpc`."""
        import numpy as np  # noqa: PLC0415 - only where experts are counted

        self._listening, parts, self._parts = True, self._parts, []
        if self._script.routing_fault == "missing":
            return {"results": [{"error": "no router of this model can be listened to"}]}
        layers = self._script.routed_layers - (self._script.routing_fault == "layers")
        nothing = np.zeros((0, layers, self._script.routed_top_k), dtype=np.int32)
        told = _npy(np.concatenate([nothing, *parts]))
        return {"results": [{"layers": list(range(layers)), "routes": told}]}


def _npy(array: Routes) -> str:
    import numpy as np  # noqa: PLC0415 - only where experts are counted

    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode("ascii")


def counting_script(
    script: Script, dialect: Dialect, flags: Sequence[str], model: str
) -> Script | str:
    """The script of a server with these flags; a line of its log where a real one would fail.

    A real one fails without what the flags refer to, as that has to be made importable for it.
    """
    if LISTEN in flags:
        module, _, name = flags[flags.index(LISTEN) + 1].rpartition(".")
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        script = replace(script, routing=script.routing or "probe")
    elif TELL in flags:
        script = replace(script, routing=script.routing or "answers")
    else:
        return script
    try:
        config = json.loads(Path(model, "config.json").read_bytes())
    except (OSError, ValueError):
        return script
    if dialect.name == "sglang" and config["model_type"] in WITHOUT_LAYER and not _layers_named():
        return "RuntimeError: The expanded size of the tensor (32) must match the existing size"
    return replace(
        script,
        routed_layers=config["num_hidden_layers"],
        routed_experts=next(config[key] for key in EXPERT_KEYS if key in config),
        routed_top_k=config["num_experts_per_tok"],
    )


def _layers_named() -> bool:
    import importlib.metadata  # noqa: PLC0415 - a tenth of the start of a fake process

    plugins = importlib.metadata.entry_points(group=PLUGINS)
    return "MOEPERF_SGLANG_BLOCK" in os.environ and any(callable(each.load()) for each in plugins)

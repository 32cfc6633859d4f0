"""In SGLang's schedulers: a plugin, found by its entry point."""

from __future__ import annotations

import inspect
import multiprocessing
import os
from typing import Any

__all__ = ["name_layers"]


def name_layers() -> None:
    """Have the blocks of one class tell their router which layer it is in.

    SGLang records routes by that number. The variable `MOEPERF_SGLANG_BLOCK` names the class; where
    it is not set nothing is done, nor in the first process, which holds no model: to import one
    there would take memory of a GPU.
    """
    block = os.environ.get("MOEPERF_SGLANG_BLOCK")
    if block is None or multiprocessing.parent_process() is None:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{block}.__init__", _name_layer, HookType.AROUND)


def _name_layer(construct: Any, block: Any, *args: Any, **kwargs: Any) -> None:
    given = inspect.signature(construct).bind(block, *args, **kwargs)
    given.apply_defaults()
    construct(block, *args, **kwargs)
    block.topk.layer_id = given.arguments["layer_id"]

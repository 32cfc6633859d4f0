"""Holds the experts that an engine told against a forward pass of the same model in PyTorch."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_moeperf.errors import RoutingError, UsageError
from pytest_moeperf.launch import ENGINE_PROBE_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from pytest_moeperf.balance import RouteCheck, RoutedRequest
    from pytest_moeperf.models import ModelDirectory

    Logits = npt.NDArray[np.floating]

__all__ = ["check_routes", "router_logits"]

TIMEOUT_S = 1800.0
NOT_INHERITED = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP")


def check_routes(
    counted: Sequence[RoutedRequest],
    model: ModelDirectory,
    *,
    python: Path,
    timeout_s: float = TIMEOUT_S,
) -> RouteCheck:
    """Compute the routers' logits of every token that was put in, and compare the choices.

    See `router_logits` for arguments and errors.
    """
    import numpy as np  # noqa: PLC0415 - not needed to load the plugin

    from pytest_moeperf.balance import RouteCheck  # noqa: PLC0415 - imports numpy

    layers, exact, rounded = router_logits(counted, model, python=python, timeout_s=timeout_s)
    routes = np.concatenate([request.routes for request in counted])
    return RouteCheck.of(routes, layers=layers, exact=exact, rounded=rounded)


def router_logits(
    counted: Sequence[RoutedRequest],
    model: ModelDirectory,
    *,
    python: Path,
    timeout_s: float = TIMEOUT_S,
) -> tuple[tuple[int, ...], Logits, Logits]:
    """Return the layers with a router and its logits, exact and rounded, as `RouteCheck.of` wants.

    Two passes on the CPU, in 32 and in 16 bits, need the memory of the larger one; both let the
    told experts compute, so that each choice is judged given the choices before it.

    Args:
        counted: What `count_experts` returned.
        model: With weights.
        python: An interpreter with torch and transformers, such as the engine's own.
        timeout_s: Patience with the computation.

    Raises:
        UsageError: A text prompt, output tokens that were not told, or a model without weights.
        RoutingError: The computation failed, or knows no such model.
    """
    import numpy as np  # noqa: PLC0415 - not needed to load the plugin

    if model.dummy:
        raise UsageError(f"{model.name}: no weights to compute with; choose a model that has some")
    sequences = [_put_in(request) for request in counted]
    with tempfile.TemporaryDirectory(prefix="moeperf-") as folder:
        asked, answer = Path(folder, "request.npz"), Path(folder, "answer.npz")
        np.savez(
            asked,
            tokens=np.concatenate(sequences),
            lengths=np.array([len(sequence) for sequence in sequences]),
            routes=np.concatenate([request.routes for request in counted]),
        )
        _compute(python, model.path, asked, answer, timeout_s=timeout_s)
        with np.load(answer, allow_pickle=False) as told:
            layers = tuple(told["layers"].tolist())
            if layers != model.architecture.expert_layers:
                raise RoutingError(
                    f"{model.name}: the forward pass has routers in layers {list(layers)}, the "
                    f"model in {list(model.architecture.expert_layers)}"
                )
            return layers, told["exact"], told["rounded"]


def _put_in(request: RoutedRequest) -> tuple[int, ...]:
    if request.put_in is None:
        raise UsageError(
            f"a request of {request.prompt_tokens} + {request.output_tokens} tokens: routes can be "
            f"checked where prompt and output are known as token ids"
        )
    return request.put_in


def _compute(python: Path, model: Path, asked: Path, answer: Path, *, timeout_s: float) -> None:
    environment = {name: os.environ[name] for name in os.environ if name not in NOT_INHERITED}
    command: list[str | Path] = [python, "-m", "moeperf_probe.forward", model, asked, answer]
    try:
        subprocess.run(
            command,
            env={**environment, "PYTHONPATH": str(ENGINE_PROBE_PATH), "HF_HUB_OFFLINE": "1"},
            # The current directory is on the path of `-m`.
            cwd=asked.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()]
        said = lines[-1] if lines else f"exit code {error.returncode}"
        raise RoutingError(f"{model}: no forward pass: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RoutingError(f"{model}: no forward pass by {python}: {error}") from error

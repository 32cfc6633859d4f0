"""What tests name, found on this machine: hardware, engines, models."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_moeperf.enginespec import parse_engine
from pytest_moeperf.gpu import resolve_hardware
from pytest_moeperf.installs import resolve
from pytest_moeperf.models import materialize, resized

if TYPE_CHECKING:
    from pytest_moeperf.hardware import Hardware
    from pytest_moeperf.measurement import Announce
    from pytest_moeperf.models import ModelDirectory
    from pytest_moeperf.records import EngineInstall, LoadFormat, ServerSpec, Weights

__all__ = ["Resolver"]


class Resolver:
    """Finds everything once, and builds or writes what is missing."""

    def __init__(self, gpu: str, weights: Weights, announce: Announce) -> None:
        self._gpu = gpu
        self._weights = weights
        self._announce = announce
        self._engines: dict[str, EngineInstall] = {}
        self._models: dict[tuple[str, tuple[tuple[str, int], ...], str], ModelDirectory] = {}

    @cached_property
    def hardware(self) -> Hardware:
        """What is measured on; UsageError where the machine lacks it."""
        return resolve_hardware(self._gpu)

    @property
    def engines(self) -> tuple[EngineInstall, ...]:
        """The engines that were resolved, in the order of asking."""
        return tuple(self._engines.values())

    def engine(self, text: str) -> EngineInstall:
        """Resolve one `--engine`, building its environment where it is missing."""
        if text not in self._engines:
            self._engines[text] = resolve(
                parse_engine(text),
                allow_build=True,
                gpu=bool(self.hardware.gpus),
                on_progress=lambda phase, _elapsed_s: self._announce(f"engine {text}", phase),
            )
        return self._engines[text]

    def model(self, spec: ServerSpec) -> ModelDirectory:
        """The model's directory, written first where it is a small one of the catalogue."""
        key = spec.model, spec.overrides, spec.load_format
        if key not in self._models:
            self._announce(f"model {spec.model}", "")
            dummy = spec.load_format == "dummy" or bool(spec.overrides)
            found = materialize(spec.model, weights=self._weights, dummy=dummy)
            model = resized(found, spec.overrides)
            # The spec that is resolved below means the same model.
            resolved = spec.model, spec.overrides, "dummy" if model.dummy else "auto"
            self._models[key] = self._models[resolved] = model
        return self._models[key]

    def spec(self, named: ServerSpec, engine: str) -> ServerSpec:
        """The spec with its engine found, and with what its model has for weights."""
        load_format: LoadFormat = "dummy" if self.model(named).dummy else "auto"
        return replace(named, engine=self.engine(engine), load_format=load_format)

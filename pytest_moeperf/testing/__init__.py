"""Fakes for tests of this plugin and of suites written with it.

`FakeEngine` serves from a thread of the test; `make_fake_interpreter` gives a Python that stands
in for one with vLLM or SGLang installed, so that whole sessions run without an engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__all__ = ["SCRIPT_VARIABLE", "FakeEngine", "Script", "make_fake_interpreter", "write_script"]

if TYPE_CHECKING:
    from pytest_moeperf.testing.fake_engine import FakeEngine
    from pytest_moeperf.testing.interpreter import make_fake_interpreter, write_script
    from pytest_moeperf.testing.script import SCRIPT_VARIABLE, Script
else:
    # The process of a fake is started hundreds of times in a run of tests.
    _HOMES = {
        "SCRIPT_VARIABLE": "script",
        "FakeEngine": "fake_engine",
        "Script": "script",
        "make_fake_interpreter": "interpreter",
        "write_script": "interpreter",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return __all__

"""Fakes for tests of this plugin and of suites written with it.

`FakeEngine` serves from a thread of the test; `make_fake_interpreter` gives a Python that stands
in for one with vLLM or SGLang installed, so that whole sessions run without an engine.
"""

from pytest_moeperf.testing.fake_engine import FakeEngine
from pytest_moeperf.testing.interpreter import make_fake_interpreter, write_script
from pytest_moeperf.testing.script import SCRIPT_VARIABLE, Script

__all__ = ["SCRIPT_VARIABLE", "FakeEngine", "Script", "make_fake_interpreter", "write_script"]

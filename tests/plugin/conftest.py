"""Whole pytest sessions with a small suite of their own and a fake engine in the engine's place."""

import importlib
import json
import pkgutil
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import pytest_moeperf
from pytest_moeperf.guardian import process_table
from pytest_moeperf.testing import SCRIPT_VARIABLE, FakeEngine, Script, make_fake_interpreter
from pytest_moeperf.warmup import Once, Proof, Steady

# pytester forgets what a session in this process imported: that takes time, and numpy cannot be
# imported twice. Of our own modules there would be two: tests would patch one and call the other.
for lazy in (
    *("jsonschema", "numpy", "prometheus_client.parser", "psutil", "pynvml", "rich._emoji_codes"),
    "scipy.special",
    *(found.name for found in pkgutil.walk_packages(pytest_moeperf.__path__, "pytest_moeperf.")),
):
    if not lazy.endswith("__main__"):
        importlib.import_module(lazy)

MODEL_NAME = "tiny-moe"
CONTEXT_TOKENS = 128
CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "dtype": "bfloat16",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
}

CONFTEST = """\
from pytest_moeperf import ServerSpec

def pytest_moeperf_servers(hardware):
    return {{
        "moe": ServerSpec({model!r}),
        "dense": ServerSpec({model!r}, max_model_len=64),
        "absent": None,
    }}
"""

LOAD = """\
from pytest_moeperf import ClosedLoop

LOAD = ClosedLoop(concurrency=1, isl=4, osl=8, requests=2)
"""

SUITE = (
    LOAD
    + """
def test_single_stream(measure, moe):
    measure(moe, LOAD).gate("itl_token_ms.p50", "ttft_ms.p50")
"""
)
"""One cell with two gates."""

STEADY_MACHINE = """\
from pytest_moeperf import patience, probe, server, validity, warmup

probe.memory_copy_gib_per_s = lambda: 10.0
server.await_rest = lambda pid, patience_s: True
patience.PAUSES_S = (0.0,)
validity.client_limits = lambda repeat: ()
warmup.Steady = warmup.Proof = warmup.Once
"""
"""A plugin for sessions in processes of their own; see `surroundings`."""

RATIO_TEST = """
def test_ratio_{number}(measure, moe):
    cell = measure(moe, LOAD)
    cell.over(cell, "output_throughput").within(*{bounds}, why="a cell is as fast as itself")
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """An interpreter whose vLLM is a fake."""
    return make_fake_interpreter(tmp_path_factory.mktemp("engine") / "venv")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model directory of half a kilobyte that the project takes for a valid one."""
    path = tmp_path_factory.mktemp("models") / MODEL_NAME
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path_factory):
    """A cache of its own, a machine of constant speed, and no CI."""
    monkeypatch.setenv("MOEPERF_CACHE", str(tmp_path_factory.mktemp("cache")))
    # pytest writes its summary in full where one of the first two is set, however empty.
    for name in ("CI", "BUILD_NUMBER", "GITHUB_STEP_SUMMARY", SCRIPT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    # Sessions in processes of their own start in half the time.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setattr("pytest_moeperf.probe.memory_copy_gib_per_s", lambda: 10.0)
    # A fake does not spin for work, and to see that takes as long as a play.
    monkeypatch.setattr("pytest_moeperf.server.await_rest", lambda _pid, **_: True)
    monkeypatch.setattr("pytest_moeperf.patience.PAUSES_S", (0.0,))
    # A client that others keep from its core says so, as it should.
    monkeypatch.setattr("pytest_moeperf.validity.client_limits", lambda _repeat: ())
    # A fake is warm from its start, and every play takes a process.
    for rule in ("Steady", "Proof"):
        monkeypatch.setattr(f"pytest_moeperf.warmup.{rule}", Once)


@pytest.fixture
def whole_warm_up(surroundings, monkeypatch):
    """As users have it, until the plays of a server show that it is warm."""
    monkeypatch.setattr("pytest_moeperf.warmup.Steady", Steady)
    monkeypatch.setattr("pytest_moeperf.warmup.Proof", Proof)


@pytest.fixture(scope="session")
def make_server():
    """Makes servers to attach to, each to be used as a context."""

    def make(**script):
        return FakeEngine(Script(max_model_len=CONTEXT_TOKENS, **script), model=MODEL_NAME)

    return make


@pytest.fixture(scope="module")
def server(make_server):
    """A healthy server to attach to, which saves the start."""
    with make_server() as engine:
        yield engine


@dataclass(frozen=True)
class Session:
    """A session that has ended, and what it left behind."""

    result: pytest.RunResult
    root: Path

    @property
    def text(self):
        return self.result.stdout.str()

    @property
    def errors(self):
        return self.result.stderr.str()

    @property
    def code(self):
        return self.result.ret

    def counts(self, **expected):
        self.result.assert_outcomes(**expected)

    def shows(self, *patterns):
        """Lines that the output has in this order, with `*` for any text."""
        self.result.stdout.fnmatch_lines(patterns)

    @property
    def usage_error(self):
        """The one line of an error of use, which ends the session before any test."""
        assert self.code == pytest.ExitCode.USAGE_ERROR
        assert "Traceback" not in self.text + self.errors
        return next(line for line in self.errors.splitlines() if line.startswith("ERROR: "))

    @property
    def run_json(self):
        return json.loads((self.root / ".moeperf" / "run.json").read_text())

    @property
    def judged(self):
        """The cells of run.json that have a verdict; the others are lower halves of ratios."""
        return [cell for cell in self.run_json["cells"] if cell["verdicts"]]

    @property
    def logs(self):
        """One file for every start of a server."""
        return sorted((self.root / ".moeperf" / "logs").glob("*.log"))

    @property
    def junit(self):
        return ET.parse(self.root / "junit.xml").getroot()  # noqa: S314 - pytest wrote it


@dataclass(frozen=True)
class Suite:
    """A suite in a directory of its own, and what runs it."""

    pytester: pytest.Pytester
    model: Path
    monkeypatch: pytest.MonkeyPatch
    python: Path

    def write(self, source=SUITE, *, name="test_load"):
        """The only test file, or a further one under another name."""
        folder = self.root / "serving"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(source)

    def write_ratio(self, *bounds):
        """A test for each pair of bounds, of a ratio that is exactly 1 on any machine.

        A throughput is never 0, as a time between tokens is that a stalled server sends at once.
        """
        tests = (RATIO_TEST.format(number=n, bounds=pair) for n, pair in enumerate(bounds, 1))
        self.write(LOAD + "".join(tests))

    @property
    def root(self):
        return self.pytester.path

    def script(self, **script):
        """What every server does that is started from now on."""
        self.monkeypatch.setenv(SCRIPT_VARIABLE, json.dumps(script))

    def arguments(self, arguments):
        given = " ".join(map(str, arguments))
        defaults = {
            "--engine": ["--engine", f"vllm@{self.python}"],
            "--gpu": ["--gpu", "cpu"],
            "--repeats": ["--repeats", "1"],
            "--color": ["--color=no"],
            # These tests run on machines that others use as well.
            "--ignore-finding": ["--ignore-finding", "busy_machine"],
        }
        chosen = [word for name, words in defaults.items() if name not in given for word in words]
        # Plugins of others that cost every session time, and that nothing here is about.
        without = ["no:hypothesispytest", "no:benchmark", "no:anyio"]
        return [*chosen, *(word for name in without for word in ("-p", name)), *map(str, arguments)]

    def run(self, *arguments):
        """Run the suite with the fake engine, in this process."""
        result = self.pytester.runpytest_inprocess(*self.arguments(arguments))
        return Session(result, self.root)

    def run_process(self, *arguments):
        """The same in a process of its own."""
        words = self._process_arguments(arguments)
        return Session(self.pytester.runpytest_subprocess(*words, timeout=180), self.root)

    def start(self, *arguments):
        """Start the suite as a process and return it at once."""
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *map(str, self._process_arguments(arguments))],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _process_arguments(self, arguments):
        (self.root / "steady_machine.py").write_text(STEADY_MACHINE)
        return [*self.arguments(arguments), "-p", "steady_machine"]


@pytest.fixture
def suite(pytester, model, python, monkeypatch):
    """A suite of one test with two gates; it may be written anew."""
    pytester.makeconftest(CONFTEST.format(model=str(model)))
    made = Suite(pytester, model, monkeypatch, python)
    made.write()
    return made


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Where `record` keeps what the tests of one module measured, by its arguments."""
    folder = tmp_path_factory.mktemp("recordings")
    return lambda arguments: folder / f"of-{abs(hash(arguments))}"


@pytest.fixture
def record(suite, recordings):
    """Gives the suite its baselines: the first test of a module measures, others take a copy.

    One module therefore records one suite and one engine per set of arguments.
    """

    def run(*arguments, **expected):
        kept, baselines = recordings(arguments), suite.root / "baselines"
        if kept.exists():
            shutil.copytree(kept, baselines)
            return
        suite.run(*arguments, "--baseline", "record").counts(**expected)
        shutil.rmtree(suite.root / ".moeperf")
        shutil.copytree(baselines, kept)

    return run


@pytest.fixture
def leftovers(python):
    """Tells the processes that run the fake interpreter, or descend from one that did."""

    def find():
        table = process_table()
        engines = {pid for pid in table if _runs(pid, python)}
        return sorted(
            process.pid
            for process in table.values()
            if not process.zombie and {process.pid, process.group, process.session} & engines
        )

    return find


def _runs(pid, python):
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return str(python).encode() in command


@pytest.fixture
def mixtral_suite(suite):
    """A suite of servers for one and for two GPUs."""
    suite.pytester.makeconftest(
        "from pytest_moeperf import ServerSpec\n\n"
        "def pytest_moeperf_servers(hardware):\n"
        "    return {\n"
        '        "moe": ServerSpec("mixtral-8x7b"),\n'
        '        "moe_tp2": ServerSpec("mixtral-8x7b", tensor_parallel_size=2),\n'
        "    }\n"
    )
    return suite

"""The layers of the package, as its imports show them; those inside functions count as well."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import pytest_moeperf.balance

PACKAGE = Path(pytest_moeperf.__file__).parent
ROOT = PACKAGE.parent

LAYERS = {
    "shell": {
        "cell",
        "cli",
        "collection",
        "contribution",
        "fixtures",
        "hookspec",
        "markers",
        "namedserver",
        "nextsteps",
        "options",
        "outputs",
        "postponed",
        "plugin",
        "progress",
        "routing",
        "session",
    },
    "reports": {"report"},
    "effects": {
        "cache",
        "cellresult",
        "checkpoint",
        "client",
        "counting",
        "datasets",
        "driver",
        "endpoint",
        "expertcount",
        "features",
        "files",
        "gpu",
        "gpulease",
        "guardian",
        "installs",
        "launch",
        "loadgen",
        "measured",
        "measurement",
        "models",
        "opencell",
        "patience",
        "pool",
        "probe",
        "process",
        "provenance",
        "references",
        "refresh",
        "resolver",
        "revision",
        "routecheck",
        "run",
        "sampling",
        "selftest",
        "server",
        "store",
        "telemetry",
        "weights",
    },
    "engines": {"engines"},
    "api": {"__init__"},
    "logic": {
        "admission",
        "balance",
        "baseline",
        "baseline_format",
        "calibration",
        "claims",
        "compat",
        "comparison",
        "completions",
        "document",
        "enginespec",
        "exchange",
        "figures",
        "gate",
        "gpuhealth",
        "hardware",
        "identity",
        "judge",
        "memory",
        "metrics",
        "outcomes",
        "placement",
        "policy",
        "record_form",
        "redaction",
        "review",
        "roofline",
        "sse",
        "stats",
        "timeline",
        "truth",
        "validity",
        "waiver",
        "warmup",
        "wording",
        "workload",
    },
    "words": {"checks", "errors", "records", "request", "serverspec", "units"},
}
"""Top first; a module may import from its own layer and from those below it."""

TESTING = "testing"
"""Stands beside the layers: fakes know the words and nothing else of the package."""

PROBE = "engine_probe"
"""Belongs to no layer: it is imported by engines, and by nothing here."""

PURE = ("reports", "engines", "logic", "words")
"""No clock, no files, no processes, no network, no pytest; to reckon with days is no clock."""
PURE_MAY_NOT_IMPORT = {
    "asyncio",
    "ctypes",
    "fcntl",
    "glob",
    "http",
    "importlib",
    "multiprocessing",
    "os",
    "platform",
    "platformdirs",
    "psutil",
    "pynvml",
    "select",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "uv",
}
PURE_MAY_NOT_CALL = {
    "exists",
    "fromtimestamp",
    "glob",
    "is_dir",
    "is_file",
    "iterdir",
    "mkdir",
    "now",
    "open",
    "read_bytes",
    "read_text",
    "rglob",
    "stat",
    "today",
    "unlink",
    "urlopen",
    "utcnow",
    "write_bytes",
    "write_text",
}
"""Methods of `Path` that touch the disk, and of `date` that read the clock; as values they are
fine."""

ENGINE_STACK = {"torch", "vllm", "sglang", "triton", "transformers"}
HEAVY = (
    "jinja2",
    "jsonschema",
    "ml_dtypes",
    "numpy",
    "prometheus_client",
    "psutil",
    "pynvml",
    "rich",
    "safetensors",
    "scipy",
    "sglang",
    "tokenizers",
    "torch",
    "vllm",
)

MOST_LINES_OF_A_MODULE = 400
MOST_LINES_OF_A_FUNCTION = 60
"""Without signature and docstring."""


class Import(NamedTuple):
    name: str
    """Dotted, without `pytest_moeperf.` where it is of this package."""
    ours: bool
    line: int


def module_names():
    """All modules as dotted names below the package; a package is its `__init__`."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return names


MODULES = module_names()


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(module):
    """Every import of a module, wherever it stands, type checking and functions included."""
    found = []
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.Import):
            found += [_import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            # `from package import module` is an import of the module.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [
                _import(name if _is_module(name) else node.module, node.lineno) for name in names
            ]
    return tuple(found)


def _is_module(dotted):
    return dotted.removeprefix("pytest_moeperf.") in MODULES and dotted.startswith("pytest_moeperf")


def _import(name, line):
    if name == "pytest_moeperf":
        return Import("__init__", ours=True, line=line)
    if name.startswith("pytest_moeperf."):
        return Import(name.removeprefix("pytest_moeperf."), ours=True, line=line)
    return Import(name, ours=False, line=line)


def top(dotted):
    return dotted.partition(".")[0]


def layer(module):
    return next((name for name, tops in LAYERS.items() if top(module) in tops), None)


def foreign(module):
    return {(top(each.name), each.line) for each in imports(module) if not each.ours}


def in_layers(*names):
    return [module for module in MODULES if layer(module) in names]


def test_every_module_has_a_layer():
    homeless = [name for name in MODULES if layer(name) is None]
    assert {top(name) for name in homeless} == {TESTING, PROBE}
    listed = {name for tops in LAYERS.values() for name in tops}
    assert listed == {top(name) for name in MODULES} - {TESTING, PROBE}


@pytest.mark.parametrize("module", [name for name in MODULES if layer(name) is not None])
def test_imports_go_down(module):
    order = list(LAYERS)
    upwards = [
        f"{each.name} (line {each.line})"
        for each in imports(module)
        if each.ours and top(each.name) != TESTING
        if order.index(layer(each.name)) < order.index(layer(module))
    ]
    assert upwards == []


def test_only_tests_use_the_fakes():
    users = [
        module
        for module in MODULES
        if top(module) != TESTING and any(top(each.name) == TESTING for each in imports(module))
    ]
    assert users == []


def test_the_fakes_know_the_words_alone():
    known = {TESTING, *LAYERS["words"]}
    others = {
        (module, each.name)
        for module in MODULES
        if top(module) == TESTING
        for each in imports(module)
        if each.ours and top(each.name) not in known
    }
    assert others == set()


def test_the_probe_is_an_island():
    users = {
        name
        for name in MODULES
        for each in imports(name)
        if top(name) != PROBE and (top(each.name) in {PROBE, "moeperf_probe"})
    }
    assert users == set()
    needed = {each for name in MODULES if top(name) == PROBE for each in imports(name)}
    assert not any(each.ours for each in needed)
    outside = {top(each.name) for each in needed} - sys.stdlib_module_names - {"__future__"}
    assert outside == {"numpy", "sglang", "torch", "transformers", "vllm"}


def test_the_probe_loads_no_engine_by_itself():
    probe = PACKAGE / PROBE
    statement = (
        f"sys.path.insert(0, {str(probe)!r})\nimport moeperf_probe.forward, "
        "moeperf_probe.sglang, moeperf_probe.vllm"
    )
    assert loaded_by(statement) == set()


def test_there_is_no_cycle_not_even_of_types():
    graph = {
        module: {each.name for each in imports(module) if each.ours and each.name != module}
        for module in MODULES
    }
    assert cycle_in(graph) == []


def cycle_in(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_only_the_shell_imports_pytest():
    shell = [module for module in LAYERS["shell"] if module != "cli"]
    users = {name for name in MODULES if {"pytest", "_pytest"} & {top for top, _ in foreign(name)}}
    assert users <= set(shell)


def test_rich_is_imported_in_one_place():
    users = [name for name in MODULES if "rich" in {top for top, _ in foreign(name)}]
    assert users == ["report.terminal"]


def test_jinja_is_imported_in_one_place():
    users = [name for name in MODULES if "jinja2" in {top for top, _ in foreign(name)}]
    assert users == ["report.html"]


@pytest.mark.parametrize("module", in_layers(*PURE))
def test_pure_layers_import_nothing_that_acts(module):
    acting = {(name, line) for name, line in foreign(module) if name in PURE_MAY_NOT_IMPORT}
    assert acting == set()


@pytest.mark.parametrize("module", in_layers(*PURE))
def test_pure_layers_touch_no_file_and_no_global_random_numbers(module):
    touched = set()
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in PURE_MAY_NOT_CALL:
                touched.add((name, node.lineno))
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "random"
            and node.attr != "Random"
        ):
            touched.add((f"random.{node.attr}", node.lineno))
    assert touched == set()


def test_no_engine_is_imported():
    users = {
        (name, each)
        for name in MODULES
        if top(name) != PROBE
        for each, _ in foreign(name)
        if each in ENGINE_STACK
    }
    assert users == set()


def loaded_by(statement):
    code = f"import sys\n{statement}\nprint(*{set(HEAVY)!r} & sys.modules.keys())"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(ran.stdout.split())


def test_the_plugin_loads_nothing_heavy():
    assert loaded_by("import pytest_moeperf.plugin") == set()


def test_the_command_loads_nothing_heavy_until_it_knows_what_to_do():
    assert loaded_by("import pytest_moeperf.cli") == set()


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "suites").rglob("*.py")),
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_suites_use_public_names_alone(path):
    used = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
    public = {f"pytest_moeperf.{name}" for name in pytest_moeperf.__all__}
    public |= {f"pytest_moeperf.balance.{name}" for name in pytest_moeperf.balance.__all__}
    assert {name for name in used if top(name) == "pytest_moeperf"} <= public
    assert {top(name) for name in used} <= {"pytest", "pytest_moeperf"} | sys.stdlib_module_names


def lines_of_body(function):
    """From the first statement after the docstring to the end."""
    first, *others = function.body
    if ast.get_docstring(function) is not None and others:
        first = others[0]
    return function.end_lineno - first.lineno + 1


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES.keys())
def test_modules_and_functions_stay_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES_OF_A_MODULE
    long = {
        node.name: body
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (body := lines_of_body(node)) > MOST_LINES_OF_A_FUNCTION
    }
    assert long == {}

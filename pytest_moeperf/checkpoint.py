"""Reads the files of a model directory, and says what is wrong with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_moeperf.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["read_json", "weight_sizes"]


def weight_sizes(path: Path) -> Mapping[str, int]:
    """Bytes of each weight file of a model directory, by name; ModelError for what is wrong."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = set((read_json(index).get("weight_map") or {}).values())
    else:
        names = {file.name for glob in ("*.safetensors", "*.bin") for file in path.glob(glob)}
    if not names:
        raise ModelError(
            f"{path}: no weights (*.safetensors or *.bin); with load_format='dummy' the engine "
            "makes them up"
        )
    return {name: _weight_size(path / name) for name in names}


def _weight_size(file: Path) -> int:
    """Size in bytes; raises ModelError if it is not the size that a safetensors header tells."""
    try:
        size = file.stat().st_size
        if file.suffix == ".safetensors":
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(min(length, size)))
            data = max(
                (tensor["data_offsets"][1] for name, tensor in header.items() if name[:2] != "__"),
                default=0,
            )
            if size != 8 + length + data:
                raise ModelError(f"{file}: {size} bytes, its header tells {8 + length + data}")
    except OSError as error:
        raise ModelError(f"{file}: weights cannot be read, {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{file}: not a safetensors file") from None
    return size


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object that belongs to a model; ModelError where there is none."""
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read, {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{file}: not JSON, {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file}: not a JSON object")
    return value

"""Reads single fields of a Hugging Face `config.json`, with errors that name them.

Who knows the file puts its name before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_moeperf.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "dtype_bytes",
    "flag",
    "layer_list",
    "natural",
    "positive",
    "quantization",
    "refuse",
    "windowed",
]

_DTYPE_BYTES: Final[Mapping[str, int]] = {"bfloat16": 2, "float16": 2, "float32": 4}
_INT4_BITS: Final = 4
_MOST: Final = 2**31 - 1
"""Of any size: what 32 bits hold is far above every model, and can still be reckoned with."""


def positive(config: Mapping[str, Any], field: str, *, default: int | None = None) -> int:
    """Return a count; `default` where it is absent or null."""
    value = config.get(field)
    if value is None and default is not None:
        return default
    if value is None:
        raise ModelError(f"lacks {field}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{field} is {value!r}, not a positive whole number")
    if value > _MOST:
        raise ModelError(f"{field} is above {_MOST}")
    return value


def natural(config: Mapping[str, Any], field: str) -> int:
    """Return a count that may be 0, as it is where it is absent or null."""
    return positive(config, field) if config.get(field) else 0


def layer_list(config: Mapping[str, Any], field: str, layers: int) -> tuple[int, ...]:
    """Return the layers that a field lists; none where it is absent or null."""
    listed = config.get(field) or []
    if not isinstance(listed, list) or not all(each in range(layers) for each in listed):
        raise ModelError(f"{field} is {listed!r}, not a list of layers below {layers}")
    return tuple(listed)


def flag(config: Mapping[str, Any], field: str, *, default: bool) -> bool:
    """Return a switch; `default` where it is absent or null."""
    value = config.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelError(f"{field} is {value!r}, not true or false")
    return value


def dtype_bytes(config: Mapping[str, Any]) -> int:
    """Bytes of one weight that is not quantized."""
    # transformers 5 writes `dtype` where 4 wrote `torch_dtype`.
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if not isinstance(name, str) or name not in _DTYPE_BYTES:
        raise ModelError(f"dtype {name!r} is not one of: {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[name]


def quantization(config: Mapping[str, Any]) -> str | None:
    """Return how the checkpoint is quantized, as its `quantization_config` calls it, if it is."""
    section = config.get("quantization_config")
    if section is None:
        return None
    if not isinstance(section, dict):
        raise ModelError(f"quantization_config is {section!r}, not an object")
    method = section.get("quant_method")
    if method is not None and not isinstance(method, str):
        raise ModelError(f"quant_method of quantization_config is {method!r}, not a name")
    if method in {"awq", "gptq"} and section.get("bits") == _INT4_BITS:
        return "int4"
    return str(method)


def windowed(config: Mapping[str, Any], layers: int, *, unlisted: range) -> tuple[int, ...]:
    """Return the layers whose attention reaches back a window only.

    `layer_types` lists them; in a config without it they are the `unlisted` ones.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(unlisted)
    known = ("full_attention", "sliding_attention")
    if (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or not all(kind in known for kind in kinds)
    ):
        raise ModelError(f"layer_types must be {layers} of: {', '.join(known)}")
    return tuple(index for index, kind in enumerate(kinds) if kind == "sliding_attention")


def refuse(config: Mapping[str, Any], usual: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ModelError where a field says something that would be miscounted."""
    for field, values in usual.items():
        if config.get(field) not in values:
            raise ModelError(f"{field} = {config[field]!r} is not supported")

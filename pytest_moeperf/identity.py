"""What a server and a workload are called in stored files: readable, and equal only if they are."""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_moeperf.errors import UsageError
from pytest_moeperf.records import Fingerprint
from pytest_moeperf.redaction import is_secret_name
from pytest_moeperf.workload import WORKLOAD_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_moeperf.hardware import Hardware
    from pytest_moeperf.metrics import SLO
    from pytest_moeperf.records import EngineInstall, ServerSpec

__all__ = [
    "PLAIN_NAME",
    "cell_name",
    "check_model_name",
    "check_suite_name",
    "fingerprint",
    "remote_host",
    "server_identity",
    "workload_identity",
]

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", re.ASCII)
"""What a file or folder of baselines may be called."""
_PLAIN = "letters from a to z, digits and . _ = + -, and begins with a letter or a digit"

THIS_MACHINE = frozenset({None, "127.0.0.1", "::1", "localhost"})


def server_identity(spec: ServerSpec) -> str:
    """All of a spec but model and engine: `tp2, ep, bfloat16, context 4096, --max-num-seqs 8`.

    Where its weights come from is the model's identity.
    """
    experts = ["ep"] if spec.expert_parallel else []
    sizes = [f"{field}={value}" for field, value in spec.overrides]
    context = [f"context {spec.max_model_len}"] if spec.max_model_len is not None else []
    flags = [" ".join(spec.flags)] if spec.flags else []
    env = [f"{name}={_shown(name, value)}" for name, value in sorted(spec.env)]
    counting = ["counting experts"] if spec.counts_experts else []
    parallel = f"tp{spec.tensor_parallel_size}"
    return ", ".join([parallel, *experts, spec.dtype, *sizes, *context, *flags, *env, *counting])


def _shown(name: str, value: str) -> str:
    return "(secret)" if is_secret_name(name) else value


def workload_identity(slug: str, slo: SLO | None, drawn_from: Sequence[object] = ()) -> str:
    """The workload, its version, its objectives, and a digest of the texts or the trace it uses."""
    parts = [f"{slug}@{WORKLOAD_VERSION}"]
    if slo is not None:
        objectives = ((item.name, getattr(slo, item.name)) for item in fields(slo))
        parts += [f"{name}<={value:g}" for name, value in objectives if value is not None]
    if drawn_from:
        parts.append(hashlib.sha256(repr(drawn_from).encode()).hexdigest()[:12])
    return " ".join(parts)


def cell_name(model: str, spec: ServerSpec, slug: str) -> str:
    """`mini-moe.<slug>`; a spec with settings of its own has a digest of them in its name."""
    plain = type(spec)(spec.model)
    settings = server_identity(spec)
    if settings == server_identity(plain):
        return f"{model}.{slug}"
    return f"{model}-{hashlib.sha256(settings.encode()).hexdigest()[:6]}.{slug}"


def check_model_name(model: str) -> None:
    """Raise UsageError where baselines cannot be named after a model that a spec gives by path."""
    name = Path(model).expanduser().absolute().name
    if not PLAIN_NAME.fullmatch(name):
        raise UsageError(
            f"model {model!r}: its folder names baselines, whose name has {_PLAIN}; rename the "
            "folder, or give a link to it that has such a name"
        )


def check_suite_name(path: Path) -> None:
    """Raise UsageError where baselines cannot be named after a test file and its folder.

    A space, as any other sign, becomes a dash. Letters do not: two names would become one.
    """
    folder, file = path.parent.name, path.name
    if not folder.isascii() or not PLAIN_NAME.match(folder):
        what, name = "folder", folder
    elif not file.isascii():
        what, name = "file", file
    else:
        return
    raise UsageError(
        f"test {what} {name!r}: it names baselines, whose name has {_PLAIN}; rename the {what}"
    )


def remote_host(install: EngineInstall) -> str | None:
    """The host of a server that was attached elsewhere; None for one on this machine."""
    host = urlsplit(install.url).hostname if install.url is not None else None
    return None if host in THIS_MACHINE else host


def fingerprint(
    hardware: Hardware,
    install: EngineInstall,
    spec: ServerSpec,
    *,
    gpus: int,
    model: str,
    workload: str,
) -> Fingerprint:
    """What must be equal for figures of a cell to be comparable.

    On GPUs, of which the server uses `gpus`, the CPU is no part of it. Those of a server on another
    host are held against nothing that was recorded here.
    """
    on_cpu = not hardware.gpus
    host = remote_host(install)
    cpu_model = hardware.cpu_model if on_cpu else None
    return Fingerprint(
        hardware=hardware.name,
        cpu_model=cpu_model if host is None else f"not known, at {host}",
        cpu_cores=hardware.cpu_cores if on_cpu else None,
        gpus=tuple(gpu.name for gpu in hardware.gpus[:gpus]),
        engine=install.engine,
        model=model,
        server=server_identity(spec),
        workload=workload,
    )

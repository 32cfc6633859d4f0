"""One run of one client against a scripted server, with what it cost."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.client.clients import Load, UnavailableError
from pytest_moeperf.selftest import PacedServer
from pytest_moeperf.truth import Arrivals

TTFT_MS = 50.0
ITL_MS = 10.0
CHUNKS = 128
SAMPLE_S = 0.1
TREE_S = 2.0
"""How often processes that a client may have started are looked for."""
TIMEOUT_S = 240.0
NS_PER_S = 1e9
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
UTIME, STIME, RSS = 11, 12, 21
"""Fields of `/proc/<pid>/stat` behind the name of the program."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was true, what the client said, and what it took."""

    client: str
    mode: str
    streams: int
    scripted_per_s: float
    """Chunks per second that a client without any delay would get."""
    sent_per_s: float
    seen_per_s: float
    ttft_ms_p50: tuple[float | None, float]
    """Reported and true."""
    ttft_ms_p99: tuple[float | None, float]
    itl_ms_p50: tuple[float | None, float]
    itl_ms_p99: tuple[float | None, float]
    cpu_ms_per_1000: float
    """Of all processes of the client, between the first request and the last chunk."""
    peak_rss_mb: float
    """Sum of its processes; pages that they share count in each."""
    first_request_s: float
    server_lateness_ms_p99: float
    short_sends: int
    findings: tuple[str, ...]
    """Why the client itself calls its figures invalid."""


def scripted_per_s(mode, streams):
    """Of a closed loop whose next request comes the moment a stream ends."""
    begin_ms = TTFT_MS
    if mode == "step":
        # The request comes just behind a tick, so its first chunk waits for the next one.
        begin_ms = (TTFT_MS // ITL_MS + 1) * ITL_MS
    return streams * CHUNKS / (begin_ms + (CHUNKS - 1) * ITL_MS) * 1e3


def run(client, *, mode, streams, waves, cores):
    """Play one load; raises UnavailableError when the client gives no result."""
    server = PacedServer(mode=mode, core=cores.server, ttft_ms=TTFT_MS, itl_ms=ITL_MS)
    with server, tempfile.TemporaryDirectory(prefix="moeperf-bench-") as folder:
        load = Load(
            url=server.url,
            streams=streams,
            waves=waves,
            output_tokens=CHUNKS,
            folder=Path(folder),
        )
        started_ns = time.monotonic_ns()
        output, samples = _run_client(client, load, core=cores.client)
        truth = server.flush()
        reported = client.read(load, output)
    sent = _without_extra(truth.arrivals, load.requests)
    first_ns, last_ns = sent.start_ns.min(), sent.chunk_ns.max()
    times_ns, cpu_s, rss_bytes = map(np.array, zip(*samples, strict=True))
    cpu_s = np.diff(np.interp([first_ns, last_ns], times_ns, cpu_s))[0]
    itl = sent.mean_itl_ms() if client.itl_by_request else sent.itl_ms()
    return Trial(
        client=client.name,
        mode=mode,
        streams=streams,
        scripted_per_s=scripted_per_s(mode, streams),
        sent_per_s=sent.chunks_per_s(),
        seen_per_s=reported.chunks_per_s,
        ttft_ms_p50=(reported.ttft_ms_p50, float(np.percentile(sent.ttft_ms(), 50))),
        ttft_ms_p99=(reported.ttft_ms_p99, float(np.percentile(sent.ttft_ms(), 99))),
        itl_ms_p50=(reported.itl_ms_p50, float(np.percentile(itl, 50))),
        itl_ms_p99=(reported.itl_ms_p99, float(np.percentile(itl, 99))),
        cpu_ms_per_1000=cpu_s * 1e3 / len(sent.chunk_ns) * 1e3,
        peak_rss_mb=rss_bytes.max() / 1e6,
        first_request_s=(truth.arrivals.start_ns.min() - started_ns) / NS_PER_S,
        server_lateness_ms_p99=float(np.percentile(truth.lateness_ms(), 99)),
        short_sends=truth.short_sends,
        findings=reported.findings,
    )


def _without_extra(arrivals, wanted):
    """Leave out requests by which a client first tries the server."""
    extra = len(arrivals.start_ns) - wanted
    if extra < 0:
        raise UnavailableError(f"it sent {len(arrivals.start_ns)} of {wanted} requests")
    skipped = int(arrivals.counts[:extra].sum())
    return Arrivals(
        start_ns=arrivals.start_ns[extra:],
        counts=arrivals.counts[extra:],
        chunk_ns=arrivals.chunk_ns[skipped:],
    )


def _run_client(client, load, *, core):
    """The client's output, and samples of time, CPU seconds and resident bytes of its tree."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(word) for word in client.command(load)],
            cwd=load.folder,
            env=os.environ | client.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        try:
            # Before it starts a thread or a process of its own: these inherit it.
            os.sched_setaffinity(process.pid, {core})
            samples = _watch(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said, complaint = (_tail(file) for file in (output, errors))
    if process.returncode not in client.exit_codes:
        reason = " ".join((complaint or said).split())[-300:]
        raise UnavailableError(f"it ended with code {process.returncode}: {reason}")
    return said, samples


def _tail(file):
    file.seek(0)
    return file.read().decode(errors="replace")


def _watch(process):
    """Sample until the client ends."""
    tree, samples = _Tree(process.pid), []
    ended = os.pidfd_open(process.pid)
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not select.select([ended], [], [], SAMPLE_S)[0]:
            if time.monotonic() > deadline:
                raise UnavailableError(f"it did not end within {TIMEOUT_S:.0f} s")
            samples.append((time.monotonic_ns(), *tree.usage()))
    finally:
        os.close(ended)
    if not samples:
        raise UnavailableError("it ended at once")
    return samples


class _Tree:
    """What a process and all below it use."""

    def __init__(self, pid):
        self._root = pid
        self._used_s = {}
        self._known_until = 0.0
        self._born = time.monotonic()

    def usage(self):
        """CPU seconds so far, and resident bytes now."""
        now = time.monotonic()
        if now > self._known_until:
            # Costly with many threads, so not at every sample once the client is up.
            self._pids = list(_tree(self._root))
            self._known_until = now + (TREE_S if now - self._born > TREE_S else 0.0)
        rss_bytes = 0
        for pid in self._pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
                fields = stat.rpartition(")")[2].split()
                self._used_s[pid] = (int(fields[UTIME]) + int(fields[STIME])) / TICKS_PER_S
                rss_bytes += int(fields[RSS]) * PAGE_BYTES
        # What has ended keeps its last figure.
        return sum(self._used_s.values()), rss_bytes


def _tree(pid):
    yield pid
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in list(Path(f"/proc/{pid}/task").iterdir()):
            for child in (thread / "children").read_text(encoding="ascii").split():
                yield from _tree(int(child))

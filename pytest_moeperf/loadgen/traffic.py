"""What a worker counts of its own reads, and what it makes of that."""

from __future__ import annotations

from array import array

__all__ = ["BLIND_NAP_NS", "NAP_NS", "Traffic"]

NAP_NS = 800_000
NAPS_PER_GAP = 5
"""A nap is short beside the usual gap between two chunks of one stream: chunks that come within one
nap share an arrival time."""
BLIND_NAP_NS = 50_000
"""Without the kernel's stamps a nap is in the arrival times."""
BUSY_READS_PER_MS = 2.0
"""From this rate on, a nap saves more wake-ups than it costs."""
WINDOW_NS = 10_000_000
MOST_LAGS = 65_536
LATE_NS = 3_000_000
"""Of chunks that are read together, only the last has a time. That of the others is lost if they
may have come so much earlier."""


class Traffic:
    """Counts of reads, and whether naps between them pay."""

    __slots__ = (
        "_window_ns",
        "_window_reads",
        "_window_unstamped",
        "lag_stride",
        "lags_ns",
        "longest_nap_ns",
        "lost",
        "merged",
        "napping",
        "reads",
        "unstamped",
    )

    def __init__(self) -> None:
        self.reads = 0
        self.unstamped = 0
        """Reads with data for which the kernel gave no time."""
        self.merged = 0
        """Reads of two or more chunks with tokens."""
        self.lost = 0
        """Chunks whose arrival times these reads may have hidden."""
        self.lags_ns: array[int] = array("q")
        """From arrival to reading, of a sample of the reads."""
        self.lag_stride = 1
        """Of so many reads one is asked how late it was."""
        self.napping = False
        self.longest_nap_ns = BLIND_NAP_NS
        self._window_ns = self._window_reads = self._window_unstamped = 0

    def note_merged(self, chunks: int, *, within_ns: int) -> None:
        """Count a read of two or more chunks, all of which came within that time."""
        self.merged += 1
        if within_ns > LATE_NS:
            self.lost += chunks - 1

    def adapt(self, now_ns: int, *, streams: int) -> None:
        """Decide by the last 10 ms whether naps pay; call it as often as is convenient."""
        if now_ns - self._window_ns < WINDOW_NS:
            return
        elapsed_ns, reads = now_ns - self._window_ns, self.reads - self._window_reads
        gap_ns = elapsed_ns * streams // max(reads, 1)
        stamped = self.unstamped == self._window_unstamped
        self.napping = reads > BUSY_READS_PER_MS * elapsed_ns / 1e6 and stamped
        self.longest_nap_ns = min(NAP_NS, gap_ns // NAPS_PER_GAP) if stamped else BLIND_NAP_NS
        self._window_ns, self._window_reads = now_ns, self.reads
        self._window_unstamped = self.unstamped
        if len(self.lags_ns) > MOST_LAGS:
            self.lags_ns = self.lags_ns[::2]
            self.lag_stride *= 2

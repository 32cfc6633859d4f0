from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.sse import SSEDecoder, SSEError


def decode(stream: bytes) -> list[bytes]:
    return SSEDecoder().feed(stream)


def by_the_standard(stream: bytes) -> list[str]:
    """The events of a whole stream, read step by step as the standard tells it."""
    lines = re.split("\r\n|\n|\r", stream.decode("utf-8", errors="replace").removeprefix("\ufeff"))
    lines.pop()  # what follows the last line ending is no line yet
    events = []
    data_buffer = ""
    for line in lines:
        if not line:
            if data_buffer:
                events.append(data_buffer[:-1])
            data_buffer = ""
            continue
        if line[0] == ":":
            continue
        field, value = line, ""
        if ":" in line:
            field, value = line.split(":", 1)
            if value[:1] == " ":
                value = value[1:]
        if field == "data":
            data_buffer += value + "\n"
    return events


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


def test_an_event_ends_at_its_blank_line():
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == [b"a"]


@pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\n"])
def test_every_line_ending_of_the_standard_works(newline):
    stream = newline.join([b"data: a", b"data: b", b"", b"data: c", b"", b""])
    assert decode(stream) == [b"a\nb", b"c"]


def test_a_carriage_return_ends_its_line_without_waiting_for_a_line_feed():
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\r\n\r") == [b"a"]
    assert decoder.feed(b"\ndata: b\r\n\r\n") == [b"b"]


def test_a_read_without_bytes_changes_nothing():
    decoder = SSEDecoder()
    assert decoder.feed(b"") == []
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\ndata: b\n\n") == [b"a\nb"]


def test_only_one_space_after_the_colon_is_dropped():
    assert decode(b"data:a\n\ndata:  b\n\ndata\n\ndata: \n\n") == [b"a", b" b", b"", b""]


def test_many_events_of_one_read_come_one_by_one():
    assert decode(b"data: a\n\ndata: b\n\ndata: c\n\n") == [b"a", b"b", b"c"]


def test_one_read_may_hold_an_event_of_several_lines():
    assert decode(b"data: a\ndata: b\n\ndata: c\n\n") == [b"a\nb", b"c"]
    assert decode(b"data: a\rdata: b\n\n") == [b"a\nb"]
    assert decode(b"data: a\r\rdata: b\n\n") == [b"a", b"b"]


def test_a_further_blank_line_is_no_event():
    assert decode(b"data: a\n\n\n\ndata: b\n\n") == [b"a", b"b"]


def test_comments_and_other_fields_dispatch_nothing():
    stream = b": keep-alive\n\nretry: 5\nid: 1\nevent: x\nfoo: bar\n\ndata: a\n:x\n\n"
    assert decode(stream) == [b"a"]


def test_a_name_that_only_starts_as_data_is_another_field():
    assert decode(b"data : a\ndatas: b\n data: c\n\n") == []


def test_a_byte_order_mark_is_dropped_only_at_the_start():
    stream = "\ufeffdata: a\n\n\ufeffdata: b\n\n".encode()
    assert decode(stream) == [b"a"]
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\n\n") == [b"a"]
    assert decoder.feed("\ufeffdata: b\n\n".encode()) == []


def test_other_unicode_line_separators_are_text():
    text = "a\u2028b\x0bc\x85d"
    assert decode(f"data: {text}\n\n".encode()) == [text.encode()]


def test_a_character_may_be_cut_in_the_middle():
    decoder = SSEDecoder()
    assert decoder.feed(b"data: \xf0\x9f") == []
    assert decoder.feed(b"\x98\x80\n\n") == ["\U0001f600".encode()]


def test_what_is_no_utf_8_is_left_as_it_is():
    assert decode(b"data: \xff\n\n") == [b"\xff"]


def test_close_tells_of_an_unfinished_event_and_forgets_it():
    decoder = SSEDecoder()
    decoder.feed(b"data: a\n\ndata: b")
    assert decoder.close()
    assert decoder.feed(b"\n\n") == []
    assert not decoder.close()


@pytest.mark.parametrize(
    "endless",
    [
        b"data: 56789",
        b": 3456789ab",
        b": 3456789ab\n",
        b"data: 5\ndata: 555",
        b"data: 5\n: 3456789",
    ],
    ids=["data", "comment", "long comment", "lines", "comment after data"],
)
def test_an_event_without_an_end_is_refused_now_and_later(endless):
    decoder = SSEDecoder(limit_bytes=10)
    assert decoder.feed(b"data: 6789\n\n") == [b"6789"]
    with pytest.raises(SSEError, match="no end of an event within 10 bytes") as caught:
        decoder.feed(b"data: a\n\n" + endless)
    assert caught.value.events == [b"a"]
    with pytest.raises(SSEError) as caught:
        decoder.feed(b"data: b\n\n")
    assert caught.value.events == []
    assert decoder.close()
    assert decoder.feed(b"data: c\n\n") == [b"c"]


def test_the_limit_holds_for_what_comes_in_one_read_too():
    assert SSEDecoder(limit_bytes=16).feed(b"data: 6789abcd\n\n") == [b"6789abcd"]
    with pytest.raises(SSEError):
        SSEDecoder(limit_bytes=16).feed(b"data: 6789abcdefg\n\n")


class Ledger(bytearray):
    """Counts the bytes that its owner copies or looks through."""

    SCANS = frozenset({"count", "decode", "find", "index", "partition", "split", "splitlines"})

    def __init__(self):
        super().__init__()
        self.handled = 0

    def __iadd__(self, other):
        self.handled += len(other)
        return super().__iadd__(other)

    def __add__(self, other):
        self.handled += len(self) + len(other)
        return super().__add__(other)

    def __bytes__(self):
        self.handled += len(self)
        return bytes(memoryview(self))

    def __contains__(self, item):
        self.handled += len(self)
        return super().__contains__(item)

    def __getitem__(self, item):
        self.handled += len(self)
        return super().__getitem__(item)

    def __getattribute__(self, name):
        if name in Ledger.SCANS:
            self.handled += len(self)
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    "stream", [b"data: " + b"x" * 4000 + b"\n\n", b"data: x\n" * 500 + b"\n"], ids=["line", "lines"]
)
def test_byte_by_byte_costs_no_more_than_its_length(stream):
    decoder = SSEDecoder()
    line, data = Ledger(), Ledger()
    decoder._line, decoder._data = line, data
    events = [event for byte in stream for event in decoder.feed(bytes([byte]))]
    assert len(events) == 1
    # Every byte once into the line and once out of it, the same for the data.
    assert 2000 <= line.handled <= 2 * len(stream)
    assert 1000 <= data.handled <= 2 * len(stream)


LINES = st.one_of(
    st.text(st.characters(exclude_characters="\r\n"), max_size=20).map(
        lambda text: text.encode(errors="surrogatepass")
    ),
    st.binary(max_size=6),
    st.sampled_from([b"", b"data: a", b"data:", b"data", b"event: x", b": c", b"\xef\xbb\xbf"]),
    st.sampled_from([b"data: 6789abcdefg", b": 23456789abcdefg", b"data: 6789a"]),
    st.sampled_from([b"data: b\n", b"data: \xf0\x9f\x98\x80\xc3\xa9\n", b"\xef\xbb\xbfdata: c\n"]),
)
STREAMS = st.lists(
    st.tuples(LINES, st.sampled_from([b"\n", b"\n\n", b"\r", b"\r\n", b""])), max_size=30
).map(lambda pairs: b"".join(line + newline for line, newline in pairs))
CUTS = st.lists(st.integers(0, 400), max_size=40)


@given(stream=STREAMS)
def test_the_events_are_those_of_the_standard(stream):
    events = [event.decode("utf-8", errors="replace") for event in decode(stream)]
    assert events == by_the_standard(stream)


@given(stream=STREAMS, cuts=CUTS)
def test_where_the_bytes_are_cut_does_not_matter(stream, cuts):
    decoder = SSEDecoder()
    events = [event for piece in pieces_of(stream, cuts) for event in decoder.feed(piece)]
    assert events == decode(stream)


@given(stream=STREAMS)
def test_byte_by_byte_gives_the_same_events(stream):
    decoder = SSEDecoder()
    events = [event for byte in stream for event in decoder.feed(bytes([byte]))]
    assert events == decode(stream)


def until_refused(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    decoder = SSEDecoder(limit_bytes=16)
    events = []
    for piece in pieces:
        try:
            events += decoder.feed(piece)
        except SSEError as error:
            return events + error.events, True
    return events, False


@given(stream=STREAMS, cuts=CUTS)
def test_the_limit_holds_at_the_same_event_wherever_the_bytes_are_cut(stream, cuts):
    assert until_refused(pieces_of(stream, cuts)) == until_refused([stream])


@given(
    texts=st.lists(
        st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])), max_size=5
    )
)
def test_whatever_is_sent_comes_back(texts):
    stream = "".join(
        "".join(f"data: {line}\n" for line in text.split("\n")) + "\n" for text in texts
    ).encode()
    assert [event.decode() for event in decode(stream)] == texts

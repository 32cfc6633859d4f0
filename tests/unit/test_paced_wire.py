import json

import pytest

from pytest_moeperf.testing.paced_loop import Schedule
from pytest_moeperf.testing.paced_wire import (
    CompletionRequest,
    HttpRequest,
    end_of_stream,
    payloads,
    take_request,
)

POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("end", range(len(POST)))
def test_a_request_is_taken_when_it_is_whole(end):
    assert take_request(POST[:end]) == (None, POST[:end])
    assert take_request(POST) == (HttpRequest(b"POST", b"/v1/completions", b"body"), b"")


def test_what_follows_a_request_is_kept():
    assert take_request(GET + POST) == (HttpRequest(b"GET", b"/v1/models", b""), POST)


@pytest.mark.parametrize("name", [b"content-length", b"CONTENT-LENGTH"])
def test_header_names_have_no_case(name):
    request, rest = take_request(b"POST / HTTP/1.1\r\n" + name + b":\t2 \r\nA: b\r\n\r\nokmore")
    assert request == HttpRequest(b"POST", b"/", b"ok")
    assert rest == b"more"


@pytest.mark.parametrize(
    "received",
    [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"nonsense\r\n\r\n"],
)
def test_what_the_server_does_not_speak_is_refused(received):
    with pytest.raises(ValueError):  # noqa: PT011 - also of unpacking
        take_request(received)


@pytest.mark.parametrize(
    ("fields", "request_"),
    [
        (
            {"prompt": [77, 1, 2], "max_tokens": 5},
            CompletionRequest(key=77, prompt_tokens=3, output_tokens=5, usage=False),
        ),
        (
            {"prompt": "two words", "stream_options": {"include_usage": True}},
            CompletionRequest(key=-1, prompt_tokens=2, output_tokens=16, usage=True),
        ),
        (
            {"prompt": "text", "stream_options": None},
            CompletionRequest(key=-1, prompt_tokens=1, output_tokens=16, usage=False),
        ),
    ],
)
def test_what_is_asked_for(fields, request_):
    assert CompletionRequest.of(json.dumps({"stream": True} | fields).encode()) == request_


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"stream": true}',
        b'{"prompt": "no stream"}',
        b'{"prompt": "", "stream": true, "max_tokens": 0}',
    ],
)
def test_what_cannot_be_streamed_is_refused(body):
    with pytest.raises(ValueError):  # noqa: PT011 - also of json
        CompletionRequest.of(body)


def events(data):
    """The JSON of every event, each in an HTTP chunk of its own."""
    found = []
    while data:
        length, _, rest = data.partition(b"\r\n")
        event, data = rest[: int(length, 16)], rest[int(length, 16) + 2 :]
        assert event.startswith(b"data: ")
        assert event.endswith(b"\n\n")
        found.append(json.loads(event[6:]))
    return found


def test_events_are_vllms():
    sends = payloads(3, 1)
    assert len(sends) == 3
    choices = [events(send)[0]["choices"][0] for send in sends]
    assert [choice["token_ids"] for choice in choices] == [[1000], [1001], [1002]]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]
    assert 200 < len(sends[0]) < 400
    assert len(sends[0]) == len(sends[1])


def test_token_ids_keep_their_size():
    sends = payloads(9002, 1)
    assert {len(send) for send in sends[:-1]} == {len(sends[0])}
    assert events(sends[9000])[0]["choices"][0]["token_ids"] == [1000]


def test_merged_events_share_a_send():
    assert [len(events(send)) for send in payloads(5, 2)] == [2, 2, 1]
    assert b"".join(payloads(5, 2)) == b"".join(payloads(5, 1))


@pytest.mark.parametrize("usage", [True, False])
def test_the_end_tells_usage_if_asked(usage):
    request = CompletionRequest(key=1, prompt_tokens=8, output_tokens=3, usage=usage)
    end = end_of_stream(request)
    assert end.endswith(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    counted = {"prompt_tokens": 8, "total_tokens": 11, "completion_tokens": 3}
    assert (json.dumps(counted, separators=(",", ":")).encode() in end) is usage


@pytest.mark.parametrize(
    ("mode", "arrival_ns", "due_ns"),
    [
        ("spread", 1_003, 1_053),
        ("step", 1_003, 1_060),  # Ticks are at 0, 20, 40 …
        ("step", 1_010, 1_060),
        ("step", 1_011, 1_080),
    ],
)
def test_when_the_first_chunk_is_due(mode, arrival_ns, due_ns):
    schedule = Schedule(mode=mode, ttft_ns=50, itl_ns=10, merge=2, origin_ns=100)
    assert schedule.first_due_ns(arrival_ns) == due_ns

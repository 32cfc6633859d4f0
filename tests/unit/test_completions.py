from __future__ import annotations

import itertools
import json
from array import array

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_moeperf import completions
from pytest_moeperf.completions import CompletionStream, error_message, request_body
from pytest_moeperf.records import RequestSpec

DONE = b"data: [DONE]\n\n"
VLLM_HEAD = (
    b'{"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion",'
    b'"created":1793345678,"model":"mini-moe","choices":[{"index":0,"text":"'
)
VLLM_BETWEEN = b'","logprobs":null,"finish_reason":null,"stop_reason":null,"token_ids":['
VLLM_TAIL = b'],"prompt_logprobs":null,"prompt_token_ids":null}],"usage":null}'


def vllm(text: bytes = b" w123", ids: bytes = b"123") -> bytes:
    """The data of a chunk as vLLM 0.32 sends it."""
    return VLLM_HEAD + text + VLLM_BETWEEN + ids + VLLM_TAIL


def as_event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def event(*, usage=None, **choice) -> bytes:
    body = {"choices": [choice] if choice else []}
    if usage is not None:
        body["usage"] = {"prompt_tokens": 7, "completion_tokens": usage}
    return as_event(json.dumps(body).encode())


def read(*reads: tuple[int, bytes]) -> completions.Completion:
    stream = CompletionStream()
    for arrival_ns, data in reads:
        stream.feed(data, arrival_ns)
    return stream.completion()


def error_of(data: str | bytes) -> str | None:
    """What a stream says that has a good chunk, then this, and then its end."""
    data = data.encode() if isinstance(data, str) else data
    return read((10, event(token_ids=[1]) + as_event(data) + DONE)).error


def test_the_body_asks_for_exactly_so_many_tokens_and_their_ids():
    spec = RequestSpec(index=0, prompt=array("I", [5, 6]), output_tokens=3)
    body = json.loads(request_body(spec, model="m"))
    assert body == {
        "model": "m",
        "prompt": [5, 6],
        "max_tokens": 3,
        "min_tokens": 3,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


def test_running_totals_are_asked_for_only_on_request():
    spec = RequestSpec(index=0, prompt="hello", output_tokens=3)
    body = json.loads(request_body(spec, model="m", continuous_usage=True))
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["prompt"] == "hello"


def test_token_ids_count_the_tokens_of_a_chunk():
    completion = read(
        (10, event(token_ids=[1], text="")),
        (20, event(token_ids=[2, 3, 4], text="x")),
        (30, event(usage=4) + DONE),
    )
    assert completion.chunk_ns == array("q", [10, 20])
    assert completion.chunk_tokens == array("I", [1, 3])
    assert (completion.prompt_tokens, completion.output_tokens) == (7, 4)
    assert completion.error is None


def test_a_stream_tells_what_it_brought_so_far():
    stream = CompletionStream()
    assert stream.feed(as_event(vllm())[:50], 10) == 0
    assert stream.feed(as_event(vllm())[50:] + as_event(vllm(ids=b"4,5")), 20) == 2
    assert (stream.chunks, stream.tokens, stream.done) == (2, 3, False)
    assert stream.feed(event(usage=3), 30) == 0
    assert stream.feed(DONE, 40) == 0
    assert (stream.chunks, stream.tokens, stream.done) == (2, 3, True)


def test_without_ids_the_growth_of_the_running_total_counts():
    completion = read((10, event(text="a", usage=2)), (20, event(text="", usage=5)), (30, DONE))
    assert completion.chunk_tokens == array("I", [2, 3])
    assert completion.output_tokens == 5


def test_a_total_that_only_the_last_chunk_brings_counts_no_token_twice():
    completion = read(
        (10, event(text="a")), (20, event(text="b")), (30, event(text="c", usage=3) + DONE)
    )
    assert completion.chunk_tokens == array("I", [1, 1, 1])


def test_a_total_that_shrinks_takes_no_token_back():
    completion = read((10, event(text="a", usage=4)), (20, event(text="b", usage=2) + DONE))
    assert completion.chunk_tokens == array("I", [4])
    assert completion.output_tokens == 2


def test_without_either_a_chunk_with_text_counts_one():
    completion = read((10, event(text="a")), (20, event(text="")), (30, event(text="b") + DONE))
    assert completion.chunk_ns == array("q", [10, 30])
    assert completion.chunk_tokens == array("I", [1, 1])
    assert completion.output_tokens is None


def test_a_usage_without_a_total_leaves_the_counting_to_the_text():
    data = b'{"choices":[{"text":"a"}],"usage":{"prompt_tokens":7}}'
    completion = read((10, as_event(data) + DONE))
    assert completion.chunk_tokens == array("I", [1])
    assert (completion.prompt_tokens, completion.output_tokens) == (7, None)


def test_every_choice_of_an_event_is_a_chunk():
    data = b'{"choices":[{"index":0,"token_ids":[1]},{"index":1,"token_ids":[2,3]}]}'
    completion = read((10, as_event(data) + DONE))
    assert completion.chunk_ns == array("q", [10, 10])
    assert completion.chunk_tokens == array("I", [1, 2])


def test_a_chunk_without_tokens_is_not_an_arrival():
    completion = read((10, event(token_ids=[])), (20, event(token_ids=[1]) + DONE))
    assert completion.chunk_ns == array("q", [20])


def test_an_event_arrives_with_the_read_that_completes_it():
    whole = event(token_ids=[1])
    completion = read((10, whole[:9]), (20, whole[9:]), (30, DONE))
    assert completion.chunk_ns == array("q", [20])


def test_events_of_one_read_share_its_time():
    completion = read((10, event(token_ids=[1]) + event(token_ids=[2]) + DONE))
    assert completion.chunk_ns == array("q", [10, 10])
    assert completion.chunk_tokens == array("I", [1, 1])


def test_a_stream_that_is_cut_is_an_error_with_the_tokens_so_far():
    completion = read((10, event(token_ids=[1, 2])))
    assert completion.chunk_tokens == array("I", [2])
    assert completion.error == "stream ended after 2 tokens without [DONE]"


def test_a_stream_without_tokens_is_an_error():
    assert read((10, DONE)).error == "stream without tokens"


def test_the_first_error_in_a_stream_is_kept():
    failure = b'data: {"error": {"message": "engine\\n dead", "code": 500}}\n\n'
    other = b'data: {"error": "second"}\n\n'
    stream = CompletionStream()
    stream.feed(failure + other + DONE, 10)
    assert stream.error == "engine dead"
    assert stream.completion().error == "engine dead"


def test_an_endless_event_is_an_error_after_what_came_before_it(monkeypatch):
    monkeypatch.setattr(
        completions, "SSEDecoder", lambda decoder=completions.SSEDecoder: decoder(limit_bytes=64)
    )
    stream = CompletionStream()
    assert stream.feed(event(token_ids=[1]) + b"data: " + b"x" * 100, 10) == 1
    assert stream.error == "no end of an event within 64 bytes"
    assert stream.feed(event(token_ids=[1]), 20) == 0
    assert stream.completion().chunk_tokens == array("I", [1])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("<html>", "not JSON in the stream: <html>"),
        ("[" * 100_000, "not JSON in the stream: " + "[" * 175 + "…"),
        ("9" * 5000, "not JSON in the stream: " + "9" * 175 + "…"),
        ("[1]", "not an object in the stream: [1]"),
        ("null", "not an object in the stream: null"),
        ('{"choices":5}', "malformed 'choices' in the stream: {\"choices\":5}"),
        ('{"choices":{"a":1}}', 'malformed \'choices\' in the stream: {"choices":{"a":1}}'),
        ('{"choices":[5]}', "malformed 'choices' in the stream: {\"choices\":[5]}"),
        ('{"usage":[5]}', "malformed 'usage' in the stream: {\"usage\":[5]}"),
        (
            '{"choices":[{"token_ids":"ab"}]}',
            'malformed \'token_ids\' in the stream: {"choices":[{"token_ids":"ab"}]}',
        ),
        ('{"error":"no room"}', "no room"),
        ('{"error":{"code":500}}', '{"error":{"code":500}}'),
        ('{"error":""}', '{"error":""}'),
        ('{"error":{}}', '{"error":{}}'),
        ('{"error":{"message":["a"]}}', '{"error":{"message":["a"]}}'),
        ('{"object":"error","message":"full"}', "full"),
        ('{"object":"error"}', '{"object":"error"}'),
        (b'{"error":"\\ud800 \xff \\u001b[31m"}', "\ufffd \ufffd \ufffd[31m"),
    ],
)
def test_what_is_no_chunk_is_an_error_in_one_line(data, error):
    assert error_of(data) == error


@pytest.mark.parametrize("count", ["-1", "true", "1.0", '"3"', "[]", str(2**31), "1" + "0" * 4000])
@pytest.mark.parametrize("key", ["prompt_tokens", "completion_tokens"])
def test_an_impossible_count_is_an_error(key, count):
    error = error_of(f'{{"choices":[{{"text":"a"}}],"usage":{{"{key}":{count}}}}}')
    assert error.startswith(f"impossible '{key}' in the stream: {{")


@pytest.mark.parametrize(
    "data", ['{"usage":null}', '{"usage":{}}', '{"choices":null}', '{"error":null}', "{}"]
)
def test_what_is_empty_is_no_error(data):
    assert error_of(data) is None


def test_the_message_of_a_refusal_is_found_in_both_shapes():
    assert error_message(b'{"error": {"message": "too long"}}') == "too long"
    assert error_message(b'{"object": "error", "message": "too long"}') == "too long"
    assert error_message(b"Bad\n  Gateway") == "Bad Gateway"
    assert error_message(b"{}") == "{}"
    assert error_message(b"[1]") == "[1]"
    assert error_message(b"\xff") == "\ufffd"


def test_a_long_message_is_shortened_to_one_line():
    message = error_message(b"x" * 1000)
    assert len(message) == 200
    assert message.endswith("…")


@pytest.fixture
def parsed(monkeypatch):
    """Every text that was parsed as JSON."""
    texts = []
    loads = json.loads

    def count(text):
        texts.append(text)
        return loads(text)

    monkeypatch.setattr(completions.json, "loads", count)
    return texts


@pytest.mark.parametrize(
    ("make", "tokens"),
    [
        (lambda n: vllm(b" w%d" % n, b"%d" % n), 1),
        (lambda n: vllm(b" \xe4\xb8\xad%d" % n, b"7,%d" % n), 2),
        (lambda n: json.dumps({"choices": [{"text": f"w{n}", "token_ids": [n, 8]}]}).encode(), 2),
        (lambda n: json.dumps({"choices": [{"text": f"w{n}"}], "usage": None}).encode(), 1),
    ],
    ids=["vllm", "two ids, not ASCII", "spaces", "no ids"],
)
def test_chunks_that_are_like_the_first_are_not_parsed(parsed, make, tokens):
    stream = CompletionStream()
    for number in range(1, 201):
        assert stream.feed(as_event(make(number)), number) == 1
    assert stream.completion().chunk_tokens == array("I", [tokens] * 200)
    # The first one, and its shape with marks in the gaps.
    assert len(parsed) == 2


def test_a_chunk_with_an_escape_is_parsed_and_nothing_is_tried_again(parsed):
    stream = CompletionStream()
    for number in range(100):
        stream.feed(as_event(vllm()) + as_event(vllm(b"\\n")), number)
    assert stream.tokens == 200
    assert len(parsed) == 2 + 100


def test_chunks_that_are_all_different_are_parsed_about_once(parsed):
    stream = CompletionStream()
    for number in range(200):
        data = {"id": number, "choices": [{"text": "a", "token_ids": [1]}]}
        stream.feed(as_event(json.dumps(data).encode()), number)
    assert stream.chunks == 200
    assert len(parsed) <= 220


def require(condition: object) -> None:
    if not condition:
        raise ValueError


def body_of(data: bytes) -> dict:
    body = json.loads(data.decode("utf-8", errors="replace"))
    require(isinstance(body, dict))
    require(body.get("error") is None and body.get("object") != "error")
    return body


def totals_of(usage: dict) -> tuple[int | None, int | None]:
    require(isinstance(usage, dict))
    totals = usage.get("prompt_tokens"), usage.get("completion_tokens")
    for total in totals:
        require(total is None or (type(total) is int and 0 <= total < 2**31))
    return totals


def tokens_of(choice: dict, total: int | None, before: int) -> int:
    require(isinstance(choice, dict))
    ids = choice.get("token_ids")
    if ids is not None:
        require(isinstance(ids, list))
        return len(ids)
    if total is not None:
        return max(0, total - before)
    return 1 if choice.get("text") else 0


def fully_parsed(datas: list[bytes]) -> tuple[list[int], int | None, int | None, bool]:
    """Counts of the chunks, both totals and whether anything is wrong, by JSON alone."""
    counts: list[int] = []
    totals = None, None
    wrong = False
    for data in datas:
        try:
            body = body_of(data)
            usage = body.get("usage")
            if usage:
                totals = totals_of(usage)
            choices = body.get("choices") or []
            require(isinstance(choices, list))
            for choice in choices:
                counts.append(tokens_of(choice, totals[1] if usage else None, sum(counts)))
        except (ValueError, RecursionError):
            wrong = True
    return [count for count in counts if count], *totals, wrong


def streamed(datas: list[bytes]) -> tuple[list[int], int | None, int | None, bool]:
    stream = CompletionStream()
    for data in datas:
        stream.feed(as_event(data), 0)
    completion = stream.completion()
    assert stream.tokens == sum(completion.chunk_tokens)
    return (
        list(completion.chunk_tokens),
        completion.prompt_tokens,
        completion.output_tokens,
        stream.error is not None,
    )


MARK = completions.MARK.decode()
TRAPS = {
    "plain": '{"choices":[{"text":"%s","token_ids":[%i]}]}',
    "ids first": '{"choices":[{"token_ids":[%i],"text":"%s"}]}',
    "ids nested": '{"choices":[{"text":"%s","logprobs":{"token_ids":[%i]}}]}',
    "ids at the root": '{"choices":[{"text":"%s"}],"token_ids":[%i]}',
    "both nested": '{"a":{"text":"%s","token_ids":[%i]},"choices":[{"text":"x"}]}',
    "ids in a text": '{"choices":[{"text":"%s","a":"\\"token_ids\\":[%i]"}]}',
    "key ends like ids": '{"choices":[{"text":"%s","a\\"token_ids":[%i]}]}',
    "ids of the prompt": '{"choices":[{"text":"%s","prompt_token_ids":[%i],"token_ids":[4]}]}',
    "doubled ids": '{"choices":[{"text":"%s","token_ids":[%i],"token_ids":[4]}]}',
    "doubled by escape": '{"choices":[{"text":"%s","token_ids":[%i],"\\u0074oken_ids":[4]}]}',
    "doubled, null": '{"choices":[{"text":"%s","token_ids":[%i],"token_ids":null}]}',
    "marked": f'{{"choices":[{{"text":"%s","token_ids":[%i],"token_ids":[{MARK}]}}]}}',
    "doubled text": '{"choices":[{"text":"%s","text":"y","token_ids":[%i]}]}',
    "doubled choices": '{"choices":[{"text":"%s","token_ids":[%i]}],"choices":[{"text":"y"}]}',
    "two choices": '{"choices":[{"text":"%s","token_ids":[%i]},{"token_ids":[5]}]}',
    "total": '{"choices":[{"text":"%s","token_ids":[%i]}],"usage":{"completion_tokens":3}}',
    "only a total": '{"choices":[{"text":"%s"}],"usage":{"completion_tokens":3}}',
    "no ids": '{"choices":[{"text":"%s"}],"usage":null}',
}
GAPS = [
    ("a", "1"),
    ("b", "2,3"),
    ("", "4"),
    ("c", ""),
    ("", ""),
    ('","token_ids":[7,7],"a":"', "1"),
    ("\\", "1"),
    ("\t", "1"),
    ("\\n", "1"),
    ("a", "01"),
    ("a", "1,"),
    ("a", "1],[2"),
    ("a", '1],"token_ids":[5,6,7'),
    (MARK, MARK),
]


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_what_looks_like_ids_or_text_is_what_the_json_says(trap):
    usual = [trap.replace("%s", text).replace("%i", ids).encode() for text, ids in GAPS]
    other = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":9}}'
    for data in usual:
        datas = [usual[0], usual[1], other, data, usual[1], other, usual[0]]
        assert streamed(datas) == fully_parsed(datas)


TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["", "a", '"token_ids":[1,2]', '\\"token_ids\\":[1,2]', '","token_ids":[9,9],"x":"', "\\"]
    ),
    st.sampled_from(["\n", "{", "]}", "[", "\u2028", "\U0001f600", '"text":"', MARK, "[DONE]"]),
)
IDS = st.one_of(
    st.lists(st.integers(0, 200_000), min_size=1, max_size=3),
    st.sampled_from([None, [], [0], [int(MARK)], [-1], [True], ["1"], [1.5], [[1]], [2**80]]),
    st.sampled_from([[{"token_ids": [1, 2]}], "1,2", {"a": 1}, 5, False]),
)
USAGES = st.one_of(
    st.none(),
    st.none(),
    st.builds(
        lambda prompt, output: {"prompt_tokens": prompt, "completion_tokens": output},
        st.sampled_from([None, 7, -1, True]),
        st.sampled_from([None, 0, 3, 9, 2**40]),
    ),
)
IN_CHOICE = st.tuples(
    st.sampled_from(["logprobs", "prompt_token_ids", "token_ids", "\\u0074oken_ids", "text", "a"]),
    st.sampled_from([None, [1, 2], {"token_ids": [1, 2, 3], "text": "n"}, "t", [], MARK]),
)
IN_ROOT = st.tuples(
    st.sampled_from(["token_ids", "text", "choices", "\\u0063hoices", "error", "object", "usage"]),
    st.sampled_from([None, [1, 2], [], [{"text": "r", "token_ids": [4]}], "text_completion"]),
)


@st.composite
def json_streams(draw):
    """Chunks of one shape, which may have any of the traps above, and a few of another."""
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": "), (",", ":\t"), (" ,", " :")]))
    ensure_ascii = draw(st.booleans())

    def dumps(value):
        return json.dumps(value, separators=(comma, colon), ensure_ascii=ensure_ascii)

    def obj(pairs):
        return "{" + comma.join(f'"{key}"{colon}{value}' for key, value in pairs) + "}"

    def template():
        in_choice = [("text", "%TEXT"), ("token_ids", "%IDS")][
            : draw(st.sampled_from([2, 2, 2, 1]))
        ]
        for key, value in draw(st.lists(IN_CHOICE, max_size=2)):
            in_choice.insert(draw(st.integers(0, 2)), (key, dumps(value)))
        choices = comma.join([obj(in_choice)] * draw(st.sampled_from([1, 1, 1, 2])))
        root = [("id", '"c"'), ("choices", f"[{choices}]"), ("usage", "%USAGE")]
        for key, value in draw(st.lists(IN_ROOT, max_size=1)):
            root.insert(draw(st.integers(0, 3)), (key, dumps(value)))
        return obj(root)

    usual, other = template(), template()
    datas = []
    for shape in draw(st.lists(st.sampled_from([usual, usual, usual, other]), max_size=8)):
        # The ids first: a text may hold what looks like the place of another value.
        filled = shape.replace("%IDS", dumps(draw(IDS))).replace("%USAGE", dumps(draw(USAGES)))
        filled = filled.replace("%TEXT", dumps(draw(TEXTS)))
        datas.append(filled.encode("utf-8", errors="surrogatepass"))
    return datas


# No pace either: a machine may be busy.
THOROUGH = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@THOROUGH
@given(datas=json_streams())
def test_counting_unparsed_is_the_same_as_parsing(datas):
    assert streamed(datas) == fully_parsed(datas)


EDITS = st.lists(
    st.tuples(
        st.integers(0, len(vllm())),
        st.integers(0, 3),
        st.one_of(
            st.sampled_from([b"", b'"', b"\\", b",", b"0", b"[", b"]", b"{", b"}", b":", b" "]),
            st.sampled_from(
                [b"\x00", b"\x1f", b"\x7f", b"\xff", b"\xc3", b"-", b"1.5", b"00", b"1"]
            ),
            st.sampled_from(
                [b'"token_ids":[1,2],', b'","token_ids":[1', b"\\u00", b'\\"', b"null"]
            ),
        ),
    ),
    min_size=1,
    max_size=3,
)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, dropped, added in edits:
        data = data[:at] + added + data[at + dropped :]
    return data


@THOROUGH
@given(edits=EDITS, ids=st.sampled_from([b"5", b"5,6", b"0", b""]))
@example(edits=[(len(VLLM_HEAD), 0, b"\\")], ids=b"5")
@example(edits=[(len(VLLM_HEAD) + 4, 1, b"\\")], ids=b"5")
@example(edits=[(len(VLLM_HEAD) + 5 + len(VLLM_BETWEEN), 0, b"0")], ids=b"5")
@example(edits=[(len(VLLM_HEAD) + 5 + len(VLLM_BETWEEN), 0, b"9" * 5000)], ids=b"5")
def test_a_chunk_that_is_nearly_like_the_others_is_read_as_by_parsing(edits, ids):
    datas = [vllm(), edited(vllm(ids=ids), edits), vllm(b"x")]
    assert streamed(datas) == fully_parsed(datas)


@THOROUGH
@given(text_edits=EDITS, at=st.integers(-3, 8), in_ids=st.booleans())
def test_the_gaps_of_a_shape_hold_no_surprise(text_edits, at, in_ids):
    start = len(VLLM_HEAD) + (5 + len(VLLM_BETWEEN) if in_ids else 0) + at
    datas = [vllm(), *(edited(vllm(), [(start, *edit[1:])]) for edit in text_edits)]
    assert streamed(datas) == fully_parsed(datas)


PIECES = st.lists(
    st.one_of(
        st.sampled_from([as_event(vllm()), as_event(vllm(b"\\n", b"1,2")), DONE, b"\n", b"\r"]),
        st.sampled_from([event(text="a", usage=4), event(token_ids=[]), b'data: {"error":5}\n\n']),
        st.sampled_from([b"data: ", b"data: {}\n\n", b"data: [1]\n\n", b":\n", vllm()[:200]]),
        st.binary(max_size=8),
    ),
    max_size=10,
).map(b"".join)


@given(body=PIECES, cuts=st.lists(st.integers(0, 3000), max_size=20))
def test_nothing_is_raised_and_cuts_change_only_times(body, cuts):
    whole, cut = CompletionStream(), CompletionStream()
    chunks = whole.feed(body, 0)
    edges = [0, *sorted(min(at, len(body)) for at in cuts), len(body)]
    cut_chunks = sum(cut.feed(body[start:end], end) for start, end in itertools.pairwise(edges))
    assert cut_chunks == chunks == whole.chunks == cut.chunks
    one, other = whole.completion(), cut.completion()
    assert other.chunk_tokens == one.chunk_tokens
    assert (other.output_tokens, other.error) == (one.output_tokens, one.error)
    assert sorted(other.chunk_ns) == list(other.chunk_ns)


def framed(body: bytes) -> bytes:
    """One chunk of HTTP's chunked coding."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def familiar() -> CompletionStream:
    """A stream that has seen a chunk of one token."""
    stream = CompletionStream()
    stream.feed(as_event(vllm()), 10)
    return stream


def test_a_whole_frame_like_the_last_event_is_counted_without_the_parser():
    stream = familiar()
    assert stream.feed_frame(framed(as_event(vllm(b" other", b"4,5"))), 20)
    completion = stream.completion()
    assert list(completion.chunk_ns) == [10, 20]
    assert list(completion.chunk_tokens) == [1, 2]


FRAME = framed(as_event(vllm()))
SIZE = FRAME.partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(FRAME[:-1], id="cut"),
        pytest.param(FRAME + b"0\r\n\r\n", id="more than one"),
        pytest.param(FRAME + FRAME, id="two"),
        pytest.param(b"1" + FRAME, id="another size"),
        pytest.param(b"0" + FRAME, id="a leading zero"),
        pytest.param(FRAME.replace(SIZE, SIZE + b";x=1", 1), id="an extension"),
        pytest.param(FRAME.replace(b"data: ", b"DATA: "), id="another field"),
        pytest.param(framed(as_event(vllm()) * 2), id="two events"),
        pytest.param(framed(as_event(vllm())[:-1]), id="an unfinished event"),
        pytest.param(framed(as_event(vllm(b'a\\"'))), id="an escape"),
        pytest.param(framed(as_event(vllm(b"a\r\nb"))), id="a line end in the text"),
        pytest.param(framed(as_event(vllm(ids=b"1,,2"))), id="no list of ids"),
        pytest.param(framed(DONE), id="the end"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_frame_that_is_not_certain_is_left_to_the_parser(frame):
    stream = familiar()
    assert not stream.feed_frame(frame, 20)
    assert stream.chunks == 1


def test_no_frame_is_taken_before_the_events_are_known():
    assert not CompletionStream().feed_frame(FRAME, 20)


def test_a_stream_is_settled_between_events_that_are_known():
    assert not CompletionStream().settled
    stream = familiar()
    assert stream.settled
    stream.feed(b"data: {", 20)
    assert not stream.settled


@THOROUGH
@given(edits=EDITS, ids=st.sampled_from([b"5", b"5,6", b"0"]), merged=st.booleans())
def test_a_frame_that_is_taken_means_what_an_http_parser_makes_of_it(edits, ids, merged):
    frame = framed(as_event(vllm(b" w", ids)) * (1 + merged))
    for position, length, replacement in edits:
        at = position % (len(frame) + 1)
        frame = frame[:at] + replacement + frame[at + length :]
    stream = familiar()
    if stream.feed_frame(frame, 20):
        size, _, rest = frame.partition(b"\r\n")
        assert (len(rest), rest[-2:]) == (int(size, 16) + 2, b"\r\n")
        reference = familiar()
        reference.feed(rest[:-2], 20)
        assert list(stream.completion().chunk_tokens) == list(reference.completion().chunk_tokens)
        assert stream.tokens == reference.tokens

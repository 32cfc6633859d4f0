"""What is served at a URL, and how one request of a load is sent, received and recorded."""

import socket

import pytest

from pytest_moeperf.client import ServedModel, Target, listed_models, resolve, served_models
from pytest_moeperf.driver import play
from pytest_moeperf.endpoint import Answer
from pytest_moeperf.errors import LoadError, UsageError
from pytest_moeperf.records import RequestSpec
from pytest_moeperf.testing import FakeEngine, Script
from pytest_moeperf.workload import Plan

NS_PER_MS = 10**6


def spec(output_tokens=4, prompt=(1, 2, 3), index=0, offset_ns=None):
    return RequestSpec(index=index, prompt=prompt, output_tokens=output_tokens, offset_ns=offset_ns)


def send(url, request=None, *, model="mini-moe", **options):
    """Play one request and return its record."""
    plan = Plan(requests=(request or spec(),), concurrency=1)
    [record] = play(Target(url, model, **options), plan).requests
    return record


@pytest.fixture
def closed_port():
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


def test_every_chunk_is_recorded_with_its_tokens():
    with FakeEngine(Script(tokens_per_chunk=3)) as engine:
        record = send(engine.url, spec(output_tokens=8))
    assert record.error is None
    assert list(record.chunk_tokens) == [3, 3, 2]
    assert (record.prompt_tokens, record.output_tokens, record.asked_output_tokens) == (3, 8, 8)
    stamps = [record.sent_ns, *record.chunk_ns, record.ended_ns]
    assert stamps == sorted(stamps)


def test_latencies_are_those_of_the_server():
    with FakeEngine(Script(ttft_ms=60, itl_ms=20)) as engine:
        record = send(engine.url, spec(output_tokens=3))
    # The server cannot be early; how late a busy machine makes it is not this test's business.
    assert record.chunk_ns[0] - record.sent_ns >= 60 * NS_PER_MS
    assert record.chunk_ns[-1] - record.sent_ns >= 100 * NS_PER_MS


@pytest.mark.parametrize("continuous_usage", [False, True])
def test_token_counts_without_token_ids_come_from_the_running_usage(continuous_usage):
    with FakeEngine(Script(tokens_per_chunk=2, token_ids=False)) as engine:
        record = send(engine.url, spec(output_tokens=5), continuous_usage=continuous_usage)
    # Without it a chunk counts as one token, and only the total at the end is right.
    assert list(record.chunk_tokens) == ([2, 2, 1] if continuous_usage else [1, 1, 1])
    assert record.output_tokens == 5


def test_the_schedule_is_what_latencies_count_from():
    plan = Plan(requests=(spec(offset_ns=30 * NS_PER_MS),), concurrency=None)
    with FakeEngine() as engine:
        repeat = play(Target(engine.url, engine.model), plan)
    [record] = repeat.requests
    assert record.scheduled_ns == record.start_ns == repeat.started_ns + 30 * NS_PER_MS


def test_a_text_prompt_is_sent_as_text():
    with FakeEngine() as engine:
        record = send(engine.url, spec(prompt="four words of text"))
    assert record.prompt_tokens == 4


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script(error_status=500), "HTTP 500: scripted failure"),
        (Script(error_status=503), "HTTP 503: scripted failure"),
        (Script(api_key="secret"), "HTTP 401: Unauthorized"),
        (
            Script(max_model_len=6),
            (
                "HTTP 400: This model's maximum context length is 6 tokens. "
                "However, you requested 7 tokens."
            ),
        ),
        (Script(disconnect_after_tokens=2), "connection lost"),
    ],
)
def test_what_goes_wrong_is_a_short_text_in_the_record(script, error):
    with FakeEngine(script) as engine:
        record = send(engine.url)
    assert record.error == error
    assert record.ended_ns >= record.sent_ns


def test_tokens_before_a_broken_connection_are_kept():
    with FakeEngine(Script(disconnect_after_tokens=2, itl_ms=20)) as engine:
        record = send(engine.url)
    assert list(record.chunk_tokens) == [1, 1]
    assert record.output_tokens is None


def test_an_unknown_model_is_refused_by_the_server():
    with FakeEngine() as engine:
        record = send(engine.url, model="other")
    assert record.error == "HTTP 404: The model `other` does not exist."


def test_the_key_is_sent_and_never_shown():
    with FakeEngine(Script(api_key="sec%dret")) as engine:
        assert send(engine.url, api_key="sec%dret").error is None
    assert "sec%dret" not in repr(Target("http://h", "m", api_key="sec%dret"))


@pytest.mark.parametrize("key", ["two\r\nlines", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_misuse(key):
    with FakeEngine() as engine, pytest.raises(UsageError, match="API key") as caught:
        send(engine.url, api_key=key)
    assert key not in str(caught.value)


def test_an_address_is_that_of_the_url():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        address = resolve(f"http://127.0.0.1:{port}/base")
    assert (address.family, address.sockaddr) == (socket.AF_INET, ("127.0.0.1", port))
    assert (address.name, address.tls_host) == (f"127.0.0.1:{port}", None)


def test_an_address_where_nobody_listens_is_told(closed_port):
    reason = rf"^cannot connect to 127\.0\.0\.1:{closed_port} \(Connection refused\)$"
    with pytest.raises(ConnectionError, match=reason):
        resolve(f"http://127.0.0.1:{closed_port}")


def test_a_play_where_nobody_listens_never_starts(closed_port):
    url = f"http://127.0.0.1:{closed_port}"
    with pytest.raises(LoadError) as caught:
        send(url)
    assert str(caught.value) == (
        f"{url} does not answer: cannot connect to 127.0.0.1:{closed_port} (Connection refused)"
    )


def test_served_models_are_listed_with_their_context():
    with FakeEngine(Script(max_model_len=512), model="m") as engine:
        assert served_models(engine.url) == (ServedModel(name="m", max_model_len=512),)


@pytest.mark.parametrize(
    ("answer", "models"),
    [
        (Answer(200, '{"data": []}'), ()),
        (Answer(200, '{"data": [{"id": "m"}, 3, {}]}'), (("m", None),)),
        (Answer(200, '{"data": 3}'), None),
        (Answer(200, "[]"), None),
        (Answer(200, "<html>"), None),
        (Answer(503, '{"data": []}'), None),
    ],
)
def test_what_lists_models_is_told_from_what_does_not(answer, models):
    expected = models and tuple(ServedModel(name=name, max_model_len=n) for name, n in models)
    assert listed_models(answer) == expected


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://h:70000", "ftp://h"])
def test_a_bad_url_is_misuse(url):
    message = f"'{url}' is not a server's URL; give one such as http://127.0.0.1:8000"
    for ask in (served_models, resolve):
        with pytest.raises(UsageError) as caught:
            ask(url)
        assert str(caught.value) == message


def test_a_url_without_a_server_is_misuse(closed_port):
    url = f"http://127.0.0.1:{closed_port}"
    with pytest.raises(UsageError, match=f"no server at {url}: cannot connect to 127.0.0.1"):
        served_models(url)


def test_a_server_of_something_else_is_misuse():
    with (
        FakeEngine() as engine,
        pytest.raises(UsageError, match=r"/version is no server that streams /v1/completions"),
    ):
        served_models(f"{engine.url}/version")

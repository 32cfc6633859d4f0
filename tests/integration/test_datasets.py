import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import pytest_moeperf
from pytest_moeperf.datasets import Data, load_data, load_sharegpt, load_trace
from pytest_moeperf.errors import StorageError, UsageError
from pytest_moeperf.workload import Burst, ShareGPT, TraceReplay

S = 1_000_000_000


@pytest.fixture
def sharegpt(tmp_path):
    def write_file(*conversations):
        turns = [
            {"conversations": [{"from": "human", "value": text} for text in conversation]}
            for conversation in conversations
        ]
        path = tmp_path / "sharegpt.json"
        path.write_text(json.dumps([*turns, {"id": "no turns"}, "not even an object"]))
        return path

    return write_file


def test_sharegpt_gives_first_prompts_without_counting_their_answers(sharegpt):
    path = sharegpt(["Hi", "Hello", "more"], ["alone"], ["", "x"], [1, 2])
    assert load_sharegpt(path) == (("Hi", None), ("", None))


def test_sharegpt_answers_are_counted_with_a_tokenizer(sharegpt):
    tokenizer = Path(pytest_moeperf.__file__).parent / "catalogue" / "tokenizer" / "tokenizer.json"
    counted = Tokenizer.from_file(str(tokenizer)).encode("The answer is longer.")
    path = sharegpt(
        ["What is the question?", "The answer is longer."],
        ["Hi", "The answer is longer."],
        ["What is the question?", "No"],
        ["What is the question? " * 50, "The answer is longer."],
    )
    loaded = load_sharegpt(path, tokenizer=tokenizer, max_prompt_tokens=40)
    assert loaded == (("What is the question?", len(counted.ids)),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"sharegpt\.json: not JSON"),
        ("{}", "a list of conversations"),
        ("[]", "no conversation with a prompt, an answer"),
    ],
)
def test_a_file_that_is_not_sharegpt_is_misuse(content, message, tmp_path):
    (tmp_path / "sharegpt.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        load_sharegpt(tmp_path / "sharegpt.json")


def test_a_sharegpt_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"nothing\.json: cannot be read, No such file"):
        load_sharegpt(tmp_path / "nothing.json")


# Traces


@pytest.fixture
def trace(tmp_path):
    """Writes a file and gives its path."""

    def write(content, name="trace.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    "content",
    [
        "time_s,input_tokens,output_tokens\n0.5,12,3\n0,7,1\n",
        "time_ms,input_tokens,output_tokens\n500,12,3\n0,7,1\n",
        "user,output_tokens,input_tokens,time_s\nann,3,12,0.5\nbob,1,7,0\n",
        "\ufefftime_s, input_tokens, output_tokens\r\n0.5, 12, 3\r\n\r\n0, 7, 1\r\n",
        (
            '{"time_s": 0.5, "input_tokens": 12, "output_tokens": 3}\n'
            '{"time_s": 0, "input_tokens": 7, "output_tokens": 1}\n'
        ),
        # Mooncake
        (
            '\n{"timestamp": 500, "input_length": 12, "output_length": 3, "hash_ids": [46, 47]}\n\n'
            '{"timestamp": 0.0, "input_length": 7, "output_length": 1, "hash_ids": []}'
        ),
        "timestamp,input_length,output_length\n500,12,3\n0,7,1\n",
    ],
)
def test_a_trace_is_read_in_each_spelling_and_in_the_order_of_the_file(trace, content):
    assert load_trace(trace(content)) == ((S // 2, 12, 3), (0, 7, 1))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # As published in 2023, with seven digits, and in 2024, with a zone.
        ("2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.9951690"),
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:04.324509+00:00"),
        ("2024-05-10T02:00:00.009930+02:00", "2024-05-10T00:00:04.324509Z"),
    ],
)
def test_dates_of_azure_are_as_far_apart_as_they_say(trace, first, second):
    path = trace(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{first},4808,10\n{second},3180,8\n")
    one, other = load_trace(path)
    assert (other.at_ns - one.at_ns) == 4_314_579_000
    assert (one.input_tokens, one.output_tokens) == (4808, 10)


HEADER = "time_s,input_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": holds no request"),
        (" \n\n", ": holds no request"),
        (HEADER, ": holds no request"),
        (HEADER + "0,1,1\n-1,1,1\n", ":3: time_s = '-1': give a number from 0 up"),
        (HEADER + "NaN,1,1\n", ":2: time_s = 'NaN': give a number from 0 up"),
        (HEADER + "inf,1,1\n", ":2: time_s = 'inf': give a number from 0 up"),
        (HEADER + "soon,1,1\n", ":2: time_s = 'soon': give a number from 0 up"),
        (HEADER + "0,1,1\n\n1,,1\n", ":4: no input_tokens"),
        (HEADER + "0,1\n", ":2: no output_tokens"),
        (HEADER + "0,many,1\n", ":2: input_tokens = 'many': give a number from 0 up"),
        (HEADER + "0,1.5,1\n", ":2: input_tokens = '1.5': give a whole number from 1 up"),
        (HEADER + "0,1,0\n", ":2: output_tokens = '0': give a whole number from 1 up"),
        (HEADER + "0,1,-4\n", ":2: output_tokens = '-4': give a number from 0 up"),
        (
            "at,in,out\n0,1,1\n",
            ":2: 'at,in,out' are not the names of a trace; valid are time_s,input_tokens,",
        ),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n9,1,1\n", ":2: TIMESTAMP = '9': give a date"),
        ('{"time_s": 0', ":1: not a JSON object"),
        ('{"time_s": 0, "input_tokens": 1, "output_tokens": 1}\n[1]\n', ":2: not a JSON object"),
        (
            '{"time_s": NaN, "input_tokens": 1, "output_tokens": 1}\n',
            ":1: time_s = nan: give a number from 0 up",
        ),
        (
            '{"time_s": 0, "input_tokens": [1], "output_tokens": 1}\n',
            r":1: input_tokens = \[1\]: give a number from 0 up",
        ),
        (
            '{"time_s": 0, "input_tokens": true, "output_tokens": 1}\n',
            ":1: input_tokens = True: give a number from 0 up",
        ),
        (
            '{"time_s": 0, "input_tokens": 1, "output_tokens": 1}\n{"time_s": 1}\n',
            ":2: no input_tokens",
        ),
        (b"\xff\xfe\x00", ": not a trace, which is a text in UTF-8"),
        ("time_s\n" + "9" * 200_000, ": not CSV, field larger than field limit"),
    ],
)
def test_what_is_wrong_with_a_trace_is_one_line_with_file_and_line(trace, content, message):
    with pytest.raises(UsageError, match=rf"trace\.csv{message}") as refused:
        load_trace(trace(content))
    assert str(refused.value).count("\n") == 0


def test_a_trace_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"nothing\.csv: cannot be read, No such file"):
        load_trace(tmp_path / "nothing.csv")


# What a workload takes


def test_a_workload_gets_what_its_files_hold(trace, sharegpt):
    chats = ShareGPT(str(sharegpt(["Hi", "Hello"])))
    replay = TraceReplay(path=str(trace(HEADER + "0,5,6\n")))
    assert load_data(Burst(requests=1, isl=9, osl=9)) == Data()
    assert load_data(Burst(requests=1, isl=9, osl=9, prompts=chats)) == Data(
        conversations=(("Hi", None),)
    )
    assert load_data(replay) == Data(trace=((0, 5, 6),))

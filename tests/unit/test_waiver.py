"""The file that excuses lowered bars."""

import json

import pytest

from pytest_moeperf.errors import BaselineError
from pytest_moeperf.store import schema
from pytest_moeperf.waiver import Waiver, decode_waivers, encode_waivers, latest_expiry

WAIVER = Waiver(
    baseline="h200/vllm/serving.burst/mixtral.burst",
    metric=None,
    rule="removed",
    reason="the workload is no longer served",
    owner="@somebody",
    issue="https://example.org/1",
    expires="2026-05-02",
)


def decoded(text):
    return decode_waivers(text, source="w.json", schema=schema("waivers-1"))


def test_a_waiver_is_a_line_and_reads_back():
    text = encode_waivers([WAIVER])
    assert text.splitlines()[3] == (
        '    {"baseline": "h200/vllm/serving.burst/mixtral.burst", "metric": null, '
        '"rule": "removed", "reason": "the workload is no longer served", '
        '"owner": "@somebody", "issue": "https://example.org/1", "expires": "2026-05-02"}'
    )
    assert decoded(text) == (WAIVER,)


def test_a_waiver_lasts_at_most_ninety_days():
    assert latest_expiry("2026-02-01") == "2026-05-02"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("owner", "", '$.waivers[0].owner: "" must have at least 1 characters'),
        ("reason", "\x1b[2J", "$.waivers[0].reason: "),
        ("issue", "see above", '$.waivers[0].issue: "see above" must match'),
        ("expires", "2026-02-30", "$.waivers[0].expires: 2026-02-30 is no date"),
        ("baseline", "../x", '$.waivers[0].baseline: "../x" must match'),
        ("force", True, "'force' was unexpected"),
    ],
)
def test_a_waiver_of_another_form_is_refused(field, value, message):
    document = json.loads(encode_waivers([WAIVER]))
    document["waivers"][0][field] = value
    with pytest.raises(BaselineError) as caught:
        decoded(json.dumps(document))
    assert str(caught.value).startswith("w.json: ")
    assert message in str(caught.value)

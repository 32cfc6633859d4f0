"""What an outcome means to its test."""

from pytest_moeperf.outcomes import FAILING, GOOD, failing
from pytest_moeperf.records import Outcome


def test_what_is_good_fails_no_test():
    assert not GOOD & failing(release=True)


def test_before_a_release_an_open_question_fails_too():
    assert failing(release=False) == FAILING
    assert failing(release=True) - FAILING == {Outcome.INCONCLUSIVE}

from pytest_moeperf.patience import Patience


def test_the_second_look_comes_at_once_and_further_ones_after_longer_pauses():
    slept, said = [], []
    patience = Patience(left_s=120.0, sleep=slept.append)
    looks = list(patience.looks(lambda phase, _detail: said.append(phase)))
    assert looks == [2, 3, 4, 5]
    assert slept == [15.0, 30.0, 45.0]
    assert patience.left_s == 30.0
    assert said[0] == "pausing 15 s before look 3 at a doubtful figure"


def test_a_session_without_patience_still_looks_twice():
    slept = []
    patience = Patience(left_s=20.0, sleep=slept.append)
    assert list(patience.looks(lambda *_: None)) == [2, 3]
    assert list(patience.looks(lambda *_: None)) == [2]
    assert slept == [15.0]


def test_patience_that_is_spent_does_not_sleep():
    slept = []
    patience = Patience(left_s=9.0, sleep=slept.append)
    assert [patience.spend(5.0), patience.spend(5.0), patience.spend(0.0)] == [True, False, True]
    assert slept == [5.0]


def test_no_pause_is_made_for_a_look_that_is_not_taken():
    slept = []
    for _ in Patience(sleep=slept.append).looks(lambda *_: None):
        break
    assert slept == []

import pytest

from utils.round_watch import Limits, Verdict, alarms, judge_rounds

LIMITS = Limits(
    recall_drop=0.1, similarity_rise=0.1, agreement_drop=0.05, loss_rise=0.1, distance=0.2
)
FIRST = {
    "agreement": 0.8,
    "recall": 0.5,
    "ms_ssim": 0.3,
    "denoising_loss": 0.4,
    "reward": 3.0,
    "held_out_reward": 3.0,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recall": 0.449}, "recall fell from 0.500 to 0.449"),
        ({"ms_ssim": 0.401}, "more alike: MS-SSIM 0.300 to 0.401"),
        ({"agreement": 0.749}, "seen less often: 0.800 to 0.749"),
        ({"denoising_loss": 0.441}, "rose from 0.4000 to 0.4410"),
        ({"distance_to_first": 0.081}, "far from the first one: 0.0810"),
        ({"reward": 3.5, "held_out_reward": 2.9}, "fell by 0.100: the reward is being gamed"),
    ],
)
def test_each_guard_says_what_is_wrong_and_passes_just_below(changes, message):
    (found,) = alarms(FIRST, FIRST | changes, LIMITS)
    assert message in found
    ((name, value),) = list(changes.items())[:1]
    near = FIRST.get(name, 0.0) + 0.9 * (value - FIRST.get(name, 0.0))
    if name == "reward":  # both rise: nothing is gamed
        assert not alarms(FIRST, FIRST | {"reward": 3.5, "held_out_reward": 3.1}, LIMITS)
    else:
        assert not alarms(FIRST, FIRST | {name: near}, LIMITS)


def test_scores_that_are_not_there_raise_no_alarm():
    assert not alarms({"fid": 3.0}, {"fid": 9.0}, LIMITS)


def rounds(*values, name="agreement"):
    return [{name: value} for value in values]


def judged(scores, wrong=None, **changes):
    settings = {"select_by": "agreement", "patience": 1, "num_rounds": 9} | changes
    return judge_rounds(scores, wrong or [[] for _ in scores], **settings)


def test_it_goes_on_while_rounds_get_better_and_the_best_is_the_output_not_the_last():
    assert judged(rounds(0.5, 0.6)) == Verdict(1, "")
    found = judged(rounds(0.5, 0.6, 0.55))
    assert found.best == 1
    assert found.stop == "agreement has not become better since round 1"


def test_patience_lets_a_worse_round_pass():
    assert judged(rounds(0.5, 0.6, 0.55), patience=2).stop == ""
    assert judged(rounds(0.5, 0.6, 0.55, 0.7), patience=2) == Verdict(3, "")


def test_of_a_distance_the_lowest_is_best():
    assert judged(rounds(9, 7, 8, name="fid"), select_by="fid", patience=2).best == 1


def test_an_alarm_stops_it_and_keeps_the_round_from_being_the_output():
    found = judged(rounds(0.5, 0.6, 0.9), [[], [], ["recall fell"]])
    assert found == Verdict(1, "round 2: recall fell")


def test_it_stops_after_the_last_round():
    assert judged(rounds(0.5, 0.6, 0.7), num_rounds=2) == Verdict(2, "all 2 rounds are done")


def test_fewer_rounds_than_are_done_stop_it_too():
    assert judged(rounds(0.5, 0.6, 0.7), num_rounds=1) == Verdict(2, "all 2 rounds are done")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_score_that_is_no_number_is_an_alarm(value):
    assert alarms(FIRST, FIRST | {"recall": value}, LIMITS) == ["recall is no finite number"]


def test_equal_is_not_better():
    assert judged(rounds(0.5, 0.5)).best == 0

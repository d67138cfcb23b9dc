import pytest

from utils.captioner import Written
from utils.finding_labeler import load_labeler
from utils.pair_agreement import confidence_threshold

EDEMA, DRUSEN = "Macular edema with cysts.", "Drusen under the retina."


def threshold(reports, truths, precision):
    return confidence_threshold(reports, truths, load_labeler("oct"), precision=precision)


def test_the_threshold_is_the_least_confidence_at_which_enough_reports_are_right():
    reports = [
        Written(EDEMA, -0.1),
        Written(EDEMA, -0.2),
        Written(DRUSEN, -0.3),  # wrong
        Written(EDEMA, -0.4),
        Written(DRUSEN, -0.5),  # wrong
    ]
    truths = [EDEMA] * 5
    assert threshold(reports, truths, 1.0) == -0.2
    assert threshold(reports, truths, 0.75) == -0.4
    assert threshold(reports, truths, 0.6) == -0.5


def test_reports_of_equal_confidence_pass_together_or_not_at_all():
    reports = [Written(EDEMA, -0.1), Written(EDEMA, -0.2), Written(DRUSEN, -0.2)]
    assert threshold(reports, [EDEMA] * 3, 0.9) == -0.1


def test_where_no_report_is_right_there_is_no_threshold():
    assert threshold([Written(DRUSEN, -0.1)], [EDEMA], 0.5) is None


@pytest.mark.parametrize("text", ["Macular edema and drusen.", "Normal retina.", ""])
def test_a_report_with_other_findings_is_not_right(text):
    assert threshold([Written(text, -0.1)], [EDEMA], 0.5) is None

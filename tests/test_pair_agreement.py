import pytest
from improvement_toys import always_says, save_classifier, write_clinic

from utils.captioner import Written
from utils.classifier import Classifier
from utils.dataset import load_dataset
from utils.finding_labeler import load_labeler
from utils.pair_agreement import agrees_with_label, confidence_threshold, findings_by_label

EDEMA, DRUSEN = "Macular edema with cysts.", "Drusen under the retina."


def threshold(reports, truths, precision):
    return confidence_threshold(reports, truths, load_labeler("oct"), precision=precision)


def reports(*right_and_confidence):
    """Ten reports of each pair, of scans with edema."""
    return [
        Written(EDEMA if right else DRUSEN, confidence)
        for right, confidence in right_and_confidence
        for _ in range(10)
    ]


def test_the_threshold_is_the_least_confidence_at_which_enough_reports_are_right():
    written = reports((1, -0.1), (1, -0.2), (0, -0.3), (1, -0.4), (0, -0.5))
    truths = [EDEMA] * 50
    assert threshold(written, truths, 1.0) == -0.2
    assert threshold(written, truths, 0.75) == -0.4
    assert threshold(written, truths, 0.6) == -0.5


def test_reports_of_equal_confidence_pass_together_or_not_at_all():
    written = reports((1, -0.1), (1, -0.2), (0, -0.2))
    assert threshold(written, [EDEMA] * 30, 0.9) == -0.1


def test_where_no_report_is_right_or_too_few_are_there_is_no_threshold():
    assert threshold(reports((0, -0.1)), [EDEMA] * 10, 0.5) is None
    assert threshold(reports((1, -0.1))[:9], [EDEMA] * 9, 0.5) is None


def test_a_report_is_borne_out_where_true_reports_of_what_the_classifier_sees_name_the_same(
    tmp_path,
):
    clinic, labels = write_clinic(tmp_path / "clinic")
    save_classifier(tmp_path / "classifier", labels, seed=0)
    always_says(tmp_path / "classifier", "drusen")
    data = load_dataset(clinic)
    labeler = load_labeler("oct")
    known = findings_by_label(data.records, labeler)
    assert known[("drusen",)] == {frozenset({"drusen"})}
    written = [Written(text, -0.1) for text in (DRUSEN, EDEMA, f"{EDEMA} {DRUSEN}", "")]
    found = agrees_with_label(
        data.records[:4],
        written,
        classifier=Classifier.load(tmp_path / "classifier"),
        known=known,
        labeler=labeler,
    )
    assert found.tolist() == [True, False, False, False]


@pytest.mark.parametrize("text", ["Macular edema and drusen.", "Normal retina.", ""])
def test_a_report_with_other_findings_is_not_right(text):
    assert threshold([Written(text, -0.1)] * 10, [EDEMA] * 10, 0.5) is None

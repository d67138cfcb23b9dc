"""Figures of weighted reports are those of reports that occur as often; keys, borders, Chinese."""

import math

import numpy as np
import pytest
from report_pairs import CHINESE, FINDINGS, fixed_pairs
from sacrebleu.metrics import BLEU
from test_finding_scores import Mention

from utils.report_scores import METRIC_NAMES, NO_WORDS, RANGES, ReportScorer
from utils.report_words import words_of

REFERENCES, WRITTEN = fixed_pairs()


class WordLabeler:
    """Finds the demo's findings by their names, and one that nobody names."""

    names = (*FINDINGS, "macular hole")

    def mentions(self, text):
        text = text.lower()
        sides = [{"side": side} for side in ("left", "right") if side in text]
        return [Mention(n, "present", (sides or [{}])[0]) for n in self.names if n in text]

    def findings(self, text):
        return {mention.finding: mention.status for mention in self.mentions(text)}


def figures_of(statistics, weights=None):
    weights = np.ones((1, len(statistics.table))) if weights is None else weights
    return dict(zip(statistics.keys, statistics.figures(weights).T))


def test_weighted_figures_are_those_of_reports_that_occur_as_often():
    scorer = ReportScorer(REFERENCES, labeler=WordLabeler())
    drawn = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), size=3)
    found = figures_of(scorer.statistics(WRITTEN), drawn.astype(float))
    for draw, weights in enumerate(drawn):
        rows = np.repeat(np.arange(200), weights)
        again = ReportScorer([REFERENCES[row] for row in rows], labeler=WordLabeler())
        expected = figures_of(again.statistics([WRITTEN[row] for row in rows]))
        for key in found.keys() - {("all", "cider"), ("all", "cider_d")}:  # frequencies are fixed
            if key[1].startswith("distinct"):
                assert math.isnan(found[key][draw])
            else:
                assert found[key][draw] == pytest.approx(expected[key][0], abs=1e-12, nan_ok=True)


def test_weighted_cider_is_the_weighted_mean_of_the_reports():
    statistics = ReportScorer(REFERENCES).statistics(WRITTEN)
    single = figures_of(statistics, np.eye(200))["all", "cider"]
    weights = np.arange(200.0)[None]
    assert figures_of(statistics, weights)["all", "cider"] == pytest.approx(
        single @ weights[0] / weights.sum()
    )


def test_a_resampled_bleu_is_sacrebleus_of_the_resample():
    rows = np.random.default_rng(1).integers(200, size=200)
    statistics = ReportScorer(REFERENCES).statistics(WRITTEN)
    found = figures_of(statistics, np.bincount(rows, minlength=200)[None])
    texts = [[" ".join(words_of(side[row])) for row in rows] for side in (WRITTEN, REFERENCES)]
    scorer = BLEU(tokenize="none", smooth_method="none")
    expected = scorer.corpus_score(texts[0], [texts[1]]).score / 100
    assert found["all", "bleu_4"][0] == pytest.approx(expected, abs=1e-9)


def test_true_reports_have_the_best_scores():
    found = figures_of(ReportScorer(REFERENCES, labeler=WordLabeler()).statistics(REFERENCES))
    perfect = {m for t, m in found if t == "all" and m.startswith(("bleu", "finding"))}
    assert len(perfect) == 7
    assert [found["all", metric][0] for metric in perfect] == pytest.approx([1] * 7)
    assert found["macro", "finding_f1"][0] == found["all", "attribute_side"][0] == 1
    for (_, metric), (value,) in found.items():
        low, high = RANGES.get(metric, (0, 1))
        assert math.isnan(value) or low <= value <= high


def test_keys_names_and_the_main_figure():
    plain, labeled = ReportScorer(REFERENCES), ReportScorer(REFERENCES, labeler=WordLabeler())
    assert plain.main == ("all", "cider") and labeled.main == ("all", "finding_f1")
    assert {plain.main, ("all", "meteor_no_synonyms")} <= set(plain.keys)
    assert labeled.keys[: len(plain.keys)] == plain.keys
    assert {("macro", "finding_f1"), ("drusen", "finding_recall")} <= set(labeled.keys)
    assert {metric for _, metric in labeled.keys} <= METRIC_NAMES.keys()
    assert labeled.keys == labeled.statistics(WRITTEN).keys


def test_a_model_that_writes_nothing_scores_0_and_says_what_is_undefined():
    statistics = ReportScorer(REFERENCES, labeler=WordLabeler()).statistics([""] * 200)
    found = figures_of(statistics)
    assert found["all", "bleu_1"] == found["all", "cider"] == found["all", "finding_f1"] == 0
    undefined = {key for key, (value,) in found.items() if math.isnan(value)}
    assert undefined == {key for key in statistics.reasons if key[0] != "macro"} | {
        ("macro", "finding_precision")
    }
    assert statistics.reasons["all", "distinct_1"] == NO_WORDS


def test_chinese_reports_have_scores_between_nothing_and_all():
    statistics = ReportScorer([real for real, _ in CHINESE]).statistics([new for _, new in CHINESE])
    found = figures_of(statistics)
    for metric in ("bleu_2", "rouge_1", "rouge_l", "meteor_no_synonyms"):
        assert 0.3 < found["all", metric][0] < 1
    assert 1 < found["all", "cider_d"][0] < 10


def test_wrong_borders_are_refused():
    class Named(WordLabeler):
        names = ("drusen", "all")

    with pytest.raises(ValueError, match="a finding is called 'all'"):
        ReportScorer(REFERENCES, labeler=Named())
    with pytest.raises(ValueError, match="no reference"):
        ReportScorer([])
    with pytest.raises(ValueError, match="1 reports for 200 references"):
        ReportScorer(REFERENCES).statistics(["drusen"])


def test_reports_about_a_figure_are_those_whose_reference_has_it():
    statistics = ReportScorer(
        ["drusen left", "drusen", "epiretinal membrane"], labeler=WordLabeler()
    ).statistics(["drusen", "", "drusen"])
    counting = statistics.counting()
    assert counting["drusen", "finding_f1"].tolist() == [True, True, False]
    assert counting["all", "attribute_side"].tolist() == [True, False, False]
    assert counting["all", "bleu_1"].all() and counting["macro", "finding_f1"].all()

"""Words of reports, and scores of words against the reference packages on 200 fixed pairs."""

import math
import zipfile
from itertools import pairwise

import numpy as np
import pytest
from nltk.translate.meteor_score import exact_match, stem_match
from report_pairs import CHINESE, FINDINGS, fixed_pairs
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU

from utils.cider import cider
from utils.cli import UserError
from utils.report_words import words_of
from utils.text_metrics import bleu, bleu_counts, distinct, load_wordnet, meteor, rouge

TEXTS = dict(zip(("references", "written"), fixed_pairs()))
PAIRS = {side: [words_of(text) for text in texts] for side, texts in TEXTS.items()}
SYNONYMS = {"edema": "oedema", "drusen": "deposit"}


def one_pair(reference, written):
    return {"references": [words_of(reference)], "written": [words_of(written)]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("About 300µm, 300 \u03bcm and 0.5 mm.", "about 300 μm 300 μm and 0.5 mm"),
        ("OCT-A: low-reflective (T1)", "oct a low reflective t1"),
        ("黄斑水肿，约300微米。", "黄 斑 水 肿 约 300 微 米"),
        ("カーテン、망막 부종", "カ ー テ ン 망막 부종"),
        ("ＯＣＴ２", "oct2"),
        ("हिन्दी Ödem naïve", "हिन्दी ödem naïve"),
        (" \n.-—% ", ""),
    ],
)
def test_words_of_any_script(text, expected):
    assert words_of(text) == expected.split()


def test_the_fixed_pairs_are_what_the_claims_are_about():
    written = TEXTS["written"]
    assert len(written) == len(TEXTS["references"]) == 200 and "" in written
    assert any(len(words) == 1 for words in PAIRS["written"])
    assert CHINESE[0][1] in written
    assert all(any(name in text.lower() for text in written) for name in FINDINGS)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("chosen", [slice(None), slice(0, 4), slice(8, 12), slice(5, 6)])
def test_bleu_is_sacrebleus(order, chosen):
    pairs = {side: words[chosen] for side, words in PAIRS.items()}
    found = bleu(bleu_counts(**pairs).sum(axis=0)[None])[0, order - 1]
    scorer = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
    texts = {side: [" ".join(words) for words in pairs[side]] for side in pairs}
    expected = scorer.corpus_score(texts["written"], [texts["references"]]).score / 100
    assert found == pytest.approx(expected, abs=1e-6)
    assert expected > 0.5 or chosen != slice(None)


def test_rouge_is_rouge_scores():
    class Words(Tokenizer):
        def tokenize(self, text):
            return words_of(text)

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
    expected = [
        [one.fmeasure for one in scorer.score(real, new).values()]
        for real, new in zip(TEXTS["references"], TEXTS["written"])
    ]
    found = rouge(**PAIRS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(found, axis=0).min() == 1


def test_meteor_without_synonyms_is_made_of_nltks_first_two_stages():
    expected = []
    for real, new in zip(PAIRS["references"], PAIRS["written"]):
        same, left, rest = exact_match(new, real)
        stems, _, _ = stem_match([w for _, w in left], [w for _, w in rest])
        matches = sorted(same + [(left[i][0], rest[j][0]) for i, j in stems])
        if not matches:
            expected.append(0)
            continue
        chunks = 1 + sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in pairwise(matches))
        precision, recall = len(matches) / len(new), len(matches) / len(real)
        mean = 10 * precision * recall / (recall + 9 * precision)
        expected.append(mean * (1 - 0.5 * (chunks / len(matches)) ** 3))
    np.testing.assert_allclose(meteor(**PAIRS), expected, atol=1e-6)


def write_wordnet(folder):
    """A WordNet of two nouns with a synonym each, in the format of wndb(5WN)."""
    folder.mkdir(parents=True)
    (folder / "lexnames").write_text("00\tnoun.Tops\t1\n")
    data, index = "", []
    for word, other in SYNONYMS.items():
        place = len(data)
        data += f"{place:08d} 00 n 02 {word} 0 {other} 0 000 | a finding\n"
        index += [f"{name} n 1 0 1 0 {place:08d}\n" for name in (word, other)]
    (folder / "data.noun").write_text(data)
    (folder / "index.noun").write_text("".join(index))
    for name in ("adj", "adv", "verb"):
        (folder / f"data.{name}").write_text("")
        (folder / f"index.{name}").write_text("")
    for name in ("adj.exc", "adv.exc", "noun.exc", "verb.exc", "index.sense", "cntlist.rev"):
        (folder / name).write_text("")
    return folder


def zipped(folder):
    path = folder.parent / "wordnet.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"wordnet/{file.name}")
    return path


@pytest.mark.parametrize("pack", [lambda folder: folder, zipped])
def test_meteor_finds_synonyms_in_a_wordnet_from_a_folder_or_a_zip(tmp_path, pack):
    wordnet = load_wordnet(pack(write_wordnet(tmp_path / "corpora" / "wordnet")))
    pair = one_pair("mild macular edema", "mild macular oedema")
    same = one_pair("mild macular edema", "mild macular edema")
    assert meteor(**pair, wordnet=wordnet)[0] == meteor(**same)[0] == pytest.approx(1 - 0.5 / 27)
    assert meteor(**pair)[0] < 0.7
    assert meteor(**one_pair("cyst", "drusen"), wordnet=wordnet)[0] == 0


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("no zip"), id])
def test_what_is_no_wordnet_is_refused(tmp_path, make):
    make(tmp_path / "wordnet")
    with pytest.raises(UserError, match=r"(?s)--wordnet_dir .*not nltk's WordNet.*wordnet\.zip"):
        load_wordnet(tmp_path / "wordnet")


def test_distinct_n_of_a_worked_example():
    reports = [words_of("mild drusen, mild edema"), words_of("mild drusen"), [], []]
    assert distinct(reports, 1) == pytest.approx(3 / 6)
    assert distinct(reports, 2) == pytest.approx(3 / 4)
    assert math.isnan(distinct([["drusen"]], 2))


def pycocoevalcap_cider(references, written, **options):
    scorer_of = pytest.importorskip("pycocoevalcap.cider.cider_scorer", reason="no pycocoevalcap")
    scorer = scorer_of.CiderScorer(**options)
    for real, new in zip(references, written):
        scorer += (" ".join(new), [" ".join(real)])
    return scorer.compute_score()[1]


def test_cider_d_is_pycocoevalcaps_cider():
    found = cider(**PAIRS)[1]
    np.testing.assert_allclose(found, pycocoevalcap_cider(**PAIRS), atol=1e-4)
    assert found.max() > 9 and found.min() == 0


def test_cider_is_that_without_penalty_where_no_word_is_repeated():
    once = [row for row, words in enumerate(PAIRS["written"]) if len(set(words)) == len(words)]
    pairs = {side: [words[row] for row in once] for side, words in PAIRS.items()}
    expected = pycocoevalcap_cider(**pairs, sigma=1e9)
    assert len(once) > 40
    np.testing.assert_allclose(cider(**pairs)[0], expected, atol=1e-4)


def test_cider_is_the_cosine_of_scikit_learns_counts():
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="no scikit-learn")
    expected = np.zeros(200)
    for order in range(1, 5):
        counter = text.CountVectorizer(
            analyzer=lambda words, n=order: list(zip(*(words[i:] for i in range(n))))
        )
        counter.fit(PAIRS["references"] + PAIRS["written"])
        real, new = (counter.transform(PAIRS[side]).toarray() for side in PAIRS)
        weights = np.log(200 / np.maximum((real > 0).sum(axis=0), 1))
        real, new = real * weights, new * weights
        norms = np.linalg.norm(real, axis=1) * np.linalg.norm(new, axis=1)
        expected += 10 / 4 * (real * new).sum(axis=1) / np.where(norms, norms, 1)
    np.testing.assert_allclose(cider(**PAIRS)[0], expected, atol=1e-6)


def test_repeating_words_lowers_cider_d_only():
    references = [words_of(text) for text in ("mild drusen", "large cysts", "a flat fovea")]
    repeated = [words_of("mild drusen " * 9), *references[1:]]
    plain, clipped = cider(references=references, written=repeated)
    assert plain[0] > 4 and clipped[0] < 1


def test_cider_of_a_single_pair_is_0():
    assert [found.tolist() for found in cider(**one_pair("drusen", "drusen"))] == [[0], [0]]

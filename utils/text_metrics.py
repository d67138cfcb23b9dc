"""How like written reports are to their references in words: BLEU, ROUGE, METEOR, distinct-n.

All take words of ``utils/report_words.py``; the counting is sacrebleu's, rouge-score's and nltk's.
A share is in [0, 1], where sacrebleu writes percent. Shapes: N reports, B resamples.
"""

from __future__ import annotations

import warnings
import zipfile
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import nltk
import numpy as np
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.data import FileSystemPathPointer, ZipFilePathPointer
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from utils.cider import Words, ngram_counts
from utils.cli import UserError
from utils.ranked_outcomes import ratio

MAX_ORDER = 4
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def bleu_counts(*, references: Words, written: Words) -> np.ndarray:
    """What corpus BLEU is made of, of each report.

    Returns:
        (N, 10) float64: words written, words of the reference, n-grams of n = 1 to 4 that the
        reference has too (clipped), n-grams of n = 1 to 4.
    """
    scorer = BLEU(tokenize="none", effective_order=True)  # the order only spares a warning
    found = [
        scorer.sentence_score(" ".join(new), [" ".join(real)])
        for real, new in zip(references, written, strict=True)
    ]
    rows = [(one.sys_len, one.ref_len, *one.counts, *one.totals) for one in found]
    return np.array(rows, np.float64).reshape(len(rows), 2 + 2 * MAX_ORDER)


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 of a corpus, Papineni et al. 2002 (https://aclanthology.org/P02-1040).

    Not smoothed, as ``sacrebleu.corpus_bleu(..., smooth_method="none")``: where no n-gram is right
    the score is 0. sacrebleu's default invents part of a match there, which in a corpus of few
    short reports, or a resample of one, is most of the score.

    Args:
        sums: (B, 10), rows of ``bleu_counts`` added up; fractions of counts are welcome.

    Returns:
        (B, 4) in [0, 1].
    """
    lengths, right, all_ngrams = sums[:, :2], sums[:, 2 : 2 + MAX_ORDER], sums[:, 2 + MAX_ORDER :]
    written = np.where(lengths[:, 0] > 0, lengths[:, 0], 1)
    brevity = np.exp(np.minimum(0, 1 - lengths[:, 1] / written))
    precision = np.nan_to_num(ratio(right, all_ngrams))
    with np.errstate(divide="ignore"):
        logs = np.cumsum(np.log(precision), axis=1) / np.arange(1, MAX_ORDER + 1)
    return brevity[:, None] * np.exp(logs)


def rouge(*, references: Words, written: Words) -> np.ndarray:
    """ROUGE-1, ROUGE-2 and ROUGE-L of each report, Lin 2004 (https://aclanthology.org/W04-1013).

    F1 of words, of pairs of words, and of the longest common subsequence of the whole report.

    Returns:
        (N, 3) in [0, 1]; 0 where a text is empty, ROUGE-2 also where one has a single word.
    """
    scorer = RougeScorer(ROUGE_TYPES, tokenizer=SimpleNamespace(tokenize=list))
    found = [scorer.score(real, new) for real, new in zip(references, written, strict=True)]
    rows = [[one[kind].fmeasure for kind in ROUGE_TYPES] for one in found]
    return np.array(rows, np.float64).reshape(len(rows), len(ROUGE_TYPES))


def meteor(
    *, references: Words, written: Words, wordnet: WordNetCorpusReader | None = None
) -> np.ndarray:
    """METEOR of each report, Lavie and Agarwal 2007 (https://aclanthology.org/W07-0734).

    Words match if equal, of the same stem (Porter's, of English) or, with a WordNet, synonyms; the
    score falls with the number of pieces in which they match. Without a WordNet the last stage is
    left out: a lower score, which must not be compared with one that has it.

    Args:
        references: Words of N references.
        written: Words of N reports.
        wordnet: Of ``load_wordnet``; None: no synonyms.

    Returns:
        (N,) in [0, 1), 0.5 at most for a single word; 0 where a text is empty.
    """
    stemmer = SimpleNamespace(stem=lru_cache(maxsize=None)(PorterStemmer().stem))
    look_up = lru_cache(maxsize=None)(wordnet.synsets) if wordnet else lambda word: ()
    synonyms = SimpleNamespace(synsets=look_up)
    return np.array(
        [
            single_meteor_score(real, new, stemmer=stemmer, wordnet=synonyms)
            for real, new in zip(references, written, strict=True)
        ],
        np.float64,
    )


def distinct(written: Words, order: int) -> float:
    """Distinct-n: different n-grams per n-gram, Li et al. 2016 (https://arxiv.org/abs/1510.03055).

    How varied the reports are, right or wrong. It falls with their number: compare equal N only.

    Returns:
        The share in (0, 1]; NaN if no report has n words.
    """
    (counts,) = ngram_counts(order, written)
    return float(ratio(np.array(counts.shape[1]), counts.sum()))


class _WordNet(WordNetCorpusReader):
    """English alone: the map for other languages would look for files elsewhere."""

    def map_wn(self, version: str = "wordnet") -> None:
        """Nothing is mapped."""


def load_wordnet(path: Path) -> WordNetCorpusReader:
    """The WordNet of nltk, as the folder ``corpora/wordnet`` or the file ``wordnet.zip``.

    Raises:
        UserError: If it is not there or not complete.
    """
    place = str(path.resolve())
    if place not in nltk.data.path:  # nltk reads from no other place
        nltk.data.path.append(place)
    try:
        is_folder = path.is_dir()
        root = FileSystemPathPointer(place) if is_folder else ZipFilePathPointer(place, "wordnet/")
        with warnings.catch_warnings():  # that there are no other languages
            warnings.simplefilter("ignore")
            return _WordNet(root, None)
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--wordnet_dir {path}: this is not nltk's WordNet: {error}\nGive the folder "
            "corpora/wordnet or the file wordnet.zip of nltk's data "
            "(https://www.nltk.org/nltk_data)."
        ) from error

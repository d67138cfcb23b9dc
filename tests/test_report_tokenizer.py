"""The tokenizer of reports: nothing is lost, and the file depends on the texts alone."""

import json
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from utils.cli import UserError
from utils.report_tokenizer import decode_reports, encode_reports, train_tokenizer

CORPUS = [
    "Two small drusen at the fovea, up to 63 µm.",
    "Mild macular edema with two small intraretinal cysts at the fovea.",
    "黄斑水肿，视网膜增厚。",
]
HARD = [
    "",
    " two  spaces\tand a tab, then\n\r\na line ",
    "it 's n't a . b , c",
    "视网膜色素上皮脱离。",
    "👁️‍🗨️ 👩🏽‍⚕️",
    "µm μm é e\u0301 한 각",
    "<bos> as written <eos><pad>",
    "\x00\ufeff\u200d",
]


def many_texts() -> list[str]:
    """400 texts with many pairs of tokens that are equally frequent."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdeéµ黄斑", k=5)) for _ in range(300)]
    return [" ".join(rng.choices(words, k=8)) for _ in range(400)]


def file_of(tokenizer) -> str:
    return tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("corpus", [CORPUS, ["one"], [""]])
def test_any_text_comes_back(corpus, tmp_path):
    trained = train_tokenizer(corpus)
    trained.save_pretrained(tmp_path)
    for tokenizer in (trained, AutoTokenizer.from_pretrained(tmp_path)):
        ids, num_cut = encode_reports(tokenizer, HARD, max_tokens=1000)
        assert num_cut == 0
        expected = [unicodedata.normalize("NFC", text) for text in HARD]
        assert decode_reports(tokenizer, ids) == expected


def test_a_report_runs_from_first_to_last_token_and_holds_no_other_special_one():
    tokenizer = train_tokenizer(CORPUS)
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert special == {0, 1, 2}
    for ids in encode_reports(tokenizer, HARD, max_tokens=1000)[0]:
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert not special & set(ids[1:-1])


def test_what_is_frequent_becomes_one_token():
    tokenizer = train_tokenizer(["drusen"] * 3 + ["fluid"])
    assert tokenizer.tokenize("drusen") == ["drusen"]
    assert len(tokenizer.tokenize("fluid")) == 5


def test_the_vocabulary_is_not_exceeded():
    assert len(train_tokenizer(many_texts(), vocabulary_size=300)) == 300


def test_longer_reports_are_cut_and_counted():
    tokenizer = train_tokenizer(["one"])
    ids, num_cut = encode_reports(tokenizer, ["abc", "abcd", "abcde"], max_tokens=6)
    assert num_cut == 1
    assert [len(row) for row in ids] == [5, 6, 6]
    assert decode_reports(tokenizer, ids) == ["abc", "abcd", "abcd"]
    assert all(row[-1] == tokenizer.eos_token_id for row in ids)


def test_the_order_of_texts_changes_no_byte():
    texts = many_texts()
    assert file_of(train_tokenizer(texts)) == file_of(train_tokenizer(texts[::-1]))


def test_neither_threads_nor_hash_seeds_change_a_byte(tmp_path):
    program = (
        "import json, sys; from utils.report_tokenizer import train_tokenizer; "
        "train_tokenizer(json.load(sys.stdin)).save_pretrained(sys.argv[1])"
    )
    for seed, threads in (("1", "1"), ("2", "4")):
        settings = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / seed)],
            input=json.dumps(many_texts()).encode(),
            env=os.environ | settings | {"TOKENIZERS_PARALLELISM": "true"},
            cwd=Path(__file__).parents[1],
            check=True,
        )
    files = [(tmp_path / seed / "tokenizer.json").read_bytes() for seed in "12"]
    assert files[0] == files[1]
    train_tokenizer(many_texts()).save_pretrained(tmp_path)
    assert files[0] == (tmp_path / "tokenizer.json").read_bytes()


def test_too_small_a_vocabulary_and_no_text_are_refused():
    with pytest.raises(UserError, match="of 258 tokens: 259 or more"):
        train_tokenizer(CORPUS, vocabulary_size=258)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([])

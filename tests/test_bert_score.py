"""BERTScore against the package of its authors, on a small BERT with random weights."""

import string

import numpy as np
import pytest
import torch
from report_pairs import fixed_pairs

from utils.bert_score import BertScore
from utils.cli import UserError
from utils.report_words import words_of

TEXTS = dict(zip(("references", "written"), fixed_pairs()))
MAX_TOKENS = 40  # some of the reports are longer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of three layers and its word pieces."""
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word for side in TEXTS.values() for text in side for word in words_of(text)})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *string.punctuation]
    tokenizer = transformers.BertTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=MAX_TOKENS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(pieces),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
        model = transformers.BertModel(config, add_pooling_layer=False)  # as many folders have it
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layer", [1, 3])
def test_f1_is_that_of_bert_score(folder, layer):
    package = pytest.importorskip("bert_score", reason="no bert-score")
    found = BertScore(folder, layer=layer).f1(**TEXTS)
    # The package itself fails at an empty text with transformers 5: what it means to give is 0.
    full = [row for row in range(200) if all(side[row].strip() for side in TEXTS.values())]
    expected = package.score(
        [TEXTS["written"][row] for row in full],
        [TEXTS["references"][row] for row in full],
        model_type=str(folder),
        num_layers=layer,
        device="cpu",
        use_fast_tokenizer=True,
    )[2]
    np.testing.assert_allclose(found[full], expected.numpy(), atol=1e-6)
    assert len(full) == 197 and not np.delete(found, full).any()
    assert np.ptp(found[full]) > 0.2


def test_the_same_text_scores_1_and_the_pairs_beside_it_do_not_matter(folder):
    model = BertScore(folder, layer=2)
    references, written = TEXTS.values()
    whole = model.f1(references=references, written=written)
    alone = model.f1(references=references[40:41], written=written[40:41])
    assert alone[0] == pytest.approx(whole[40], abs=1e-6)
    full = [text for text in references if text.strip()]
    same = model.f1(references=full, written=full)
    np.testing.assert_allclose(same, 1, atol=1e-6)
    assert same.max() <= 1


def test_what_is_no_encoder_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="has 3 layers, not layer 9"):
        BertScore(folder, layer=9)
    with pytest.raises(UserError, match=r"--bert_score_model .*cannot be loaded"):
        BertScore(tmp_path, layer=1)

"""The small image-text encoder: its loss and words by hand, its training on simulated scans."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from demo.simulate import simulate
from utils.contrastive_encoder import contrastive_loss, grams_of, learn_grams
from utils.contrastive_training import MIN_PAIRS, train_encoder
from utils.dataset import Dataset, load_dataset
from utils.features import extract
from utils.image_sets import ImageSet
from utils.image_text import embed
from utils.retrieval_pairs import pairs_to_train_on
from utils.searcher import Searcher

FINDINGS = ("normal", "macular edema", "pigment epithelial detachment")
SIZE = {"resolution": 32, "resize_mode": "center_crop"}


def records_of(scans, folder):
    """Records of simulated scans as files."""
    folder.mkdir()
    rows = []
    for index, scan in enumerate(scans):
        scan.image.save(folder / f"{index}.png")
        rows.append((index, scan.text, scan.label, scan.truth["patient_id"]))
    lines = [f'{i}.png,"{text}",{label},{patient}' for i, text, label, patient in rows]
    table = "\n".join(["file_name,text,label,patient_id", *lines])
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    return list(load_dataset(folder, check_pixels=False))


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """240 scans of 32 pixels, two a patient, with three findings."""
    options = {"seed": 1, "resolution": 32, "findings": FINDINGS, "looks": ["spectral"]}
    scans = [simulate(index, **options) for index in range(240)]
    return records_of(scans, tmp_path_factory.mktemp("clinic") / "scans")


@pytest.fixture(scope="module")
def encoder(clinic):
    return train_encoder(clinic[:120], relevance="label", max_epochs=20, **SIZE)


def image_set(name, records):
    return ImageSet(name, Dataset(records, None), *SIZE.values())


def overall(searcher, synthetic, labels=FINDINGS):
    found = searcher.score(image_set("synthetic", synthetic), labels=labels)
    return {name: entry for name, (entry, _) in found.items()}


def test_words_numbers_and_neighbours():
    assert grams_of("Cyst of 12.5 um, NASAL") == [
        "cyst", "of", "12.5", "um", "nasal", "cyst of", "of 12.5", "12.5 um", "um nasal",
    ]  # fmt: skip
    assert grams_of("黄斑 edema") == ["黄", "斑", "edema", "黄 斑", "斑 edema"]
    assert grams_of("...") == []


def test_only_what_stands_in_two_texts_is_learnt():
    grams = learn_grams(["large cyst", "large drusen", "cyst cyst"])
    assert grams == {"cyst": 1, "large": 2}


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_loss_is_the_cross_entropy_of_clip():
    eye = torch.eye(2, dtype=torch.bool)
    right = unit([1, 0], [0, 1])
    loss = contrastive_loss(right, right, scale=torch.tensor(2.0), related=eye)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)))
    wrong = contrastive_loss(right, right.flip(0), scale=torch.tensor(2.0), related=eye)
    assert float(wrong) == pytest.approx(math.log(1 + math.exp(2)))


def test_related_pairs_are_no_negatives():
    images = unit([1, 0], [1, 0.1], [0, 1])
    related = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    scale = torch.tensor(3.0)
    loss = contrastive_loss(images, images, scale=scale, related=related)
    cosines = 3 * images @ images.T
    first = -cosines[0, 0] + torch.logsumexp(cosines[0, [0, 2]], 0)
    second = -cosines[1, 1] + torch.logsumexp(cosines[1, [1, 2]], 0)
    third = -cosines[2, 2] + torch.logsumexp(cosines[2], 0)
    assert float(loss) == pytest.approx(float(first + second + third) / 3, rel=1e-5)
    alone = contrastive_loss(images, images, scale=scale, related=torch.ones(3, 3).bool())
    assert float(alone) == 0


def test_embeddings_have_unit_length_and_batches_change_nothing(encoder, clinic):
    scans = [record.image() for record in clinic[:9]]
    one, four = (extract(encoder, scans, batch_size=n).pool for n in (1, 4))
    assert np.linalg.norm(one, axis=1) == pytest.approx(np.ones(9), abs=1e-5)
    assert one.tobytes() == four.tobytes()
    vectors = encoder.embed_texts(["words never seen before", "", clinic[0].text])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert vectors[0] != pytest.approx(vectors[2], abs=1e-2)


def test_a_synthetic_image_is_asked_for_its_prompt(encoder, clinic):
    drawn = replace(clinic[0], row={**clinic[0].row, "prompt": "macular edema"})
    bare = replace(clinic[1], text="")
    seen = embed(encoder, [drawn, bare], np.eye(2, 128, dtype=np.float32))
    assert seen.texts == ("macular edema", "")
    assert list(seen.text_vectors) == ["macular edema"]


def test_an_image_of_any_size_and_mode_is_taken(encoder):
    prepared = encoder.prepare(Image.new("RGB", (91, 40), "gray"))
    assert prepared.shape == (32, 32, 1)
    assert prepared.dtype == np.uint8
    assert extract(encoder, [Image.new("RGB", (91, 40), "gray")]).pool.shape == (1, 128)


def test_same_seed_same_weights(clinic):
    def trained(**changes):
        options = {"relevance": "label", "max_epochs": 2, **SIZE, **changes}
        return train_encoder(clinic[:48], **options).sha256

    assert trained(seed=3) == trained(seed=3, num_workers=2)
    assert trained(seed=3) != trained(seed=4)
    assert trained(seed=3) != trained(seed=3, relevance="text")


def test_real_scans_find_their_label_and_shuffled_ones_are_at_chance(encoder, clinic):
    """The synthetic set is real scans of other patients: as they are, and with shuffled labels."""
    real, synthetic = clinic[120:180], clinic[180:]
    order = np.random.default_rng(0).permutation(60)
    shuffled = [
        replace(synthetic[i], labels=synthetic[j].labels, text=synthetic[j].text)
        for i, j in enumerate(order)
    ]
    searcher = Searcher(image_set("real", real), None, model=encoder)
    good, bad = (overall(searcher, records) for records in (synthetic, shuffled))
    for direction in ("image_to_image", "image_to_text"):
        name = f"retrieval_{direction}_recall_at_1"
        assert good[name]["value"] > good[name]["chance"] + 0.4
        assert good[name]["real"] > good[name]["chance"] + 0.4
        assert abs(bad[name]["value"] - bad[name]["chance"]) < 0.15
        assert bad[name]["real"] > bad[name]["chance"] + 0.4
    name = "retrieval_text_to_image_recall_at_5"
    assert good[name]["value"] > bad[name]["value"] + 0.1


def test_without_training_set_one_half_trains_and_the_other_is_measured(clinic):
    pairs, judged, notes = pairs_to_train_on(clinic, None, seed=0)
    assert len(pairs) == len(judged) == 120
    assert {r.patient_id for r in pairs}.isdisjoint(clinic[i].patient_id for i in judged)
    assert "trained on 120 of the real images" in notes[0]


def test_patients_of_the_real_set_are_not_trained_on(clinic):
    pairs, judged, notes = pairs_to_train_on(clinic[:60], clinic[40:100], seed=0)
    assert judged.tolist() == list(range(60))
    assert pairs == clinic[60:100]
    assert notes[0].startswith("20 training images left out")


def test_too_few_pairs_give_no_value_and_the_reason(clinic):
    few = [replace(record, text="") for record in clinic[:30]] + clinic[30 : 29 + MIN_PAIRS]
    searcher = Searcher(image_set("real", clinic[60:80]), image_set("train", few))
    assert searcher.model is None
    entry = overall(searcher, clinic[80:90])["retrieval_image_to_text_recall_at_5"]
    assert entry["value"] is None
    assert entry["notes"] == ["19 real images with a text to train the encoder on: 20 are needed"]
    with pytest.raises(ValueError, match="20 are needed"):
        train_encoder(few, relevance="text", **SIZE)


def test_without_labels_the_text_is_relevant_and_one_real_set_is_enough(clinic):
    bare = [replace(record, labels=()) for record in clinic[:90]]
    searcher = Searcher(image_set("real", bare[:60]), None, seed=1)
    found = overall(searcher, bare[60:], labels=())
    entry = found["retrieval_image_to_text_recall_at_1"]
    assert (entry["n_real"], entry["relevance"]) == (30, "text")
    (first, *_) = found.values()
    assert "trained on 30 of the real images" in first["notes"][0]

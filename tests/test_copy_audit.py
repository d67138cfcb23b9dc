from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from demo.simulate import simulate
from utils import perceptual_hash
from utils.audit_images import nearest, perceptual_repeats, read_images
from utils.copy_audit import audit, copy_threshold
from utils.copy_training import DetectorOptions, train_copy_detector
from utils.metrics import wilson_interval
from utils.perceptual_hash import best_correlation, is_mirrored, thumbnail

SIDE = 64


def scans(count, seed, start=0):
    return [simulate(start + i, seed=seed, resolution=128).image.convert("L") for i in range(count)]


def degraded(image, rng):
    """JPEG of quality 30 after 5 % of the width and height are cut off somewhere."""
    width, height = image.size
    kept = [round(0.95 * side) for side in image.size]
    left, top = rng.integers(0, width - kept[0] + 1), rng.integers(0, height - kept[1] + 1)
    crop = image.crop((left, top, left + kept[0], top + kept[1]))
    stored = BytesIO()
    crop.resize(image.size, Image.Resampling.LANCZOS).save(stored, "JPEG", quality=30)
    return Image.open(stored).convert("L")


def audit_images(images, kind="x", patients=None):
    names = [f"{kind}{index}" for index in range(len(images))]
    return read_images(images, names, resolution=SIDE, patients=patients)


def unit(vectors):
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def at_cosines(cosines):
    """Vectors in the plane at these cosines to (1, 0)."""
    cosines = np.asarray(cosines, np.float64)
    return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def blank():
    """Sixty different scans to give embeddings by hand."""
    return scans(60, seed=9)


def planar_audit(blank, *, held_out, synthetic, train_patients=None, patients=None):
    """An audit of one training image at (1, 0) and others at given cosines to it."""
    count = len(held_out)
    return audit(
        train=(audit_images(blank[:1], "t", train_patients), at_cosines([1])),
        held_out=(audit_images(blank[1 : 1 + count], "h", patients), at_cosines(held_out)),
        synthetic=(audit_images(blank[-len(synthetic) :], "s"), at_cosines(synthetic)),
    )


@pytest.mark.parametrize(
    ("count", "rank"), [(1, 1), (10, 10), (19, 19), (20, 20), (39, 38), (99, 95), (100, 96)]
)
def test_threshold_is_the_percentile_with_its_finite_sample_correction(count, rank):
    values = np.random.default_rng(0).permutation(np.arange(1, count + 1) / count)
    assert copy_threshold(values) == pytest.approx(rank / count)
    if count >= 19:
        assert (values > copy_threshold(values)).mean() <= 0.05


def test_a_new_held_out_image_lies_above_the_threshold_with_at_most_five_percent():
    """The plain 95th percentile of 30 values is passed by 6.3 % of new ones; 20,000 trials."""
    drawn = np.random.default_rng(0).random((20_000, 31))
    rate = np.mean([row[-1] > copy_threshold(row[:-1]) for row in drawn])
    assert rate == pytest.approx(1 / 31, abs=0.004)
    plain = np.mean(drawn[:, -1] > np.percentile(drawn[:, :-1], 95, axis=1))
    assert plain > 0.05


def test_no_held_out_image_no_threshold():
    assert copy_threshold(np.empty(0)) is None


def test_nearest_is_that_of_a_full_product_whatever_the_block(monkeypatch):
    rng = np.random.default_rng(0)
    queries, keys = unit(rng.normal(size=(50, 8))), unit(rng.normal(size=(70, 8)))
    whole = queries @ keys.T
    monkeypatch.setattr("utils.audit_images._BLOCK", 7)
    index, value = nearest(queries, keys)
    assert index.tolist() == whole.argmax(1).tolist()
    assert value == pytest.approx(whole.max(1))


def test_copies_are_those_above_the_threshold_and_certain_ones_above_all_held_out(blank):
    held_out = np.arange(1, 41) / 100  # threshold: the 39th of 40
    found = planar_audit(blank, held_out=held_out, synthetic=[0.2, 0.395, 0.9, 0.385])
    assert found.threshold == pytest.approx(0.39)
    assert found.copies.tolist() == [False, True, True, False]
    assert found.certain.tolist() == [False, False, True, False]
    entry = found.entry()
    assert entry["value"] == 0.5
    assert entry["ci95"] == wilson_interval(2, 4)
    assert entry["floor"] == pytest.approx(1 / 40)
    assert (entry["num_copies"], entry["num_certain"], entry["num_sources"]) == (2, 1, 1)
    assert (entry["n_real"], entry["n_synthetic"], entry["n_held_out"]) == (1, 4, 40)
    assert entry["direction"] == "lower"
    assert "notes" not in entry
    assert [row["synthetic"] for row in found.rows()] == ["s2", "s1"]


def test_held_out_images_of_training_patients_set_no_threshold(blank):
    cosines = [0.99, 0.98, *np.linspace(0.1, 0.3, 30)]
    patients = ["a", "a", *[None] * 30]
    found = planar_audit(
        blank, held_out=cosines, synthetic=[0.9], train_patients=["a"], patients=patients
    )
    assert found.copies.tolist() == [True]
    assert len(found.held_out) == 30
    assert found.notes[0].startswith("2 held-out image(s) are of a patient of the training images")
    unknown = planar_audit(
        blank, held_out=cosines, synthetic=[0.9], train_patients=[None], patients=[None] * 32
    )
    assert unknown.copies.tolist() == [False]  # no patient is not a patient


def test_held_out_images_that_are_training_images_set_no_threshold(blank):
    """Equal, mirrored, compressed: each would lift the threshold to 1."""
    stored = BytesIO()
    blank[0].save(stored, "JPEG", quality=40)
    leaks = [blank[0], ImageOps.mirror(blank[0]), Image.open(stored)]
    found = audit(
        train=(audit_images(blank[:1], "t"), at_cosines([1])),
        held_out=(
            audit_images([*blank[1:31], *leaks], "h"),
            at_cosines([*np.linspace(0.1, 0.3, 30), 1, 1, 1]),
        ),
        synthetic=(audit_images(blank[31:32], "s"), at_cosines([0.9])),
    )
    assert found.threshold < 0.31
    assert [note.split(" and do not")[0] for note in found.notes] == [
        "2 held-out image(s) equal a training image pixel for pixel",
        "1 held-out image(s) look like a training image (25 of 255 hash bits differ at most)",
    ]
    assert found.notes[0].endswith("h30, h31")


def test_without_usable_held_out_images_there_is_no_share_but_duplicates_are_counted(blank):
    found = audit(
        train=(audit_images(blank[:1], "t"), at_cosines([1])),
        held_out=(audit_images(blank[:1], "h"), at_cosines([1])),
        synthetic=(audit_images([blank[0], blank[5]], "s"), at_cosines([1, 0.9])),
    )
    entry = found.entry()
    assert entry["value"] is None
    assert entry["exact_duplicates"] == 1
    assert "no threshold and no share" in entry["notes"][-1]
    assert "ci95" not in entry
    assert [row["synthetic"] for row in found.rows()] == ["s0"]


def test_few_held_out_images_are_told(blank):
    found = planar_audit(blank, held_out=np.linspace(0, 0.5, 18), synthetic=[0.9])
    assert found.threshold == pytest.approx(0.5)
    assert "18 held-out images" in found.notes[0]
    assert "1 in 19 " in found.notes[0]
    assert not planar_audit(blank, held_out=np.linspace(0, 0.5, 19), synthetic=[0.9]).notes


def test_equal_images_are_copies_whatever_the_threshold_and_repeats_are_counted(blank):
    train = blank[:3]
    synthetic = [
        blank[10],
        train[1],
        ImageOps.mirror(train[2]),
        train[1],
        ImageOps.mirror(train[1]),
    ]
    found = audit(
        train=(audit_images(train, "t"), at_cosines([1, 0.9, 0.8])),
        held_out=(audit_images(blank[20:50], "h"), at_cosines(np.ones(30))),
        synthetic=(audit_images(synthetic, "s"), at_cosines([0.5, 1, 1, 1, 1])),
    )
    assert found.threshold == 1
    assert found.exact.tolist() == found.copies.tolist() == [False, True, True, True, True]
    assert found.perceptual.tolist() == found.exact.tolist()
    assert found.neighbours[1:].tolist() == [1, 2, 1, 1]
    assert found.mirrored[1:].tolist() == [False, True, False, True]
    assert found.repeated.tolist() == [False, False, False, True, True]
    assert found.repeated_perceptually.tolist() == found.repeated.tolist()
    assert found.entry()["exact_repeats"] == 2


def test_perceptual_hash_survives_compression_and_tells_scans_apart(blank):
    rng = np.random.default_rng(0)
    stored = []
    for image in blank:
        stored.append(BytesIO())
        image.save(stored[-1], "JPEG", quality=30)
    thumbs, compressed = (
        np.stack([thumbnail(image) for image in images])
        for images in (blank, [Image.open(file) for file in stored])
    )
    bits, others = (perceptual_hash.perceptual_hash(t) for t in (thumbs, compressed))
    assert set(np.unique(bits)) == {-1, 1}
    distance = (perceptual_hash.NUM_BITS - bits @ others.T) / 2
    assert distance.diagonal().max() <= perceptual_hash.MAX_DISTANCE
    apart = distance[~np.eye(len(blank), dtype=bool)]
    assert apart.min() > perceptual_hash.MAX_DISTANCE
    noise = rng.integers(0, 256, (1, 32, 32))
    brighter = np.clip(0.5 * noise + 90, 0, 255)
    assert np.array_equal(*(perceptual_hash.perceptual_hash(t) for t in (noise, brighter)))
    # A negative has every bit turned but for the median's own; no bit is of the brightness.
    positive, negative = (perceptual_hash.perceptual_hash(t)[0] for t in (noise, 255 - noise))
    assert positive @ negative == 2 - perceptual_hash.NUM_BITS


def test_repeats_are_those_of_an_earlier_image_whatever_the_block(blank, monkeypatch):
    thumbs = np.stack([thumbnail(image) for image in blank[:9]])
    thumbs = np.concatenate([thumbs, thumbs[4:6, :, ::-1], thumbs[:1]])
    monkeypatch.setattr("utils.audit_images._BLOCK", 4)
    assert np.flatnonzero(perceptual_repeats(thumbs)).tolist() == [9, 10, 11]


def test_mirrored_copies_are_told_from_others_though_shifted(blank):
    thumbs = np.stack([thumbnail(image) for image in blank])
    shifted = np.roll(thumbs, (1, -2), axis=(1, 2))
    assert not is_mirrored(shifted, thumbs).any()
    assert is_mirrored(shifted[..., ::-1], thumbs).all()
    inner = thumbs[:, 4:-4, 4:-4]
    assert best_correlation(np.roll(inner, 2, axis=2), inner) == pytest.approx(1, abs=1e-5)
    assert best_correlation(np.zeros((1, 32, 32)), thumbs[:1]).tolist() == [0]


def test_planted_copies_of_simulated_scans_are_found_and_held_out_scans_are_not():
    """30 of 300: 10 exact, 10 mirrored, 10 cropped and compressed; the others are held out."""
    rng = np.random.default_rng(0)
    train, others, calibration = scans(120, seed=1), scans(270, seed=2), scans(270, seed=3)
    sources = rng.choice(len(train), 30, replace=False)
    planted = [train[i] for i in sources[:10]]
    planted += [ImageOps.mirror(train[i]) for i in sources[10:20]]
    planted += [degraded(train[i], rng) for i in sources[20:]]
    sets = {
        "train": audit_images(train),
        "held_out": audit_images(others),
        "calibration": audit_images(calibration),
        "synthetic": audit_images(planted + others),
    }
    options = DetectorOptions(resolution=SIDE, min_steps=80, max_steps=80)
    detector = train_copy_detector(sets["train"].gray, options)
    sides = {name: (images, detector.embed(images.gray)) for name, images in sets.items()}

    found = audit(train=sides["train"], held_out=sides["held_out"], synthetic=sides["synthetic"])
    assert found.copies[:30].sum() >= 27
    assert found.copies[30:].mean() <= 0.05
    assert (found.neighbours[:30] == sources).sum() >= 27
    assert found.exact.tolist() == [True] * 20 + [False] * 280
    right_way_round = found.mirrored[:30] == (np.arange(30) // 10 == 1)
    assert right_way_round.sum() >= 28  # phantoms are almost symmetric

    apart = audit(train=sides["train"], held_out=sides["calibration"], synthetic=sides["synthetic"])
    assert apart.copies[:30].sum() >= 27
    assert apart.copies[30:].mean() <= 0.08  # 5 % and what the draw of 270 and 270 adds

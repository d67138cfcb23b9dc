"""Whether anything but the pixels tells real from synthetic: a classifier tries to find out."""

import json
import shutil
import struct
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import rating_clinic as clinic
from scipy.stats import binomtest
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_predict

from utils import blind_images
from utils.image_files import png_bytes
from utils.rating_store import Store

NUM_IMAGES = 100  # of each arm
NUM_RATERS = 2  # what one may ask at once is limited
CHANCE_LIMIT = 1e-3  # how seldom a blind study may be called a leaking one
RATERS = [f"Dr {number}" for number in range(NUM_RATERS)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return (
        clinic.write_real_set(folder / "real", NUM_IMAGES),
        clinic.write_synthetic_set(folder / "gan", NUM_IMAGES),
    )


@pytest.fixture(scope="module")
def blind_study(tmp_path_factory, sets):
    return make_study(tmp_path_factory.mktemp("blind") / "study", sets)


def make_study(folder, sets):
    flags = ["--num_images", str(NUM_IMAGES), "--questions", "turing", "quality", "agreement"]
    return clinic.create_study(folder, *sets, *flags, "--repeat_share", "0", "--raters", *RATERS)


def traits(study, log_path) -> tuple[np.ndarray, np.ndarray]:
    """All that can be observed of each image but its pixels and text, and whether it is real.

    The raters look at disjoint halves of the images.
    """
    rows, is_real = [], []
    listing = {path.name: place for place, path in enumerate((study / "images").iterdir())}
    tokens = clinic.tokens(study)
    with clinic.running_server(study, log_path) as (_, url), Store.open(study) as store:
        for half, rater in enumerate(store.raters()):
            order = store.presentations(rater)
            shown = [one for one in order if one.item % NUM_RATERS == half]
            with httpx.Client(base_url=url, headers=clinic.bearer(tokens[rater.name])) as client:
                for one, observed in zip(shown, _observed(client, store, rater, shown)):
                    path = study / "images" / one.images[0].file
                    rows.append([*observed, one.position, *_on_disk(path), listing[path.name]])
                    is_real.append(one.images[0].arm == "real")
    width = max(map(len, rows))
    return np.array([row + [-1.0] * (width - len(row)) for row in rows]), np.array(is_real)


def _observed(client, store, rater, shown) -> Iterator[list[float]]:
    """What a browser sees of each: names, headers, lengths, times, form of the file."""
    looked_at = {one.position for one in shown}
    for one in store.presentations(rater):
        if one.position in looked_at:
            item = client.get(f"/api/items/{one.position}")
            image = client.get(f"/api/images/{item.json()['images'][0]}")
            yield [
                *item.json()["images"][0].encode(),
                len(item.content) - len(item.json()["text"].encode()),
                *_reply_traits(item, with_length=False),
                *_reply_traits(image, with_length=True),
                *_file_traits(image.content),
            ]
        store.record(rater, one.position, clinic.answers_to({"questions": one.questions}))


def _reply_traits(reply, *, with_length: bool) -> list[float]:
    headers = [f"{name}: {value}" for name, value in reply.headers.items() if name != "date"]
    if not with_length:  # of the text
        headers = [line for line in headers if not line.startswith("content-length")]
    lengths = [float(len(line)) for line in headers]
    declared = float(reply.headers["content-length"]) if with_length else 0.0
    return [reply.elapsed.total_seconds(), len(headers), declared, *lengths]


def _file_traits(data: bytes) -> list[float]:
    """Length and structure of a PNG, without its pixels and their checksums."""
    found, place = [float(len(data))], 8
    while place < len(data):
        length, name = struct.unpack(">I4s", data[place : place + 8])
        found += [length, int.from_bytes(name, "big")]
        content = data[place + 8 : place + 8 + length]
        found += list(content) if name == b"IHDR" else list(content[:7])  # zlib's and its block's
        place += 12 + length
    return found


def _on_disk(path) -> list[float]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns % 10**9, status.st_ino, *path.stem.encode()]


def accuracy(observed: np.ndarray, is_real: np.ndarray) -> tuple[float, float]:
    """Share that cross-validated forests tell right, and how likely guessing does as well."""
    forest = RandomForestClassifier(60, min_samples_leaf=3, random_state=0)
    right = int((cross_val_predict(forest, observed, is_real, cv=5) == is_real).sum())
    test = binomtest(right, len(is_real), 0.5, alternative="greater")
    return right / len(is_real), test.pvalue


def copy_of(study, folder):
    """The same study before anybody answered, its files' times kept."""
    return shutil.copytree(study, folder)


def test_nothing_but_the_pixels_tells_real_from_synthetic(tmp_path, blind_study):
    study = copy_of(blind_study, tmp_path / "study")
    observed, is_real = traits(study, tmp_path / "log")
    assert len(is_real) == 2 * NUM_IMAGES and is_real.mean() == 0.5
    share, chance = accuracy(observed, is_real)
    assert chance > CHANCE_LIMIT, f"{share:.0%} were told right"


def test_the_same_classifier_finds_compressed_files_out(tmp_path, sets, monkeypatch):
    monkeypatch.setattr(blind_images, "stored_png", png_bytes)
    observed, is_real = traits(make_study(tmp_path / "study", sets), tmp_path / "log")
    share, chance = accuracy(observed, is_real)
    assert share > 0.95 and chance < 1e-9


def test_the_same_classifier_finds_names_by_order_out(tmp_path, blind_study):
    study = copy_of(blind_study, tmp_path / "study")
    with Store.open(study) as store, store.transaction() as tables:
        tables.execute("PRAGMA defer_foreign_keys = ON")
        tables.execute("UPDATE shown SET opaque = printf('%022d', presentation + 1000 * image)")
    observed, is_real = traits(study, tmp_path / "log")
    share, chance = accuracy(observed, is_real)
    assert share > 0.9 and chance < 1e-9


def test_no_reply_about_an_item_names_its_arm(tmp_path, sets):
    study = clinic.create_study(tmp_path / "study", *sets)
    with clinic.running_server(study, tmp_path / "log") as (_, url):
        headers = clinic.bearer(clinic.tokens(study)["Dr A"])
        with httpx.Client(base_url=url, headers=headers) as client:
            about = client.get("/api/study").text
            items = [client.get(f"/api/items/{position}").text for position in range(3)]
    assert "gan" not in about and str(study) not in about and "seed" not in about
    with Store.open(study) as store:
        files = [image.file.removesuffix(".png") for image in store.images()]
    for reply in items:
        keys = set(json.loads(reply))
        assert keys == {"position", "kind", "images", "text", "questions", "answers", "comment"}
        assert not any(word in reply for word in ("gan", "0001", "images/", *files))

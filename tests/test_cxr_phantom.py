"""Chest phantoms show what their truth says, on the side it says, and their reports are read so."""

import itertools
import json

import numpy as np
import pytest

import prepare_dataset
from demo import cxr_report
from demo.cxr_anatomy import draw_chest
from demo.cxr_chest import SIDES
from demo.cxr_findings import DEVICES, LOBES, add_device, add_pneumothorax
from demo.cxr_phantom import FINDINGS, LOOKS, SEVERITIES, draw, draw_body, pose
from demo.simulate import simulate, write_scans
from utils.dataset import load_dataset
from utils.finding_labeler import load_labeler

CHEXPERT = {
    "cardiomegaly": "Cardiomegaly",
    "pleural effusion": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "consolidation": "Consolidation",
    **dict.fromkeys(DEVICES, "Support Devices"),
}


@pytest.fixture(scope="module")
def labeler():
    return load_labeler("cxr")


def film(label, *, level=1, look="digital", number=0, resolution=128):
    """Picture (N, N) and truth; the same number is the same patient in the same pose."""
    generators = np.random.default_rng([3, number]), np.random.default_rng([4, number])
    image, _, truth = draw(
        *generators, labels=[label], level=level, look=look, resolution=resolution
    )
    return np.asarray(image).astype(float), truth


def chest_of(label, *, level=1, look="digital", number=0):
    rng = np.random.default_rng([5, number])
    body = draw_body(rng, labels=[label], level=level)
    chest = pose(rng, body, look=LOOKS[look], resolution=128)
    draw_chest(rng, chest)
    return rng, chest


def present(labeler, text):
    return {name for name, status in labeler.findings(text).items() if status != "absent"}


def wordings(name):
    """Every wording of a finding with every side, severity and lobe, and what it is filled with."""
    places = LOBES if name == "consolidation" else SIDES
    for sentence, place, level in itertools.product(cxr_report.SENTENCES[name], places, range(3)):
        words = cxr_report.filling(
            side=place.split()[0],
            severity=SEVERITIES[level],
            lobe=f"{place} lobe",
            ratio="0.61",
            centimetres=7.2,
        )
        yield sentence, sentence.format(**words), words


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("side", SIDES)
def test_fluid_of_the_patients_left_brightens_the_right_of_the_picture(side, look):
    change = np.zeros(2)
    for number in range(3):
        normal, _ = film("normal", number=number, look=look)
        filled, truth = film(f"{side} pleural effusion", number=number, look=look)
        assert truth["side"] == side
        change += [(filled - normal)[50:110, half].mean() for half in (slice(64), slice(64, None))]
    assert (change[1] > change[0] + 6) == (side == "left"), change
    assert (change[0] > change[1] + 6) == (side == "right"), change


@pytest.mark.parametrize("side", SIDES)
def test_no_vessels_beyond_the_pleural_line_of_the_named_side(side):
    rng, chest = chest_of("normal")
    other = next(name for name in SIDES if name != side)
    before = chest.vessels.copy(), chest.air[side].copy()
    add_pneumothorax(rng, chest, level=2, side=side)
    rim = chest.air[side] > 1.2 * before[1] + 0.1
    assert rim.sum() > 0.25 * (chest.lung[side] > 0).sum()
    assert before[0][rim].sum() > 0
    assert chest.vessels[rim].sum() < 0.001 * before[0][rim].sum()
    untouched = chest.lung[other] > 0
    np.testing.assert_array_equal(chest.vessels[untouched], before[0][untouched])


@pytest.mark.parametrize("finding", ["normal", "cardiomegaly"])
def test_cardiothoracic_ratio_of_the_truth_is_that_of_the_drawn_heart(finding):
    for number in range(9):
        level = number % 3
        _, chest = chest_of(finding, level=level, number=number)
        columns = chest.x[chest.heart > 0]
        inner = 2 * chest.wall.max()
        measured = float(columns.max() - columns.min()) / inner
        assert measured == pytest.approx(chest.body.heart_ratio, abs=0.02)
        assert (chest.body.heart_ratio > 0.5) == (finding == "cardiomegaly")


def test_the_heart_lies_more_to_the_patients_left():
    _, chest = chest_of("normal")
    columns = chest.x[chest.heart > 0]
    assert columns.max() > -1.5 * columns.min()


def test_a_severer_finding_changes_more_of_the_picture():
    for label in ("left pleural effusion", "right pneumothorax", "cardiomegaly", "consolidation"):
        change = []
        for level in range(3):
            pairs = [(film("normal", number=n), film(label, number=n, level=level)) for n in (0, 1)]
            change.append(sum(np.abs(sick[0] - well[0]).mean() for well, sick in pairs))
        assert change == sorted(change), label


@pytest.mark.parametrize("device", DEVICES)
def test_metal_shows_in_films_with_a_device_only(device):
    rng, chest = chest_of("normal")
    assert chest.metal.max() == 0
    add_device(rng, chest, device=device, side="left")
    assert 0.001 < (chest.metal > 0.1).mean() < 0.05
    if device == "pacemaker":
        assert chest.x[chest.metal > 0.9].min() > 0  # the can is on the patient's left


def test_lobes_and_devices_of_the_truth_are_those_of_the_text():
    seen = set()
    for index in range(0, 120, 2):
        scan = simulate(
            index,
            seed=1,
            modality="CXR",
            resolution=32,
            findings=["consolidation", "support device"],
        )
        known = scan.truth["lobe"] if scan.label == "consolidation" else scan.truth["device"]
        seen.add(known)
        assert known.split()[-2 if scan.label == "consolidation" else 0] in scan.text.lower() or (
            "catheter" in scan.text or "central line" in scan.text
        )
        assert scan.truth["side"] in (*SIDES, "none")
        assert (scan.truth["side"] == "none") == (known.endswith("tube"))
    assert seen == {*DEVICES, *(f"{lobe} lobe" for lobe in LOBES)}


def test_same_seed_same_pixels_and_words():
    first, again, other = (simulate(9, seed=seed, modality="CXR") for seed in (1, 1, 2))
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.text, first.truth) == (again.text, again.truth)
    assert first.image.tobytes() != other.image.tobytes()


def test_number_of_processes_changes_nothing(tmp_path):
    rows = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        options = {"num_images": 18, "seed": 3, "resolution": 32, "modality": "CXR"}
        rows.append(write_scans(folder, num_workers=workers, **options))
    assert rows[0] == rows[1]
    assert {row["modality"] for row in rows[0]} == {"CXR"}
    for row in rows[0]:
        name = row["file_name"]
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_two_films_of_a_patient_share_the_body_but_not_the_pose():
    for index in range(0, 32, 2):
        first, second = (
            simulate(i, seed=2, modality="CXR", resolution=32) for i in (index, index + 1)
        )
        assert first.label == second.label
        for column in ("patient_id", "side", "lobe", "device", "severity", "cardiothoracic_ratio"):
            assert first.truth[column] == second.truth[column]
        assert first.image.tobytes() != second.image.tobytes()


def test_every_finding_and_look_is_drawn_in_turn():
    scans = [simulate(index, seed=0, modality="CXR", resolution=16) for index in range(0, 160, 2)]
    labels = [scan.label for scan in scans]
    assert {label: labels.count(label) for label in FINDINGS} == dict.fromkeys(FINDINGS, 10)
    assert {scan.truth["look"] for scan in scans} == set(LOOKS)


def test_finer_pictures_show_the_same_chest():
    small, _ = film("cardiomegaly", look="portable", number=1)
    large, _ = film("cardiomegaly", look="portable", number=1, resolution=256)
    shrunk = large.reshape(128, 2, 128, 2).mean((1, 3))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.99
    assert film("normal", resolution=512)[0].shape == (512, 512)


def test_brightness_and_contrast_alone_do_not_tell_the_finding():
    """A nearest-mean rule on mean and deviation of half the films, tried on the other half."""
    scans = [simulate(index, seed=6, modality="CXR", resolution=64) for index in range(0, 640, 2)]
    pixels = np.stack([np.asarray(scan.image).astype(float) for scan in scans])
    features = np.stack([pixels.mean((1, 2)), pixels.std((1, 2))], 1)
    features = (features - features.mean(0)) / features.std(0)
    labels = np.array([FINDINGS.index(scan.label) for scan in scans])
    half = np.arange(len(scans)) // len(FINDINGS) % 2 == 0
    means = np.stack([features[half & (labels == k)].mean(0) for k in range(len(FINDINGS))])
    guesses = ((features[~half, None] - means) ** 2).sum(-1).argmin(1)
    assert (guesses == labels[~half]).mean() < 0.35


@pytest.mark.parametrize("name", cxr_report.SENTENCES)
def test_every_wording_is_read_with_its_finding_and_side(labeler, name):
    assert len(cxr_report.SENTENCES[name]) >= 4
    for sentence, text, words in wordings(name):
        assert present(labeler, text) == {CHEXPERT[name]}, text
        told = labeler.attributes(text)[CHEXPERT[name]]
        sided = any(slot in sentence.lower() for slot in ("{side}", "{lobe}"))
        assert told.get("side") == (words["side"] if sided else None), text
        if "{cm}" in sentence:
            assert told["size_um"] == "70000", text


def test_every_wording_of_a_normal_chest_is_read_as_one(labeler):
    for sentence in cxr_report.NORMAL:
        assert present(labeler, sentence.format(ratio="0.44")) == {"No Finding"}, sentence


def test_reports_of_two_findings_name_both_and_deny_none(labeler):
    rng = np.random.default_rng(0)
    truth = {"lobe": "right lower lobe", "cardiothoracic_ratio": "0.57", "device_side": "left"}
    for first, second in itertools.permutations(FINDINGS[1:], 2):
        for device in DEVICES:
            words = {**truth, "severity": "mild", "device": device}
            sizes = {first: 3.0, second: 4.0}
            text = cxr_report.compose(rng, labels=[first, second], sizes=sizes, truth=words)
            kinds = {cxr_report.kind(label) for label in (first, second)}
            names = {device if kind == "support device" else kind for kind in kinds}
            found = {CHEXPERT[name] for name in names}
            assert present(labeler, text) == found, text
            denied = {m.finding for m in labeler.mentions(text) if m.status == "absent"}
            assert not denied & found, text


def test_reports_of_simulated_films_are_read_with_the_side_of_the_truth(labeler):
    known = {"normal": "No Finding", "support device": "Support Devices", **CHEXPERT}
    asides = 0
    for index in range(0, 160, 2):
        scan = simulate(index, seed=9, modality="CXR", resolution=16)
        name = known[cxr_report.kind(scan.label)]
        assert present(labeler, scan.text) == {name}, scan.text
        told = labeler.attributes(scan.text)[name]
        assert told.get("side", "none") == scan.truth["side"], scan.text
        asides += scan.label != "normal" and "absent" in labeler.findings(scan.text).values()
    assert 10 < asides < 50


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"findings": ["drusen"]}, "drusen: not drawn in CXR"),
        ({"looks": ["digital", "spectral"]}, "spectral: not drawn in CXR"),
        ({"modality": "MRI"}, "MRI"),
    ],
)
def test_unknown_names_are_errors(wrong, named):
    with pytest.raises(KeyError, match=named):
        simulate(0, seed=0, **{"modality": "CXR", **wrong})


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--modality", "CXR", "--findings", "drusen"], "cardiomegaly"),
        (["--modality", "CXR", "--looks", "spectral"], "portable"),
        (["--findings", "cardiomegaly"], "drusen"),
        (["--modality", "MRI"], "CXR"),
    ],
)
def test_names_of_the_other_modality_are_refused(tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit) as stop:
        prepare_dataset.main(
            ["simulate", "--output_dir", str(tmp_path / "out"), "--num_images", "2", *flags]
        )
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


def test_the_command_writes_a_sound_dataset_folder(tmp_path, capsys):
    flags = ["--modality", "CXR", "--num_images", "16", "--resolution", "32", "--seed", "1"]
    prepare_dataset.main(["simulate", "--output_dir", str(tmp_path / "chests"), *flags])
    assert json.loads(capsys.readouterr().out)["labels"] == dict.fromkeys(sorted(FINDINGS), 2)
    records = load_dataset(tmp_path / "chests").records
    assert len(records) == 16
    assert {record.row["modality"] for record in records} == {"CXR"}
    header = (tmp_path / "chests" / "metadata.csv").read_text().splitlines()[0]
    assert header.endswith("severity,side,count,size_um,lobe,device,cardiothoracic_ratio")

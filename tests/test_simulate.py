"""The simulator draws what it says it draws, and the same each time."""

import numpy as np
import pytest

from demo import simulate as simulator
from demo.simulate import FINDINGS, LOOKS, simulate, write_scans


def pixels(index, **kwargs):
    return np.asarray(simulate(index, seed=5, **kwargs).image).astype(float)


def test_same_seed_same_pixels_and_words():
    first, again, other = (simulate(7, seed=seed) for seed in (1, 1, 2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.text == again.text
    assert first.truth == again.truth
    assert first.image.tobytes() != other.image.tobytes()


def test_number_of_processes_changes_nothing(tmp_path):
    rows = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        rows.append(write_scans(folder, num_images=6, seed=3, resolution=64, num_workers=workers))
    assert rows[0] == rows[1]
    for row in rows[0]:
        name = row["file_name"]
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_every_finding_and_look_is_drawn_in_turn():
    scans = [simulate(index, seed=0, resolution=32) for index in range(0, 240, 2)]
    labels = [scan.label for scan in scans]
    assert {label: labels.count(label) for label in FINDINGS} == dict.fromkeys(FINDINGS, 20)
    assert {scan.truth["look"] for scan in scans} == set(LOOKS)
    assert {scan.truth["severity"] for scan in scans} == {"none", "mild", "moderate", "severe"}


def test_two_scans_of_a_patient_share_finding_and_side_but_not_pixels():
    first, second = simulate(10, seed=0), simulate(11, seed=0)
    assert first.truth["patient_id"] == second.truth["patient_id"]
    assert (first.label, first.truth["side"]) == (second.label, second.truth["side"])
    assert first.image.tobytes() != second.image.tobytes()


@pytest.mark.parametrize("look", LOOKS)
def test_vitreous_is_darker_than_retina(look):
    scan = pixels(0, findings=["normal"], looks=[look])
    assert scan[:10].mean() < 0.6 * scan[40:90].mean()


def test_subretinal_fluid_shows_more_dark_below_the_surface_than_a_normal_scan():
    def dark_inside(finding):
        total = 0
        for index in range(0, 40, 2):
            scan = pixels(index, findings=[finding], looks=["spectral"])
            surface = (scan > 70).argmax(0)
            inside = np.arange(128)[:, None] > surface + 8
            above_choroid = np.arange(128)[:, None] < surface + 34
            total += ((scan < 45) & inside & above_choroid).sum()
        return total

    assert dark_inside("subretinal fluid") > 2 * dark_inside("normal")


@pytest.mark.parametrize("finding", FINDINGS)
def test_report_names_its_finding(finding):
    word = {"normal": "normal", "pigment epithelial detachment": "detachment"}.get(finding, finding)
    for index in range(0, 60, 2):
        scan = simulate(index, seed=8, findings=[finding], resolution=32)
        assert word in scan.text.lower()
        assert scan.label == finding


def test_report_side_is_the_side_of_the_lesion():
    words = {"left": "left", "right": "right", "central": ("fovea", "foveal", "centr")}
    for index in range(0, 60, 2):
        scan = simulate(index, seed=4, findings=["drusen"], resolution=32)
        side = scan.truth["side"]
        options = words[side] if isinstance(words[side], tuple) else (words[side],)
        assert any(word in scan.text.lower() for word in options)
        for other in {"left", "right"} - {side}:
            assert other not in scan.text.lower()


def test_a_left_lesion_changes_the_left_half_most():
    for side in ("left", "right"):
        halves = np.zeros(2)
        for index in range(0, 120, 2):
            scan = simulate(index, seed=6, findings=["subretinal fluid"], looks=["spectral"])
            if scan.truth["side"] == side:
                gray = np.asarray(scan.image).astype(float)
                surface = (gray > 70).argmax(0)  # the retina rises over the fluid
                halves += [-surface[:64].mean(), -surface[64:].mean()]
        assert (halves[0] > halves[1]) == (side == "left")


def test_combinations_add_a_second_finding():
    scans = [simulate(i, seed=0, resolution=32, combination_prob=1.0) for i in range(0, 24, 2)]
    for scan in scans:
        parts = scan.label.split(";")
        assert len(parts) == (1 if parts[0] == "normal" else 2)
        assert len(set(parts)) == len(parts)


def test_unknown_finding_or_look_is_an_error():
    with pytest.raises(KeyError, match="glaucoma"):
        simulate(0, seed=0, findings=["glaucoma"])
    with pytest.raises(KeyError, match="unknown"):
        simulate(0, seed=0, looks=["unknown"])


def test_resolution_sets_the_size():
    assert simulate(0, seed=0, resolution=96).image.size == (96, 96)


def test_there_are_at_least_nine_layers_above_the_choroid():
    names = [name for name, *_ in simulator.LAYERS]
    assert names.index("RPE") + 1 >= 9

import csv

import numpy as np
import pytest
from report_clinic import write_reports

from utils.cli import UserError
from utils.dataset import load_dataset
from utils.training_mix import Part, cap_share, real_part, shares, write_mix


@pytest.fixture
def clinic(tmp_path):
    return load_dataset(write_reports(tmp_path / "clinic", ["train", "train"]))


def added(records, weights, origin="synthetic"):
    return Part(origin, records, [record.text for record in records], np.array(weights, float))


def test_what_is_added_never_weighs_more_than_its_share(clinic):
    real = real_part(clinic.records)  # weight 4
    parts = [added(clinic.records, [5, 5, 5, 5]), added(clinic.records[:1], [20], "no_report")]
    capped = cap_share(real, parts, max_share=0.5)
    assert sum(part.total for part in capped) == pytest.approx(4)
    assert capped[0].total == pytest.approx(capped[1].total)  # all by the same factor
    found = shares([real, *capped])
    assert found["real"] == {"images": 4, "share": pytest.approx(0.5)}
    assert found["no_report"] == {"images": 1, "share": pytest.approx(0.25)}


def test_what_is_within_its_share_keeps_its_weight(clinic):
    part = added(clinic.records, [0.5, 0.5, 0.5, 0.5])
    assert cap_share(real_part(clinic.records), [part], max_share=0.5)[0].total == 2
    part = added(clinic.records, [50] * 4)
    assert cap_share(real_part(clinic.records), [part], max_share=1)[0].total == 200


def test_the_mix_is_a_data_set_with_a_weight_and_an_origin_in_every_row(clinic, tmp_path):
    texts = ["", "drusen"]
    part = Part("no_report", clinic.records[:2], texts, np.array([0.25, 0.0]))
    write_mix(tmp_path / "mix", [real_part(clinic.records), part], num_workers=0)
    with (tmp_path / "mix" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["weight"] for row in rows] == ["1"] * 4 + ["0.25"]  # of weight 0 nothing is left
    assert [row["origin"] for row in rows] == ["real"] * 4 + ["no_report"]
    assert {row["split"] for row in rows} == {"train"}
    assert rows[4]["text"] == ""
    again = load_dataset(tmp_path / "mix", allow_duplicates=True)
    assert [r.patient_id for r in again][:4] == [r.patient_id for r in clinic]
    for record, source in zip(again, (*clinic.records, clinic.records[0])):
        assert record.path.samefile(source.path)  # a link, not a copy


def test_a_mix_of_nothing_is_refused(clinic, tmp_path):
    with pytest.raises(UserError, match="nothing to train on"):
        write_mix(tmp_path / "mix", [added(clinic.records, [0] * 4)], num_workers=0)
    assert not (tmp_path / "mix").exists()

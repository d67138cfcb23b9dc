import csv
import json
import shutil

import pytest
from preference_toys import column, same_weights, train

from utils.captioned_data import load_captioned
from utils.cli import UserError
from utils.dataset import DatasetError, load_dataset
from utils.dataset_records import USUAL_COLUMNS
from utils.sample_weights import read_weights

PLAIN = ("--random_flip", "--max_train_steps=3", "--use_ema", "--train_split=all")


def copy_with(toy_dataset, folder, change):
    """A copy of the toy data whose rows a function has changed in place, or dropped by None."""
    shutil.copytree(toy_dataset, folder)
    with (folder / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for index, row in enumerate(rows) if change(index, row) is not False]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def with_weights(toy_dataset, folder, weights):
    return copy_with(toy_dataset, folder, lambda index, row: row.update(weight=weights[index]))


@pytest.fixture
def run(tiny_pipeline, tmp_path, capsys):
    def run(name, data, *flags):
        data = f"--train_data_dir={data}"
        return train(tiny_pipeline, tmp_path / name, data, *PLAIN, *flags, capsys=capsys)

    return run


def load(source, **options):
    defaults = {"columns": USUAL_COLUMNS, "split": None, "template": None, "check_pixels": False}
    defaults |= {"skip_invalid": False, "offline": True}
    return load_captioned(source, **defaults | options)


def test_constant_weights_equal_no_weights_byte_for_byte(run, toy_dataset, tmp_path):
    run("plain", toy_dataset)
    data = with_weights(toy_dataset, tmp_path / "data", ["0.1"] * 12)
    run("constant", data, "--weight_column=weight")
    assert same_weights(tmp_path / "plain", tmp_path / "constant")
    assert column(tmp_path / "plain", "loss") == column(tmp_path / "constant", "loss")


def test_weights_of_0_and_1_leave_out_and_count_as_usual(run, toy_dataset, tmp_path):
    left_out = (2, 3, 7)
    fewer = copy_with(toy_dataset, tmp_path / "fewer", lambda index, row: index not in left_out)
    weights = [int(index not in left_out) for index in range(12)]
    weighted = with_weights(toy_dataset, tmp_path / "weighted", weights)
    assert run("one", fewer)["images"] == 9
    assert run("other", weighted, "--weight_column=weight")["images"] == 9
    assert same_weights(tmp_path / "one", tmp_path / "other")
    options = json.loads((tmp_path / "other" / "options.json").read_text())
    assert options["notes"] == ["3 rows have weight 0 and are left out"]


def test_each_images_loss_is_multiplied_by_its_weight_also_with_min_snr(run, toy_dataset, tmp_path):
    # One image a step, and so low a rate that the model stays as it is
    flags = ("--train_batch_size=1", "--max_train_steps=12", "--learning_rate=1e-30")
    data = with_weights(toy_dataset, tmp_path / "data", range(1, 13))
    for snr in ((), ("--snr_gamma=5",)):
        run(f"plain{snr}", toy_dataset, *flags, *snr)
        run(f"weighted{snr}", data, *flags, *snr, "--weight_column=weight")
        losses = [column(tmp_path / f"{name}{snr}", "loss") for name in ("plain", "weighted")]
        factors = sorted(weighted / plain for plain, weighted in zip(*losses))
        assert factors == pytest.approx([weight / 6.5 for weight in range(1, 13)], rel=1e-4)


def test_weights_have_mean_1_whatever_their_scale(toy_dataset, tmp_path):
    data = with_weights(toy_dataset, tmp_path / "data", [1, 3] * 6)
    assert read_weights(load_dataset(data), "weight").tolist() == [0.5, 1.5] * 6
    huge = with_weights(toy_dataset, tmp_path / "huge", [f"{scale}e307" for scale in [1, 3] * 6])
    assert read_weights(load_dataset(huge), "weight").tolist() == pytest.approx([0.5, 1.5] * 6)


def test_all_bad_weights_are_named_at_once_with_their_lines(toy_dataset, tmp_path):
    cells = ["1", "-2", "nan", "", "much", "inf", *["1"] * 6]
    data = with_weights(toy_dataset, tmp_path / "data", cells)
    with pytest.raises(DatasetError) as error:
        load(data, weight_column="weight")
    told = [(problem.where, problem.message) for problem in error.value.problems]
    assert told == [
        ("metadata.csv:3", "'-2' is negative"),
        ("metadata.csv:4", "'nan' is not finite"),
        ("metadata.csv:5", "empty"),
        ("metadata.csv:6", "'much' is no number"),
        ("metadata.csv:7", "'inf' is not finite"),
    ]
    assert len(load(data, weight_column="weight", skip_invalid=True)) == 7


def test_a_missing_column_and_weights_of_0_alone_are_refused(toy_dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"metadata.csv:1: missing column: weight"):
        load(toy_dataset, weight_column="weight")
    data = with_weights(toy_dataset, tmp_path / "data", [0] * 12)
    with pytest.raises(DatasetError, match="weight is 0 in all"):
        load(data, weight_column="weight")


def test_weights_of_other_splits_need_not_be_there(toy_dataset, tmp_path):
    data = with_weights(toy_dataset, tmp_path / "data", [2] * 8 + [""] * 4)
    assert len(load(data, weight_column="weight", split="train")) == 8


def test_the_held_out_loss_is_never_weighted(run, toy_dataset, tmp_path):
    data = with_weights(toy_dataset, tmp_path / "data", [1, 5] * 4 + [0, 100, "", ""])
    flags = ("--train_split=train", "--validation_split=val", "--max_train_steps=1")
    # So low a rate that the model stays as it is
    plain = run("plain", toy_dataset, *flags, "--learning_rate=1e-30")
    weighted = run("weighted", data, *flags, "--learning_rate=1e-30", "--weight_column=weight")
    assert weighted["validation_loss"] == plain["validation_loss"]
    assert weighted["loss_first"] != plain["loss_first"]


# Empty captions


def test_an_empty_caption_ends_the_run_unless_it_is_allowed(run, toy_dataset, tmp_path, caplog):
    def clear(index, row):
        row["text"] = " " if index < 5 else row["text"]

    data = copy_with(toy_dataset, tmp_path / "data", clear)
    with pytest.raises(DatasetError, match="empty text") as error:
        load(data)
    assert len(error.value.problems) == 5
    result = run("out", data, "--allow_empty_captions")
    assert result["images"] == 12
    note = "5 of 12 captions are empty: they train the unconditional branch"
    assert note in caplog.text
    assert note in json.loads((tmp_path / "out" / "options.json").read_text())["notes"]


def test_an_empty_caption_is_trained_like_a_dropped_one(run, toy_dataset, tmp_path):
    empty = copy_with(toy_dataset, tmp_path / "data", lambda _, row: row.update(text=""))
    flags = ("--max_train_steps=2", "--train_batch_size=4")
    run("empty", empty, *flags, "--allow_empty_captions")
    run("dropped", toy_dataset, *flags, "--caption_dropout_prob=1")
    assert same_weights(tmp_path / "empty", tmp_path / "dropped")


def test_allowed_empty_captions_need_a_column_of_captions(toy_dataset, tmp_path):
    def remove(_, row):
        del row["text"]

    data = copy_with(toy_dataset, tmp_path / "data", remove)
    with pytest.raises(UserError, match=r"--allow_empty_captions: .* has no captions"):
        load(data, allow_empty=True)


def test_a_named_caption_column_may_have_empty_cells_if_allowed(toy_dataset, tmp_path):
    def rename(index, row):
        row["Report"] = row.pop("text") if index else row.pop("text") and ""

    data = copy_with(toy_dataset, tmp_path / "data", rename)
    columns = USUAL_COLUMNS._replace(caption="Report")
    with pytest.raises(DatasetError, match=r"metadata.csv:2: empty text"):
        load(data, columns=columns)
    texts = [record.text for record in load(data, columns=columns, allow_empty=True)]
    assert [not text for text in texts] == [True] + [False] * 11

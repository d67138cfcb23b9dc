import json
import logging

import pytest

from utils import checkpoints
from utils.checkpoints import (
    STATE_FILE,
    find_checkpoint,
    is_complete,
    list_checkpoints,
    prune_checkpoints,
    read_state,
    remove_leftovers,
    replace_folder,
    save_checkpoint,
)
from utils.cli import UserError


def make_checkpoint(folder, step, *, complete=True):
    path = folder / f"checkpoint-{step}"
    (path / "unet").mkdir(parents=True)
    (path / "unet" / "config.json").write_text("{}")
    if complete:
        files = {"unet/config.json": 2}
        (path / STATE_FILE).write_text(json.dumps({"step": step, "files": files}))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(folder, step, *, fill=None, total_limit=None):
    def write_unet(path):
        (path / "unet").mkdir()
        (path / "unet" / "config.json").write_text("new")

    return save_checkpoint(
        folder,
        {"step": step},
        fill=fill or write_unet,
        barrier=lambda: None,
        is_main=True,
        total_limit=total_limit,
    )


def test_checkpoints_are_listed_by_number_not_by_name(tmp_path):
    for step in (10, 9, 100):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]


def test_latest_is_the_last_complete_one_and_the_incomplete_is_named(tmp_path, caplog):
    make_checkpoint(tmp_path, 9)
    expected = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 11, complete=False)
    logging.getLogger("checkpoints").addHandler(caplog.handler)
    try:
        assert find_checkpoint(tmp_path, "latest") == expected
    finally:
        logging.getLogger("checkpoints").removeHandler(caplog.handler)
    assert "checkpoint-11" in caplog.text


@pytest.mark.parametrize("target", ["latest", "checkpoint-3", "elsewhere/checkpoint-3"])
def test_a_missing_target_is_an_error(tmp_path, target):
    with pytest.raises(UserError, match="checkpoint"):
        find_checkpoint(tmp_path, target)


def test_a_target_is_found_by_name_and_by_path(tmp_path):
    expected = make_checkpoint(tmp_path, 4)
    assert find_checkpoint(tmp_path, "checkpoint-4") == expected
    assert find_checkpoint(tmp_path / "other_run", str(expected)) == expected
    assert find_checkpoint(tmp_path, "moved/away/checkpoint-4") == expected


def test_an_incomplete_target_is_an_error(tmp_path):
    make_checkpoint(tmp_path, 4, complete=False)
    with pytest.raises(UserError, match="not a complete checkpoint"):
        find_checkpoint(tmp_path, "checkpoint-4")


def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match="checkpoint-<step>"):
        find_checkpoint(tmp_path, str(tmp_path / "unet"))


def test_saving_seals_the_checkpoint_and_leaves_nothing_else(tmp_path):
    path = save(tmp_path, 6)
    assert names(tmp_path) == ["checkpoint-6"]
    assert read_state(path) == {"step": 6, "files": {"unet/config.json": 3}}


def test_a_failed_save_leaves_the_old_checkpoints_and_nothing_half_written(tmp_path):
    make_checkpoint(tmp_path, 2)

    def full_disk(path):
        (path / "unet").mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"disk is full.*checkpoint-4.*No space"):
        save(tmp_path, 4, fill=full_disk, total_limit=1)
    assert names(tmp_path) == ["checkpoint-2"]
    assert is_complete(tmp_path / "checkpoint-2")


def test_another_failure_of_saving_is_not_called_a_full_disk(tmp_path):
    def broken(path):
        raise RuntimeError("a wrong shape")

    with pytest.raises(RuntimeError, match="a wrong shape"):
        save(tmp_path, 4, fill=broken)


@pytest.mark.parametrize("damage", ["cut short", "file missing", "state damaged"])
def test_a_damaged_checkpoint_is_not_complete(tmp_path, damage):
    path = make_checkpoint(tmp_path, 2)
    file = path / "unet" / "config.json"
    if damage == "cut short":
        file.write_text("{")
    elif damage == "file missing":
        file.unlink()
    else:
        (path / STATE_FILE).write_text('{"step": 2')
    assert not is_complete(path)
    with pytest.raises(UserError, match="not a complete checkpoint"):
        find_checkpoint(tmp_path, "checkpoint-2")


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    make_checkpoint(tmp_path, 2)
    (tmp_path / ".tmp-checkpoint-4" / "unet").mkdir(parents=True)
    (tmp_path / ".tmp-options.json").write_text("{")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["checkpoint-2"]


def test_the_old_checkpoint_goes_only_after_the_new_is_whole(tmp_path):
    make_checkpoint(tmp_path, 2)
    seen = []

    def fill(path):
        seen.extend(names(tmp_path))
        (path / "unet").mkdir()
        (path / "unet" / "config.json").write_text("{}")

    save(tmp_path, 4, fill=fill, total_limit=1)
    assert "checkpoint-2" in seen
    assert names(tmp_path) == ["checkpoint-4"]


def test_the_limit_keeps_the_last_ones_with_any_number_there_before(tmp_path):
    for step in (2, 4, 6, 8):
        make_checkpoint(tmp_path, step)
    save(tmp_path, 10, total_limit=3)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-6", "checkpoint-8"]


def test_the_one_just_written_stays_even_if_later_ones_exist(tmp_path):
    for step in (4, 6, 8):
        make_checkpoint(tmp_path, step)
    save(tmp_path, 5, total_limit=1)
    assert names(tmp_path) == ["checkpoint-5"]


def test_incomplete_checkpoints_do_not_count_against_the_limit(tmp_path):
    make_checkpoint(tmp_path, 2)
    keep = make_checkpoint(tmp_path, 6)
    make_checkpoint(tmp_path, 4, complete=False)
    assert prune_checkpoints(tmp_path, 2, keep=keep) == []


def test_saving_the_same_step_again_replaces_it(tmp_path):
    make_checkpoint(tmp_path, 2)
    path = save(tmp_path, 2)
    assert (path / "unet" / "config.json").read_text() == "new"
    assert names(tmp_path) == ["checkpoint-2"]


def test_only_the_main_process_seals(tmp_path):
    (tmp_path / ".tmp-checkpoint-2").mkdir()
    save_checkpoint(
        tmp_path, {"step": 2}, fill=lambda path: None, barrier=lambda: None, is_main=False
    )
    assert names(tmp_path) == [".tmp-checkpoint-2"]


def test_replacing_a_folder_leaves_only_the_new_content(tmp_path):
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    replace_folder(tmp_path / "new", tmp_path / "target")
    assert names(tmp_path) == ["target"]
    assert names(tmp_path / "target") == ["new"]


def test_an_unreadable_state_is_a_users_error(tmp_path):
    path = make_checkpoint(tmp_path, 2)
    (path / checkpoints.STATE_FILE).write_text("{broken")
    with pytest.raises(UserError, match="cannot be read"):
        read_state(path)

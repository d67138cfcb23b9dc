"""The store of ratings: each answer once, changes logged, orders and tokens."""

import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from utils.cli import UserError
from utils.rating_answers import AnswerError, check_answers, page_answers
from utils.rating_order import draw_order
from utils.rating_schema import DATABASE
from utils.rating_shown import StudyImage
from utils.rating_store import OutOfOrderError, Store, answers

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 12
QUESTIONS = ("turing", "quality", "errors")
GOOD = {"turing": "real", "quality": 4, "errors": ["artifact", "omission"]}
HOSTILE = "'; DROP TABLE answers; --\n\"\\ \u202e\U0001f9ff <script>alert(1)</script> ${x} %s"


def make_study(folder: Path, *, repeat_share: float = 0.25) -> Store:
    """Twelve images of two arms, and three pairs of a real and a synthetic one."""
    folder.mkdir()
    images = [
        StudyImage(n, f"{n:x}.png", ("real", "gan")[n % 2], "DME", f"text {n}", f"set/{n}.jpg")
        for n in range(NUM_IMAGES)
    ]
    items = [(n, None, f"text {n}", QUESTIONS) for n in range(NUM_IMAGES)]
    items += [(n, n + 1, f"text of pair {n}", ("preference",)) for n in (0, 2, 4)]
    facts = {"title": "t", "diagnoses": ["DME"], "repeat_share": repeat_share, "seed": 3}
    return Store.create(folder, facts=facts, images=images, items=items)


@pytest.fixture
def store(tmp_path):
    with make_study(tmp_path / "study") as store:
        store.add_rater("Dr A")
        yield store


def reply(shown) -> dict:
    return {"preference": "left"} if shown.is_pair else dict(GOOD)


def answer_all(store: Store, rater) -> None:
    for shown in store.presentations(rater):
        store.record(rater, shown.position, reply(shown), seconds=2.5)


def test_every_item_is_shown_once_and_a_share_of_them_twice(store):
    shown = store.presentations(store.raters()[0])
    firsts = [one.item for one in shown if not one.is_repeat]
    repeats = [one.item for one in shown if one.is_repeat]
    assert sorted(firsts) == list(range(15)) and firsts != sorted(firsts)
    assert len(repeats) == len(set(repeats)) == 4  # a quarter of 15
    assert [one.position for one in shown] == list(range(19))


def test_a_repeat_comes_at_least_a_third_of_the_study_later():
    for trial in range(200):
        order = draw_order(list(range(trial % 40 + 1)), repeat_share=0.5, repeat_seed=str(trial))
        first = {one.item: n for n, one in enumerate(order) if not one.is_repeat}
        gaps = [n - first[one.item] for n, one in enumerate(order) if one.is_repeat]
        assert all(gap > len(first) // 3 for gap in gaps)
        assert len(gaps) == round(0.5 * len(first))


def test_the_order_cannot_be_worked_out_from_the_seed():
    orders = {
        tuple(draw_order(list(range(20)), repeat_share=0.1, repeat_seed="0")) for _ in range(20)
    }
    assert len(orders) == 20
    repeated = {frozenset(one.item for one in order if one.is_repeat) for order in orders}
    assert len(repeated) == 1


def test_every_showing_has_names_of_its_own(store):
    store.add_rater("Dr B")
    shown = [one for rater in store.raters() for one in store.presentations(rater)]
    names = [name for one in shown for name in one.opaque]
    assert len(names) == len(set(names)) == sum(len(one.images) for one in shown) > 2 * 19
    files = {image.file.removesuffix(".png") for image in store.images()}
    assert files.isdisjoint(names)


def test_answers_become_rows_of_the_table(store):
    rater = store.raters()[0]
    answer_all(store, rater)
    rows = store.answers()
    assert len(rows) == sum(len(one.questions) for one in store.presentations(rater))
    keys = {(row.rater, row.position, row.question) for row in rows}
    assert len(keys) == len(rows)
    one = next(row for row in rows if row.question == "errors")
    assert one.value == "omission;artifact" and one.seconds == 2.5
    assert one.image == f"images/{one.item:06d}.png" and one.text == f"text {one.item}"
    assert one.arm == ("real", "gan")[one.item % 2] and one.other_image == ""
    assert rows == answers(store.folder)


def test_a_preference_is_of_an_image_whatever_side_it_was_shown_on(tmp_path):
    with make_study(tmp_path / "study") as store:
        for number in range(8):
            store.add_rater(f"Dr {number}")
        for rater in store.raters():
            for shown in store.presentations(rater):
                real_side = "left" if shown.images[0].arm == "real" else "right"
                choice = {"preference": real_side} if shown.is_pair else dict(GOOD)
                store.record(rater, shown.position, choice)
        rows = [row for row in store.answers() if row.question == "preference"]
        sides = {o.swapped for r in store.raters() for o in store.presentations(r) if o.is_pair}
    assert sides == {False, True}
    assert {(row.value, row.arm, row.other_arm) for row in rows} == {("image", "real", "gan")}


def test_an_answer_replaced_stands_once_and_its_history_is_kept(store):
    rater = store.raters()[0]
    position = next(one.position for one in store.presentations(rater) if not one.is_pair)
    for earlier in store.presentations(rater)[:position]:
        store.record(rater, earlier.position, reply(earlier))
    store.record(rater, position, GOOD, comment="first")
    store.record(rater, position, GOOD | {"quality": 1}, comment="")
    shown = store.presentation(rater, position)
    assert store.given(shown) == {"turing": "real", "quality": "1", "errors": "omission;artifact"}
    changes = store.rows(
        "SELECT question, old_value, new_value FROM changes WHERE presentation = ? ORDER BY id",
        shown.id,
    )
    assert sorted(changes[4:]) == [("comment", "first", None), ("quality", "4", "1")]


def test_the_same_sent_again_changes_nothing(store):
    rater = store.raters()[0]
    first = store.presentation(rater, 0)
    for _ in range(3):
        assert store.record(rater, 0, reply(first), "seen", 1.0) == 1
    assert len(store.rows("SELECT 1 FROM changes")) == len(first.questions) + 1


def test_nothing_beyond_the_next_position_is_taken(store):
    rater = store.raters()[0]
    for position in (1, 2, 18, 19, 10**6, -1):
        shown = store.presentation(rater, position)
        with pytest.raises(OutOfOrderError):
            store.record(rater, position, reply(shown) if shown else {})
    assert store.answers() == [] and store.num_done(rater) == 0


@pytest.mark.parametrize(
    "bad",
    [
        {},
        GOOD | {"agreement": 3},
        GOOD | {"turing": "maybe"},
        GOOD | {"turing": ["real"]},
        GOOD | {"quality": 0},
        GOOD | {"quality": 6},
        GOOD | {"quality": True},
        GOOD | {"quality": 3.0},
        GOOD | {"quality": "3"},
        GOOD | {"quality": None},
        GOOD | {"errors": "omission"},
        GOOD | {"errors": ["none"]},
        GOOD | {"errors": [["omission"]]},
        {"turing": "real", "quality": 4, "diagnosis": "DME"},
        [1],
        None,
    ],
)
def test_answers_that_are_none_are_refused(bad):
    with pytest.raises(AnswerError):
        check_answers(bad, questions=QUESTIONS, diagnoses=["DME"])


def test_stored_answers_come_back_to_the_page_as_it_sent_them():
    given = GOOD | {"diagnosis": "unsure", "agreement": 5, "preference": "tie"}
    values = check_answers(given, questions=tuple(given), diagnoses=["DME"])
    assert page_answers(values) == given | {"errors": ["omission", "artifact"]}
    nothing = check_answers({"errors": []}, questions=("errors",), diagnoses=[])
    assert nothing == {"errors": "none"} and page_answers(nothing) == {"errors": []}


def test_sql_in_names_and_comments_is_text(store):
    store.add_rater(HOSTILE)
    rater = next(one for one in store.raters() if one.name == HOSTILE)
    store.record(rater, 0, reply(store.presentation(rater, 0)), comment=HOSTILE)
    comment = next(row for row in store.answers() if row.question == "comment")
    assert (comment.rater, comment.value) == (HOSTILE, HOSTILE)
    store.revoke(HOSTILE)
    assert [one.active for one in store.raters()] == [True, False]


@pytest.mark.parametrize("comment", ["\0", "x\ud800", "y" * 2001, 7, None])
def test_comments_that_no_file_can_hold_are_refused(store, comment):
    rater = store.raters()[0]
    with pytest.raises(AnswerError):
        store.record(rater, 0, reply(store.presentation(rater, 0)), comment=comment)
    assert store.answers() == []


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1, "3", None, True])
def test_times_that_are_none_are_refused(store, seconds):
    rater = store.raters()[0]
    with pytest.raises(AnswerError):
        store.record(rater, 0, reply(store.presentation(rater, 0)), seconds=seconds)


def test_a_token_is_known_again_and_stored_nowhere(store):
    token = store.add_rater("Dr B")
    assert store.rater_by_token(token).name == "Dr B"
    for wrong in (token[:-1], token + "A", token.swapcase(), "", "\ud800"):
        assert store.rater_by_token(wrong) is None
    store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    assert token.encode() not in (store.folder / DATABASE).read_bytes()


def test_a_token_revoked_or_renewed_lets_nobody_in(store):
    token = store.add_rater("Dr B")
    renewed = store.renew_token("Dr B")
    assert store.rater_by_token(token) is None
    assert store.rater_by_token(renewed).name == "Dr B"
    store.revoke("Dr B")
    assert store.rater_by_token(renewed) is None
    with pytest.raises(UserError, match="no rater 'Dr C'"):
        store.revoke("Dr C")


def test_a_rater_is_added_once(store):
    with pytest.raises(UserError, match="'Dr A' is in this study already"):
        store.add_rater("Dr A")
    assert len(store.raters()) == 1


def test_an_image_is_found_by_its_rater_alone(store):
    store.add_rater("Dr B")
    one, other = store.raters()
    shown = store.presentation(one, 0)
    file = store.image_file(one, shown.opaque[0])
    assert file == store.folder / "images" / shown.images[0].file
    assert store.image_file(other, shown.opaque[0]) is None
    assert store.image_file(one, shown.images[0].file) is None
    assert store.image_file(one, "../ratings.sqlite") is None


def test_threads_that_answer_at_once_leave_each_answer_once(store):
    for number in range(4):
        store.add_rater(f"Dr {number}")
    raters = store.raters()
    with Store.open(store.folder) as second, ThreadPoolExecutor(10) as pool:
        for done in [
            pool.submit(answer_all, own, one) for one in raters for own in (store, second)
        ]:
            done.result()
    rows = store.answers()
    expected = sum(len(o.questions) for r in raters for o in store.presentations(r))
    assert len(rows) == expected == len({(r.rater, r.position, r.question) for r in rows})
    assert len(store.rows("SELECT 1 FROM changes")) == expected  # of two that said the same, one


def test_processes_that_answer_at_once_leave_each_answer_once(store):
    code = f"""
import random, sys
sys.path.insert(0, {str(ROOT)!r})
from utils.rating_store import Store
with Store.open({str(store.folder)!r}) as store:
    rater = store.raters()[0]
    for shown in store.presentations(rater):
        value = {{"preference": "tie"}} if shown.is_pair else {{
            "turing": "real", "quality": random.randint(1, 5), "errors": []}}
        store.record(rater, shown.position, value)
"""
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    rows = store.answers()
    assert len(rows) == len({(row.position, row.question) for row in rows})
    assert {row.position for row in rows} == set(range(19))
    # Replaying the log gives what stands: no change was lost or made twice.
    replayed = {}
    changes = "SELECT presentation, question, old_value, new_value FROM changes ORDER BY id"
    for presentation, question, old, new in store.rows(changes):
        assert replayed.get((presentation, question)) == old
        replayed[presentation, question] = new
    stand = store.rows("SELECT presentation, question, value FROM answers")
    assert replayed == {(presentation, question): value for presentation, question, value in stand}


def test_a_store_opened_again_goes_on_where_it_was(store):
    rater = store.raters()[0]
    for shown in store.presentations(rater)[:5]:
        store.record(rater, shown.position, reply(shown), comment="kept")
    with Store.open(store.folder) as again:
        assert again.num_done(rater) == 5 and again.facts == store.facts
        assert again.presentations(rater) == store.presentations(rater)
        assert again.answers() == store.answers()


def test_a_folder_without_study_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="no study, for it lacks"):
        Store.open(tmp_path)
    (tmp_path / DATABASE).write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(UserError, match="cannot be read"):
        Store.open(tmp_path)


def test_another_database_and_another_version_are_refused(tmp_path, store):
    sqlite3.connect(tmp_path / DATABASE).executescript("CREATE TABLE t (x)")
    with pytest.raises(UserError, match="not of a study"):
        Store.open(tmp_path)
    store.rows("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="tables of version 99"):
        Store.open(store.folder)


def test_the_database_is_its_owners_alone(store):
    assert (store.folder / DATABASE).stat().st_mode & 0o077 == 0


def test_every_commit_waits_for_the_disk_and_no_row_stands_without_what_it_refers_to(store):
    settings = ("journal_mode", "synchronous", "foreign_keys")
    with Store.open(store.folder) as again:
        for one in (store, again):  # as made, and as opened
            found = [one.rows(f"PRAGMA {name}")[0][0] for name in settings]
            assert found == ["wal", 2, 1]  # 2 is FULL (https://sqlite.org/pragma.html)
    with pytest.raises(sqlite3.IntegrityError), store.transaction() as tables:
        tables.execute("INSERT INTO answers VALUES (999, 'turing', 'real', 1.0, 'now')")
    assert store.answers() == []

"""The load benchmark, in small: what it drives is served, and a lost answer is found."""

import json

import pytest

from benchmarks import rating_load
from utils.rating_links import read_tokens
from utils.rating_store import Store

FLAGS = ["--seconds", "4", "--raters", "2", "--clients", "8", "--think_s", "0.2"]


def test_raters_are_served_beside_hostile_clients_and_a_lost_answer_is_found(tmp_path, capsys):
    small = [*FLAGS, "--num_images", "6", "--resolution", "64", "--output_dir", str(tmp_path)]
    assert rating_load.main(small) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "rating_load.json").read_text(encoding="utf-8"))
    assert result["lost"] == 0 and result["survived"] and result["acknowledged"] > 2
    for figures in result["phases"].values():
        assert set(figures["raters_not_ok"]) <= {"429"}
        assert figures["put_ms"]["n"] > 0 and figures["next_image_ms"]["p99"] > 0
    replies = result["phases"]["raters_at_work_and_hostile"]["hostile_replies"]
    assert {"401", "404", "413", "422"} <= set(replies) and "500" not in replies
    with Store.open(tmp_path / "study") as store, store.transaction() as tables:
        rater, position, comment = tables.execute(
            "SELECT r.name, p.position, a.value FROM answers a "
            "JOIN presentations p ON p.id = a.presentation JOIN raters r ON r.id = p.rater "
            "WHERE a.question = 'comment'"
        ).fetchone()
        tables.execute("DELETE FROM answers WHERE value = ?", (comment,))
    tokens = read_tokens(tmp_path / "study")
    sent = {(tokens[rater], position): comment}
    assert rating_load.lost_answers(tmp_path / "study", tokens, sent) == 1


@pytest.mark.parametrize("flag", ["--seconds", "--clients", "--resolution"])
def test_bad_flags_are_named(tmp_path, capsys, flag):
    with pytest.raises(SystemExit) as exit_:
        rating_load.main([flag, "0", "--output_dir", str(tmp_path)])
    assert exit_.value.code == 2 and flag in capsys.readouterr().err

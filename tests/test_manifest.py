"""The manifest on the disk: parts, merging, unfinished lines, and memory that does not grow."""

import tracemalloc

import numpy as np
import pytest

from utils.cli import UserError
from utils.manifest import FIELDS, Manifest, ManifestWriter, PartsTail, part_path


def row(index, attempt=0, **changes):
    values = dict.fromkeys(FIELDS, "") | {"index": str(index), "attempt": str(attempt)}
    return values | {"status": "accepted", "text": f'drusen, "soft" {index}'} | changes


def write_part(folder, rows, *, attempt=0, process=0):
    with ManifestWriter(part_path(folder, attempt=attempt, process=process)) as part:
        part.append(rows)


def test_parts_are_merged_in_order_and_removed(tmp_path):
    write_part(tmp_path, [row(3), row(1)], process=1)
    write_part(tmp_path, [row(0), row(2)], process=0)
    write_part(tmp_path, [row(1, 1)], attempt=1)
    Manifest(tmp_path).merge()
    rows = list(Manifest(tmp_path).read())
    assert [(row["index"], row["attempt"]) for row in rows] == [
        *[("0", "0"), ("1", "0"), ("1", "1"), ("2", "0"), ("3", "0")]
    ]
    assert rows[0] == row(0)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


def test_a_line_that_is_in_the_manifest_and_in_a_part_counts_once(tmp_path):
    # As after a kill between the merge and the removal of the parts.
    write_part(tmp_path, [row(0), row(1)])
    Manifest(tmp_path).merge(lambda line: line | {"reason": "duplicate", "status": "rejected"})
    write_part(tmp_path, [row(1), row(2)])
    rows = list(Manifest(tmp_path).read())
    assert [line["index"] for line in rows] == ["0", "1", "2"]
    assert rows[1]["status"] == "rejected"


def test_an_unfinished_last_line_does_not_count(tmp_path):
    write_part(tmp_path, [row(0), row(1)])
    path = part_path(tmp_path, attempt=0, process=0)
    path.write_bytes(path.read_bytes()[:-1])
    assert [line["index"] for line in Manifest(tmp_path).read()] == ["0"]


def test_lines_that_are_not_to_be_kept_are_left_out(tmp_path):
    write_part(tmp_path, [row(0), row(1)])
    found = Manifest(tmp_path, keep=lambda line: line["index"] != "0")
    assert found.rows["index"].tolist() == [1]


@pytest.mark.parametrize("damage", [b"nonsense\n", b'"open\n', b"\xff\n", b"a,b,c\n"])
def test_what_is_no_manifest_is_refused_with_file_and_line(tmp_path, damage):
    write_part(tmp_path, [row(0)])
    path = part_path(tmp_path, attempt=0, process=0)
    path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(UserError, match=rf"{path}:3: "):
        Manifest(tmp_path)


def test_a_tail_tells_each_whole_line_once(tmp_path):
    tail = PartsTail(tmp_path)
    assert list(tail.new_rows()) == []
    path = part_path(tmp_path, attempt=0, process=0)
    with ManifestWriter(path) as part:
        assert list(tail.new_rows()) == []
        part.append([row(0), row(1)])
        assert [line["index"] for line in tail.new_rows()] == ["0", "1"]
        with path.open("ab") as file:
            file.write(b"2,unfin")
        write_part(tmp_path, [row(5)], process=1)
        assert [line["index"] for line in tail.new_rows()] == ["5"]


def test_a_part_that_another_process_is_just_making_is_not_read(tmp_path):
    write_part(tmp_path, [row(0)])
    beside = part_path(tmp_path, attempt=0, process=0)
    beside.with_name(".tmp-0123456789ab.csv").write_text("half")
    assert [line["index"] for line in PartsTail(tmp_path).new_rows()] == ["0"]
    assert Manifest(tmp_path).rows["index"].tolist() == [0]


def test_a_whole_prompt_of_10000_characters_passes_through(tmp_path):
    text = '👁️, "/..\\ ' * 1000
    write_part(tmp_path, [row(0, text=text)])
    Manifest(tmp_path).merge()
    assert next(Manifest(tmp_path).read())["text"] == text


def test_memory_holds_places_of_lines_not_lines(tmp_path):
    count, text = 5000, "x" * 2000
    write_part(tmp_path, (row(index, text=text) for index in range(count)))
    tracemalloc.start()
    found = Manifest(tmp_path)
    found.merge()
    total = sum(len(line["text"]) for line in Manifest(tmp_path).read())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == count * len(text)
    assert peak < count * len(text) / 3


def test_appending_costs_the_same_however_long_the_manifest_is(tmp_path, monkeypatch):
    written = []
    with ManifestWriter(part_path(tmp_path, attempt=0, process=0)) as part:
        for index in range(200):
            part.append([row(index)])
            written.append(part._file.tell())
    grown = np.diff(written)
    assert max(grown) - min(grown) <= 4  # digits of the index

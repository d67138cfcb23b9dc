"""Joins of the importers' tables, and patients' pseudonyms."""

import gzip
import hashlib
import hmac
import sqlite3
import tracemalloc

import pytest

from utils.cli import UserError
from utils.importers.table_index import TableIndex, stream_table
from utils.pseudonyms import Pseudonyms

TABLE = "study,view,text\ns1,PA,first\ns2,AP,second\ns1,LL,third\n"


@pytest.fixture
def index(tmp_path):
    with TableIndex(tmp_path / "tables.sqlite") as made:
        yield made


def written(path, text, encoding="utf-8"):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_row_is_found_by_its_key(tmp_path, index, name, encoding):
    lookup = index.load(written(tmp_path / name, TABLE, encoding), ["study"])
    assert lookup.get("s2") == {"study": "s2", "view": "AP", "text": "second"}
    assert lookup.get("s3") is None
    assert lookup.all("s3") == []


def test_all_rows_of_a_key_come_in_the_order_of_the_table(tmp_path, index):
    lookup = index.load(written(tmp_path / "t.csv", TABLE), ["study"], values=["text"])
    assert lookup.get("s1") == {"text": "first"}
    assert lookup.all("s1") == [{"text": "first"}, {"text": "third"}]


def test_a_key_of_two_columns_is_not_the_key_of_their_joined_text(tmp_path, index):
    path = written(tmp_path / "t.csv", "a,b,text\n1,11,x\n11,1,y\n")
    lookup = index.load(path, ["a", "b"], values=["text"])
    assert (lookup.get("1", "11"), lookup.get("11", "1")) == ({"text": "x"}, {"text": "y"})


def test_two_tables_do_not_mix(tmp_path, index):
    one = index.load(written(tmp_path / "a.csv", "k,v\n1,a\n"), ["k"])
    two = index.load(written(tmp_path / "b.csv", "k;w\n1;b\n"), ["k"], delimiter=";")
    assert (one.get("1"), two.get("1")) == ({"k": "1", "v": "a"}, {"k": "1", "w": "b"})


def test_an_empty_table_has_no_rows(tmp_path, index):
    assert index.load(written(tmp_path / "t.csv", "k,v\n"), ["k"]).get("1") is None


@pytest.mark.parametrize("flags", [{"key": ["no"]}, {"key": ["study"], "values": ["no"]}])
def test_a_missing_column_is_named_with_its_file(tmp_path, index, flags):
    path = written(tmp_path / "t.csv", TABLE)
    with pytest.raises(UserError, match=r"t\.csv: no column no \(columns: study, view, text\)"):
        index.load(path, **flags)


def test_rows_come_with_the_line_they_start_in(tmp_path):
    path = written(tmp_path / "t.csv", 'a,b\n1,"two\nlines"\n\n3,4\n5\n')
    assert list(stream_table(path, ["a"])) == [
        (2, {"a": "1", "b": "two\nlines"}),
        (5, {"a": "3", "b": "4"}),
        (6, {"a": "5", "b": ""}),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,\xff\n", "not UTF-8.*save it as CSV UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "not UTF-8.*save it as CSV UTF-8"),
        (b"a;b\n1;2\n", "no column a .*separated by ;: save it with commas"),
        (b"a\tb\n1\t2\n", "no column a .*separated by tabs: save it with commas"),
        (b"a,b,b\n1,2,3\n", "repeated column: b"),
        (b'a,b\n1,"open\n', "quote left open"),
        (b"a,b\n1,2,3\n", ":2: 3 fields, the header has 2"),
        (b"", r"no column a \(columns: none\)"),
    ],
)
def test_a_broken_table_is_named_with_the_reason(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(UserError, match=rf"t\.csv.*{message}"):
        list(stream_table(tmp_path / "t.csv", ["a"]))


@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda data: b"PK" + data])
def test_a_damaged_compressed_table_is_named(tmp_path, damage):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(damage(gzip.compress(TABLE.encode() * 1000)))
    with pytest.raises(UserError, match="damaged, copy it again"):
        list(stream_table(path, ["study"]))


def test_a_row_with_too_many_fields_is_a_problem_of_its_own(tmp_path, index):
    path = written(tmp_path / "t.csv", "a,b\n1,x\n2,y,z\n3,w\n")
    lookup = index.load(path, ["a"])
    assert (lookup.get("1"), lookup.get("2"), lookup.get("3")["b"]) == (
        {"a": "1", "b": "x"},
        None,
        "w",
    )
    assert [line for line, _ in index.stream(path, ["a"])] == [2, 4]
    (problem,) = index.take_problems()
    assert problem[:2] == ("t.csv:3", "broken row")
    assert "3 fields, the header has 2" in problem.message
    assert index.take_problems() == []


def test_memory_does_not_grow_with_the_table(tmp_path, index):
    path = tmp_path / "t.csv"
    path.write_text("k,v\n" + "".join(f"{number},{'x' * 500}\n" for number in range(20000)))
    tracemalloc.start()
    lookup = index.load(path, ["k"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lookup.get("19999")["v"] == "x" * 500
    assert peak < 2**20  # the table has 10 MB


def test_an_old_file_of_the_index_is_no_hindrance(tmp_path):
    (tmp_path / "tables.sqlite").write_bytes(b"of a run that was killed")
    with TableIndex(tmp_path / "tables.sqlite") as index:
        assert index.load(written(tmp_path / "t.csv", TABLE), ["study"]).get("s2")
    with pytest.raises(sqlite3.ProgrammingError):
        index.load(tmp_path / "t.csv", ["study"])


def test_a_pseudonym_is_the_start_of_the_hmac_of_the_identity():
    expected = hmac.new(b"k" * 16, "Müller^Anna".encode(), hashlib.sha256).hexdigest()[:12]
    assert Pseudonyms(b"k" * 16).of("Müller^Anna") == f"P-{expected}"


def test_another_key_gives_another_name():
    one, two = Pseudonyms(b"k" * 16), Pseudonyms(b"l" * 16)
    assert one.of("17") == Pseudonyms(b"k" * 16).of("17")
    assert len({one.of("17"), one.of("18"), two.of("17")}) == 3


def test_a_key_that_can_be_guessed_is_refused():
    with pytest.raises(UserError, match="--pseudonym_key: 15 bytes, at least 16"):
        Pseudonyms(b"k" * 15)

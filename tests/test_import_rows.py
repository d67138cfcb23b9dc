"""The benchmark of large imports, on a few rows."""

import json

import pytest

from benchmarks import import_rows
from utils.dataset import load_dataset


def test_the_tree_is_complete_and_no_two_images_are_alike(tmp_path, capsys):
    import_rows.make_tree(tmp_path / "tree", 40)
    figures = import_rows.run_import(tmp_path / "tree", tmp_path / "out", 0)
    assert figures["rows"] == 40
    assert figures["peak_mib"] > 20
    dataset = load_dataset(tmp_path / "out", require_text=True, require_label=True)
    assert len(dataset) == 40
    assert len({record.patient_id for record in dataset}) == 5


@pytest.mark.parametrize(("limit", "status"), [("100", 0), ("0.001", 1)])
def test_too_slow_is_told_by_the_status(tmp_path, capsys, limit, status):
    flags = ["--rows", "20", "--limit_s", limit, "--num_workers", "0"]
    assert import_rows.main([*flags, "--output_dir", str(tmp_path / "run")]) == status
    result = json.loads(capsys.readouterr().out)
    assert (result["tenth"]["rows"], result["all"]["rows"]) == (2, 20)
    assert json.loads((tmp_path / "run" / "import_rows.json").read_text()) == result
    assert [path.suffix for path in (tmp_path / "run").iterdir()] == [".json", ".json"]

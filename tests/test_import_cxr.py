"""Every chest X-ray layout becomes a sound dataset folder; wrong trees name what is missing."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import cxr_label_trees as labelled
import cxr_trees as trees
import pytest

import prepare_dataset
from utils.cli import UserError
from utils.dataset_records import Problem
from utils.importers.layout import LayoutOptions
from utils.importers.layouts import find_layout
from utils.importers.table_index import TableIndex

MIMIC_CSV = "mimic-cxr-2.0.0-{}.csv.gz"
PADCHEST_CSV = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"

# Tree -> (layout, what builds it, its images with the default flags)
TREES = {
    "mimic-cxr-jpg": ("mimic-cxr-jpg", trees.mimic_cxr, 4),
    "mimic-cxr-jpg, unpacked tables": ("mimic-cxr-jpg", partial(trees.mimic_cxr, gz=False), 4),
    "mimic-cxr": ("mimic-cxr", partial(trees.mimic_cxr, suffix=".dcm"), 4),
    "open-i of NLM": ("open-i", trees.open_i_nlm, 3),
    "open-i of Kaggle": ("open-i", trees.open_i_kaggle, 3),
    "padchest": ("padchest", labelled.padchest, 3),
    "padchest in one folder": ("padchest", partial(labelled.padchest, flat=True, gz=True), 3),
    "chexpert": ("chexpert", labelled.chexpert, 3),
    "chexpert in batches": ("chexpert", partial(labelled.chexpert, batches=True), 3),
    "chexpert-plus": ("chexpert-plus", labelled.chexpert_plus, 3),
    "chexpert-plus of DICOM": (
        "chexpert-plus",
        partial(labelled.chexpert_plus, suffix=".dcm", folder="DICOM"),
        3,
    ),
    "nih14": ("nih14", labelled.nih14, 3),
    "nih14 in one folder": ("nih14", partial(labelled.nih14, flat=True, year="2017"), 3),
    "vindr-cxr": ("vindr-cxr", labelled.vindr_cxr, 4),
    "vindr-cxr, the training set alone": (
        "vindr-cxr",
        partial(labelled.vindr_cxr, sets=("train",)),
        3,
    ),
}

# (tree, what is taken away, what the message must name)
PARTS = (
    ("mimic-cxr-jpg", MIMIC_CSV.format("metadata"), "metadata.csv.gz"),
    ("mimic-cxr-jpg", MIMIC_CSV.format("split"), "split.csv.gz"),
    ("mimic-cxr-jpg", MIMIC_CSV.format("chexpert"), "negbio.csv.gz"),
    ("mimic-cxr-jpg", "files/**/*.jpg", "the images"),
    ("mimic-cxr-jpg", "files/**/*.txt", "mimic-cxr-reports.zip"),
    ("mimic-cxr", "files/**/*.dcm", ".dcm is not in"),
    ("open-i of NLM", "NLMCXR_png/*", "NLMCXR_png/*.png"),
    ("open-i of NLM", "ecgen-radiology", "ecgen-radiology/*.xml"),
    ("open-i of NLM", "indiana_projections.csv", "indiana_projections.csv"),
    ("open-i of Kaggle", "images", "images/images_normalized/*.png"),
    ("open-i of Kaggle", "indiana_reports.csv", "indiana_reports.csv"),
    ("open-i of Kaggle", "indiana_projections.csv", "indiana_projections.csv"),
    ("padchest", PADCHEST_CSV, PADCHEST_CSV),
    ("padchest", "*/*.png", "0/*.png"),
    ("chexpert", "train.csv", "train.csv"),
    ("chexpert", "valid.csv", "valid.csv"),
    ("chexpert", "*/patient*", "the images"),
    ("chexpert-plus", "df_chexpert_plus_240401.csv", "df_chexpert_plus_240401.csv"),
    ("chexpert-plus", "chexbert_labels", "chexbert_labels/impression_fixed.json"),
    ("chexpert-plus", "PNG", "the images"),
    ("nih14", "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"),
    ("nih14", "train_val_list.txt", "train_val_list.txt"),
    ("nih14", "test_list.txt", "test_list.txt"),
    ("nih14", "images_*", "images_001/images/*.png"),
    ("vindr-cxr", "train", "train/*.dicom"),
    ("vindr-cxr", "test", "test/*.dicom"),
    ("vindr-cxr", "annotations/image_labels_train.csv", "image_labels_train.csv"),
    ("vindr-cxr", "annotations/image_labels_test.csv", "image_labels_test.csv"),
)


@pytest.fixture
def root(tmp_path) -> Path:
    """The source: two folders deep, so that what lies beside it is the test's own."""
    folder = tmp_path / "data" / "source"
    folder.mkdir(parents=True)
    return folder


def build(tree: str, root: Path) -> str:
    """Make one of the trees; returns its layout."""
    layout, builder, _ = TREES[tree]
    builder(root)
    return layout


def told(layout: str, root: Path, **options) -> tuple[dict[str, dict], list[Problem]]:
    """Rows by name and problems that a layout tells of."""
    found = find_layout(layout)
    assert found.missing(root, LayoutOptions(**options)) == []
    with TableIndex(root.parent / "index.sqlite") as index:
        items = list(found.images(root, LayoutOptions(**options), index))
    images = [item for item in items if not isinstance(item, Problem)]
    for image in images:
        assert Path(image.path).is_file()
        assert set(image.row) <= set(found.columns)
        assert image.row["modality"] == "CXR"
    rows = {image.name: dict(image.row) for image in images}
    assert len(rows) == len(images)
    return rows, [item for item in items if isinstance(item, Problem)]


def column(rows: dict[str, dict], name: str) -> dict[str, str]:
    """One column by the file's stem."""
    return {Path(key).stem: row[name] for key, row in rows.items()}


def only(problems: list[Problem]) -> Problem:
    """The one problem there is."""
    assert len(problems) == 1, problems
    return problems[0]


def take_away(root: Path, pattern: str) -> None:
    """Delete files or folders; there must be one."""
    paths = list(root.glob(pattern))
    assert paths
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("tree", TREES)
def test_a_complete_tree_lacks_nothing_and_has_no_problem(tree, root):
    layout = build(tree, root)
    rows, problems = told(layout, root)
    assert problems == []
    assert len(rows) == TREES[tree][2]


@pytest.mark.parametrize(("tree", "part", "named"), PARTS)
def test_each_missing_part_is_named(tree, part, named, root):
    layout = find_layout(build(tree, root))
    take_away(root, part)
    missing = layout.missing(root, LayoutOptions())
    assert len(missing) == (2 if part == "indiana_reports.csv" else 1), missing
    assert any(named in sentence for sentence in missing)
    assert all(str(root) in sentence for sentence in missing)


@pytest.mark.parametrize("layout", sorted({layout for layout, _, _ in TREES.values()}))
def test_an_empty_folder_lacks_everything(layout, root):
    missing = find_layout(layout).missing(root, LayoutOptions())
    assert len(missing) >= 2
    assert any("images" in sentence for sentence in missing)


def test_mimic_texts_labels_and_the_official_split(root):
    trees.mimic_cxr(root)
    rows, _ = told("mimic-cxr-jpg", root)
    name = "p10/p10000032/s50414267/02aa804e-bde0afdd.jpg"
    assert rows[name] == {
        "text": "The heart is large. Cardiomegaly.",
        "label": "Cardiomegaly",
        "uncertain": "",
        "patient_id": "10000032",
        "split": "train",
        "source": "MIMIC-CXR-JPG",
        "modality": "CXR",
        "study_id": "50414267",
        "view": "PA",
    }
    others = [row for key, row in rows.items() if key != name]
    assert [row["text"] for row in others] == [
        "The line ends in the right atrium.",
        "Edema may be present.",
        "Clear.",
    ]
    assert [row["label"] for row in others] == ["Lung Opacity;Support Devices", "", "No Finding"]
    assert [row["uncertain"] for row in others] == ["Pneumonia", "Edema", ""]
    assert [row["split"] for row in others] == ["train", "val", "test"]


def test_mimic_views_and_sections_are_chosen(root):
    trees.mimic_cxr(root)
    rows, _ = told("mimic-cxr-jpg", root, views="lateral", report_sections=("impression",))
    assert [(row["view"], row["text"]) for row in rows.values()] == [("LATERAL", "Cardiomegaly.")]
    rows, _ = told("mimic-cxr-jpg", root, views="all")
    assert len(rows) == len(trees.MIMIC_IMAGES)


@pytest.mark.parametrize("place", ["../mimic-cxr-reports", "../mimic-cxr", "mimic-cxr-reports"])
def test_mimic_reports_may_lie_beside(place, root):
    trees.mimic_cxr(root, reports=root / place)
    rows, problems = told("mimic-cxr-jpg", root)
    assert problems == []
    assert column(rows, "text")["02aa804e-bde0afdd"] == "The heart is large. Cardiomegaly."


def test_mimic_reports_may_lie_as_physionet_puts_the_two_releases(root):
    source = root / "mimic-cxr-jpg" / "2.1.0"
    trees.mimic_cxr(source, reports=root / "mimic-cxr" / "2.1.0")
    rows, problems = told("mimic-cxr-jpg", source)
    assert problems == []
    assert all(row["text"] for row in rows.values())


def test_mimic_negbio_labels_serve_where_chexpert_has_none(root):
    trees.mimic_cxr(root)
    (root / MIMIC_CSV.format("chexpert")).rename(root / MIMIC_CSV.format("negbio"))
    rows, _ = told("mimic-cxr-jpg", root)
    assert column(rows, "label")["02aa804e-bde0afdd"] == "Cardiomegaly"


def test_mimic_without_text_needs_no_reports(root):
    trees.mimic_cxr(root)
    take_away(root, "files/**/*.txt")
    rows, problems = told("mimic-cxr-jpg", root, report_sections=())
    assert problems == []
    assert set(column(rows, "text").values()) == {""}


def test_mimic_problems_name_the_line_of_the_metadata(root):
    trees.mimic_cxr(root)
    take_away(root, "files/p10/p10000032/s50414267/02aa*")
    take_away(root, "files/p11/p11000011/*.txt")
    report = root / "files/p10/p10000032/s53189527.txt"
    report.write_text(" INDICATION:  Line.\n", encoding="utf-8")
    (root / "files/p19/p19999987/s58621812.txt").write_bytes(b" FINDINGS: na\xefve\n")
    _, problems = told("mimic-cxr-jpg", root)
    table = "mimic-cxr-2.0.0-metadata.csv.gz"
    assert [(problem.where, problem.kind) for problem in problems] == [
        (f"{table}:2", "missing file"),
        (f"{table}:4", "empty text"),
        (f"{table}:5", "missing report"),
        (f"{table}:6", "not UTF-8"),
    ]
    assert "02aa804e-bde0afdd.jpg" in problems[0].message
    assert "findings or impression" in problems[1].message


def test_a_mimic_report_that_cannot_be_read_is_a_problem_of_its_row(root):
    trees.mimic_cxr(root)
    report = root / "files/p10/p10000032/s53189527.txt"
    report.unlink()
    report.mkdir()
    _, problems = told("mimic-cxr-jpg", root)
    assert only(problems)[:2] == ("mimic-cxr-2.0.0-metadata.csv.gz:4", "cannot be read")
    assert "s53189527.txt: Is a directory" in only(problems).message


@pytest.mark.parametrize("layout", ["mimic-cxr-jpg", "chexpert-plus"])
def test_images_whose_label_row_is_missing_are_counted(layout, root, capsys):
    if layout == "mimic-cxr-jpg":
        trees.mimic_cxr(root, gz=False)
        table = root / "mimic-cxr-2.0.0-chexpert.csv"
    else:
        labelled.chexpert_plus(root)
        table = root / "chexbert_labels" / "impression_fixed.json"
    told(layout, root)
    assert "have no label" not in capsys.readouterr().err
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    rows, problems = told(layout, root)
    assert problems == []
    assert sum(not row["label"] and not row["uncertain"] for row in rows.values()) == 1
    said = capsys.readouterr().err
    assert f"{layout}: 1 images have no label: 1 " in said
    assert f"not in {table.name}" in said


def test_mimic_image_without_a_split_is_a_problem(root):
    trees.mimic_cxr(root)
    rows = [(image, study, patient, "tune") for patient, study, image, *_ in trees.MIMIC_IMAGES]
    rows = [(*rows[0][:3], "train"), *rows[3:]]
    columns = ("dicom_id", "study_id", "subject_id", "split")
    trees.write_table(root / MIMIC_CSV.format("split"), columns, rows)
    rows, problems = told("mimic-cxr-jpg", root)
    assert len(rows) == 1
    assert {problem.kind for problem in problems} == {"unknown split"}
    assert "''" in problems[0].message
    assert "'tune'" in problems[1].message


@pytest.mark.parametrize("tree", ["open-i of NLM", "open-i of Kaggle"])
def test_open_i_gives_the_same_in_both_forms(tree, root):
    rows, _ = told(build(tree, root), root)
    told_rows = [
        (row["study_id"], row["text"], row["label"], row["mesh"], row["view"])
        for row in rows.values()
    ]
    assert told_rows == [
        ("1", "Lungs are clear of XXXX. Normal chest.", "normal", "normal", "frontal"),
        (
            "2",
            "Borderline heart size.",
            "Cardiomegaly;Pulmonary Artery",
            "Cardiomegaly/borderline;Pulmonary Artery/enlarged;Cardiomegaly/mild",
            "frontal",
        ),
        (
            "10",
            "Granuloma on the left.",
            "Calcified Granuloma;Catheters, Indwelling",
            "Calcified Granuloma/lung/upper lobe/left;Catheters, Indwelling/right",
            "frontal",
        ),
    ]


def test_open_i_frontal_is_what_the_table_of_projections_says(root):
    trees.open_i_nlm(root)
    rows, _ = told("open-i", root)
    assert "CXR1_1_IM-0001-4001.png" in rows  # the second of its report
    assert "CXR1_1_IM-0001-3001.png" not in rows
    rows, _ = told("open-i", root, views="lateral")
    assert [*rows] == ["CXR1_1_IM-0001-3001.png", "CXR2_IM-0652-2001.png"]


def test_open_i_of_nlm_gives_all_views_without_the_table_of_projections(root):
    trees.open_i_nlm(root)
    take_away(root, "indiana_projections.csv")
    rows, problems = told("open-i", root, views="all")
    assert (len(rows), problems) == (5, [])
    assert set(column(rows, "view").values()) == {""}


def test_open_i_sections_are_chosen(root):
    trees.open_i_kaggle(root)
    rows, problems = told("open-i", root, report_sections=("indication", "impression"))
    assert [row["text"] for row in rows.values()] == [
        "Cough. Normal chest.",
        "Dyspnea. Borderline heart size.",
        "Pain.",
    ]
    assert problems == []


def test_open_i_problems_name_the_report(root):
    trees.open_i_nlm(root)
    take_away(root, "NLMCXR_png/CXR2_*-1001.png")
    (root / "ecgen-radiology" / "10.xml").write_text("<eCitation><uId>", encoding="utf-8")
    _, problems = told("open-i", root)
    assert [(problem.where, problem.kind) for problem in problems] == [
        ("ecgen-radiology/2.xml", "missing file"),
        ("ecgen-radiology/10.xml", "broken XML"),
    ]
    _, problems = told("open-i", root, report_sections=("findings",), views="lateral")
    assert problems[0][:2] == ("ecgen-radiology/2.xml", "empty text")


def test_open_i_with_two_different_reports_of_one_study_takes_neither(root):
    trees.open_i_kaggle(root)
    table = root / "indiana_reports.csv"
    with table.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    trees.write_table(table, header, [*rows, rows[0]])
    assert told("open-i", root)[1] == []  # the same again is no matter
    other = [*rows[0][:-1], "Large heart."]
    trees.write_table(table, header, [*rows, other])
    found, problems = told("open-i", root)
    assert [problem.kind for problem in problems] == ["several reports"]
    assert "uid 1 has 2 rows in indiana_reports.csv" in problems[0].message
    assert "1" not in column(found, "study_id").values()


def test_open_i_image_without_a_known_view_is_a_problem(root):
    trees.open_i_nlm(root)
    columns = ("uid", "filename", "projection")
    rows = [(1, "1_IM-0001-3001.dcm.png", "Lateral"), (2, "2_IM-0652-1001.dcm.png", "Frontal")]
    trees.write_table(root / "indiana_projections.csv", columns, rows)
    rows, problems = told("open-i", root)
    assert [*rows] == ["CXR2_IM-0652-1001.png"]
    assert {problem.kind for problem in problems} == {"unknown view"}
    assert "CXR1_1_IM-0001-4001" in problems[0].message


def test_padchest_labels_are_a_list_and_reports_a_line(root):
    labelled.padchest(root)
    rows, _ = told("padchest", root)
    assert [*rows] == ["0/2053_k6ga29.png", "13/1349_tqvst2.png", "54/2776_qvzba6.png"]
    assert [*column(rows, "label").values()] == [
        "normal",
        "cardiomegaly;pleural effusion",
        "NSG tube",
    ]
    assert [*column(rows, "text").values()] == ["sin hallazgos", "derram", "sonda nsg"]
    assert [*column(rows, "patient_id").values()] == ["8398", "3137", "3137"]
    assert [*column(rows, "view").values()] == ["PA", "AP", "AP_horizontal"]
    assert all("split" not in row for row in rows.values())


def test_padchest_excluded_projections_are_in_no_view(root):
    labelled.padchest(root)
    assert len(told("padchest", root, views="all")[0]) == 4
    assert [*told("padchest", root, views="lateral")[0]] == ["0/2053_n2bqp1.png"]


def test_padchest_problems_name_the_line(root, monkeypatch):
    images = [list(image) for image in labelled.PADCHEST_IMAGES]
    images[0][4] = "['normal'"
    images[2][5] = "  "
    monkeypatch.setattr(labelled, "PADCHEST_IMAGES", images)
    labelled.padchest(root)
    take_away(root, "54/2776_q*")
    _, problems = told("padchest", root)
    assert [(problem.where, problem.kind) for problem in problems] == [
        (f"{PADCHEST_CSV}:2", "broken labels"),
        (f"{PADCHEST_CSV}:4", "empty text"),
        (f"{PADCHEST_CSV}:5", "missing file"),
    ]
    rows, problems = told("padchest", root, report_sections=())
    assert len(rows) == 1
    assert "empty text" not in {problem.kind for problem in problems}


def test_chexpert_takes_patient_study_and_split_from_the_path(root):
    labelled.chexpert(root, sets=("train", "valid", "test"))
    rows, _ = told("chexpert", root)
    assert rows["train/patient00001/study1/view1_frontal.jpg"] == {
        "label": "Edema",
        "uncertain": "Fracture",
        "patient_id": "patient00001",
        "split": "train",
        "source": "CheXpert",
        "modality": "CXR",
        "study_id": "patient00001/study1",
        "view": "AP",
    }
    assert [row["split"] for row in rows.values()] == ["train", "train", "val", "test"]
    rows, _ = told("chexpert", root, views="lateral")
    assert [row["view"] for row in rows.values()] == ["lateral"]


def test_chexpert_problems_name_the_line(root):
    labelled.chexpert(root)
    take_away(root, "valid/patient64541")
    rows = [("somewhere/else.jpg", "", "", "", "", *[""] * 14)]
    columns = labelled.CHEXPERT_HEADER.split(",")
    trees.write_table(root / "train.csv", columns, rows)
    _, problems = told("chexpert", root)
    assert [problem[:2] for problem in problems] == [
        ("train.csv:2", "unknown path"),
        ("valid.csv:2", "missing file"),
    ]


def test_chexpert_without_the_columns_of_labels_is_refused(root):
    labelled.chexpert(root)
    path = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    trees.write_table(root / "train.csv", ("Path", "AP/PA"), [(path, "AP")])
    with pytest.raises(UserError, match=r"train\.csv: no column No Finding, Enlarged"):
        told("chexpert", root)


def test_vindr_without_the_columns_of_labels_is_refused(root):
    labelled.vindr_cxr(root)
    image = next(iter(labelled.VINDR_TEST))
    table = root / "annotations" / "image_labels_test.csv"
    trees.write_table(table, ("image_id", "width"), [(image, 512)])
    with pytest.raises(UserError, match=r"image_labels_test\.csv: no column No finding"):
        told("vindr-cxr", root)


def test_chexpert_plus_labels_of_something_else_are_refused(root):
    labelled.chexpert_plus(root)
    path = root / "chexbert_labels/impression_fixed.json"
    path.write_text('{"path_to_image": "x", "Edema": 1.0}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"impression_fixed\.json: a row has no No Finding"):
        told("chexpert-plus", root)


def test_chexpert_plus_joins_sections_with_labels(root):
    labelled.chexpert_plus(root)
    rows, _ = told("chexpert-plus", root)
    assert [row["text"] for row in rows.values()] == [
        "Interstitial markings. 1. Pulmonary edema.",
        "Normal chest.",
        "Large heart.",
    ]
    assert [row["label"] for row in rows.values()] == ["Edema", "No Finding", "Cardiomegaly"]
    assert [row["uncertain"] for row in rows.values()] == ["Fracture", "", ""]
    assert [row["split"] for row in rows.values()] == ["train", "train", "val"]
    _, problems = told("chexpert-plus", root, report_sections=("impression",))
    assert only(problems)[:2] == ("df_chexpert_plus_240401.csv:6", "empty text")  # 2 has two lines
    rows, _ = told("chexpert-plus", root, report_sections=("indication",))
    assert {row["text"] for row in rows.values()} == {"Dyspnea."}


def test_chexpert_plus_line_that_is_no_json_is_named(root):
    labelled.chexpert_plus(root)
    with (root / "chexbert_labels/impression_fixed.json").open("a", encoding="utf-8") as stream:
        stream.write("{'single': quotes}\n")
    with pytest.raises(UserError, match=r"impression_fixed\.json:5: not JSON"):
        told("chexpert-plus", root)


@pytest.mark.parametrize("tree", ["nih14", "nih14 in one folder"])
def test_nih14_keeps_its_own_words_and_lists(tree, root):
    build(tree, root)
    rows, _ = told("nih14", root)
    assert column(rows, "label") == {
        "00000001_000": "Cardiomegaly;Emphysema",
        "00000002_000": "No Finding",
        "00030805_000": "Pleural_Thickening",
    }
    assert [*column(rows, "split").values()] == ["train", "train", "test"]
    assert [*column(rows, "patient_id").values()] == ["1", "2", "30805"]
    assert all("text" not in row for row in rows.values())


def test_nih14_problems_name_the_line(root):
    labelled.nih14(root)
    (root / "train_val_list.txt").write_text("00000001_000.png\n", encoding="utf-8")
    take_away(root, "images_012/images/*")
    _, problems = told("nih14", root)
    assert [problem[:2] for problem in problems] == [
        ("Data_Entry_2017_v2020.csv:3", "unknown split"),
        ("Data_Entry_2017_v2020.csv:4", "missing file"),
    ]


def test_an_image_of_nih14_in_both_lists_is_in_no_split(root):
    labelled.nih14(root)
    with (root / "test_list.txt").open("a", encoding="utf-8") as stream:
        stream.write("\n00000001_000.png\n")
    rows, problems = told("nih14", root)
    assert only(problems)[:2] == ("Data_Entry_2017_v2020.csv:2", "in two splits")
    assert "00000001_000" not in column(rows, "split")


def test_vindr_labels_are_what_two_of_three_readers_say(root):
    labelled.vindr_cxr(root)
    rows, _ = told("vindr-cxr", root)
    assert column(rows, "label") == {
        "000434271f63a053c4128a0ba6352c7f": "Aortic enlargement",
        "00053190460d56c53cc3e57321387478": "No finding",
        "0005e8e3701dfb1dd93d53e2ff537b6e": "",
        "002a34c58c5b758217ed1f584ccbcfe9": "Cardiomegaly",
    }
    assert column(rows, "uncertain") == {
        "000434271f63a053c4128a0ba6352c7f": "Cardiomegaly;Nodule/Mass",
        "00053190460d56c53cc3e57321387478": "",
        "0005e8e3701dfb1dd93d53e2ff537b6e": "Cardiomegaly;Nodule/Mass;Pneumonia",
        "002a34c58c5b758217ed1f584ccbcfe9": "",
    }
    assert [*column(rows, "num_readers").values()] == ["3", "3", "3", "1"]
    assert [*column(rows, "split").values()] == ["train", "train", "train", "test"]


@pytest.mark.parametrize("layout", ["nih14", "vindr-cxr"])
def test_lateral_views_of_a_frontal_data_set_are_refused(layout, root):
    build(layout, root)
    assert "lateral" in find_layout(layout).missing(root, LayoutOptions(views="lateral"))[0]


def run_import(layout: str, root: Path, *flags: str) -> Path:
    """Run the command; returns the dataset folder."""
    output = root.parents[1] / "imported"
    argv = ["import", "--source", str(root), "--layout", layout, "--output_dir", str(output)]
    assert prepare_dataset.main([*argv, "--num_workers", "0", *flags]) == 0
    return output


def metadata(folder: Path) -> list[dict[str, str]]:
    """Rows of a dataset folder."""
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("tree", TREES)
def test_every_tree_becomes_a_valid_dataset_folder(tree, root, capsys):
    layout = build(tree, root)
    folder = run_import(layout, root)
    rows = metadata(folder)
    assert len(rows) == TREES[tree][2]
    assert {Path(row["file_name"]).suffix for row in rows} <= {".png", ".jpg"}
    capsys.readouterr()
    argv = ["validate", "--data_dir", str(folder), "--num_workers", "0"]
    assert prepare_dataset.main(argv) == 0
    assert json.loads(capsys.readouterr().out)["problem_counts"] == {}
    for path in folder.rglob("*.*"):
        assert b"Doe^Jane" not in path.read_bytes()


def test_a_wrong_tree_is_refused_with_all_missing_parts_and_the_tree(root):
    trees.mimic_cxr(root)
    take_away(root, MIMIC_CSV.format("*"))
    with pytest.raises(UserError) as error:
        run_import("mimic-cxr-jpg", root)
    for name in ("metadata", "split", "chexpert"):
        assert f"{MIMIC_CSV.format(name)}" in str(error.value)
    assert find_layout("mimic-cxr-jpg").tree.strip() in str(error.value)


def test_a_partial_download_is_imported_as_far_as_it_goes(root):
    trees.mimic_cxr(root)
    take_away(root, "files/p1[19]")
    with pytest.raises(UserError, match="2 problems"):
        run_import("mimic-cxr-jpg", root)
    folder = run_import("mimic-cxr-jpg", root, "--skip_invalid")
    assert {row["patient_id"] for row in metadata(folder)} == {"10000032"}


def test_labels_can_be_the_text_where_the_reports_are_not_there(root):
    trees.mimic_cxr(root)
    take_away(root, "files/**/*.txt")
    flags = ("--report_sections", "--caption", "chest X-ray, {view} view")
    folder = run_import("mimic-cxr-jpg", root, *flags)
    assert [row["text"] for row in metadata(folder)] == [
        "chest X-ray, PA view",
        "chest X-ray, AP view",
        "chest X-ray, AP view",
        "chest X-ray, PA view",
    ]


def test_a_section_that_no_report_has_is_refused(root, capsys):
    trees.mimic_cxr(root)
    with pytest.raises(SystemExit, match="2"):
        run_import("mimic-cxr-jpg", root, "--report_sections", "finding")
    assert "--report_sections: invalid choice: 'finding'" in capsys.readouterr().err


def test_a_data_set_without_reports_gets_its_text_from_a_template(root):
    labelled.nih14(root)
    folder = run_import("nih14", root, "--caption", "chest X-ray, {label}")
    assert [row["text"] for row in metadata(folder)] == [
        "chest X-ray, Cardiomegaly, Emphysema",
        "chest X-ray, No Finding",
        "chest X-ray, Pleural_Thickening",
    ]

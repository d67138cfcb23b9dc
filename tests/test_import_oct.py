"""The layouts of public OCT data sets: what they read, what they miss, what they refuse."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import oct_trees
import pytest
from PIL import Image

import prepare_dataset
from utils.cli import UserError
from utils.dataset_records import Problem
from utils.importers.layout import LayoutOptions
from utils.importers.layouts import find_layout
from utils.importers.release_folders import central
from utils.importers.table_index import TableIndex

NAMES = tuple(oct_trees.BUILDERS)
NUM_IMAGES = {
    "kermany": 32,
    "octdl": 14,
    "octid": 15,
    "srinivasan": 135,
    "olives": 98,
    "retouch": 21,
}


def read(name, source, **options):
    """What a layout yields of a source, in order."""
    options = LayoutOptions(**options)
    with TableIndex(source.parent / "index.sqlite") as index:
        return list(find_layout(name).images(source, options, index))


def missing(name, source):
    return find_layout(name).missing(source, LayoutOptions())


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """One complete tree per layout; nobody changes it."""
    folder = tmp_path_factory.mktemp("trees")
    return {name: build(folder / name) for name, build in oct_trees.BUILDERS.items()}


# Complete trees


@pytest.mark.parametrize("name", NAMES)
def test_of_a_complete_tree_nothing_is_missing(name, trees):
    assert missing(name, trees[name]) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_image_of_the_tree_is_told_once_with_the_layouts_columns(name, trees):
    found = read(name, trees[name])
    layout = find_layout(name)
    assert len(found) == NUM_IMAGES[name]
    assert len({image.name.lower() for image in found}) == len(found)
    for image in found:
        assert Path(image.path).is_file()
        assert set(image.row) == set(layout.columns)
        assert image.row["modality"] == layout.modality == "OCT"
        assert image.row["label"] and image.row["finding"] and image.row["source"]
    assert [image.name for image in read(name, trees[name])] == [image.name for image in found]


@pytest.mark.parametrize("name", NAMES)
def test_the_tree_in_the_message_names_what_the_tests_build(name):
    layout = find_layout(name)
    assert layout.name == name
    assert layout.tree.startswith("SOURCE/")


def test_kermanys_patient_is_the_middle_of_the_name(trees):
    images = {image.name: image.row for image in read("kermany", trees["kermany"])}
    row = images["test/DRUSEN/DRUSEN-103046-1.jpeg"]
    assert (row["label"], row["finding"], row["patient_id"]) == ("DRUSEN", "drusen", "103046")
    assert row["split"] == row["official_split"] == "test"
    assert Counter(row["split"] for row in images.values()) == {"train": 16, "test": 16}


@pytest.mark.parametrize("top", ["", "OCT2017 ", "CellData/OCT", "ZhangLabData/CellData/OCT"])
def test_kermanys_releases_begin_in_different_folders(top, tmp_path):
    source = oct_trees.kermany(tmp_path / "source", top=top)
    chest = source / Path(top).parent / "chest_xray" / "train" / "NORMAL" / "NORMAL-1-0001.jpeg"
    oct_trees.draw(chest, 1)
    assert missing("kermany", source) == []
    assert len(read("kermany", source)) == 32


def test_a_patient_of_two_official_splits_stays_in_the_test_alone(tmp_path, capsys):
    source = oct_trees.kermany(tmp_path / "source", shared=True)
    oct_trees.draw(source / "OCT2017" / "val" / "CNV" / "CNV-1016042-7.jpeg", 77)
    for label in ("DME", "DRUSEN", "NORMAL"):
        oct_trees.draw(source / "OCT2017" / "val" / label / f"{label}-5-1.jpeg", 78)
    rows = [image.row for image in read("kermany", source)]
    assert len(rows) == 40  # none is lost
    splits = {}
    for row in rows:
        if row["split"]:
            splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert splits["103044"] == {"test"} and splits["1016042"] == {"val"}
    outside = Counter(row["official_split"] for row in rows if not row["split"])
    assert outside == {"train": 6}  # four of patients of test, two of a patient of val
    assert sum(row["split"] == "test" for row in rows) == 16  # as the release has it
    said = capsys.readouterr().err
    assert "5 patients are in more than one split" in said
    assert "the 6 images elsewhere" in said and "split --overwrite" in said


def test_of_disjoint_official_splits_nothing_is_said(trees, capsys):
    read("kermany", trees["kermany"])
    assert capsys.readouterr().err == ""


def test_octdls_table_gives_disease_condition_patient_and_eye(trees):
    images = read("octdl", trees["octdl"])
    assert images[0].name == "AMD/amd_1047099_1.jpg"
    assert images[0].where == "OCTDL_labels.csv:2"
    row = images[0].row
    assert (row["label"], row["patient_id"], row["eye"]) == ("AMD", "100", "OD")
    assert (row["subcategory"], row["condition"]) == ("late", "MNV")
    assert not {"sex", "year"} & set(row)


def test_octdls_finding_is_the_disease_with_what_stage_and_condition_add(trees):
    images = read("octdl", trees["octdl"])
    assert [image.row["finding"] for image in images[::2]] == [
        "late age-related macular degeneration, macular neovascularization",
        "diabetic macular edema",
        "epiretinal membrane",
        "normal",
        "retinal artery occlusion",
        "retinal vein occlusion, disorganization of retinal inner layers",
        "vitreomacular interface disease, macular hole",
    ]


def test_octdl_is_read_with_the_table_among_the_classes_too(tmp_path):
    source = oct_trees.octdl(tmp_path / "OCTDL", top="")
    assert missing("octdl", source) == []
    assert len(read("octdl", source)) == 14


def test_octids_class_is_in_the_file_names_and_its_patients_are_unknown(trees):
    images = read("octid", trees["octid"])
    assert {image.row["label"] for image in images} == {"NORMAL", "AMRD", "CSR", "DR", "MH"}
    assert all("patient_id" not in image.row for image in images)
    assert "CSR/CSR10.jpeg" in {image.name for image in images}


def test_octid_with_a_link_to_its_own_folder_ends(tmp_path):
    source = oct_trees.octid(tmp_path / "source")
    (source / "again").symlink_to(source, target_is_directory=True)
    assert missing("octid", source) == []
    assert len(read("octid", source)) == NUM_IMAGES["octid"]


def test_srinivasans_volumes_are_patients(trees):
    images = read("srinivasan", trees["srinivasan"])
    assert len({image.row["patient_id"] for image in images}) == 45
    assert Counter(image.row["label"] for image in images) == {"AMD": 45, "DME": 45, "NORMAL": 45}
    assert images[0].name == "AMD1/001.tif"


def test_olives_labels_are_the_biomarkers_that_are_marked(trees):
    images = {image.name: image.row for image in read("olives", trees["olives"])}
    none = images["Prime_FULL/02-045/W0/OS/0.tif"]
    both = images["TREX DME/GILA/0201GOD/V1/OD/TREXJ_000048.tif"]
    assert (none["label"], none["eye"], none["visit"]) == ("no biomarker", "OS", "W0")
    assert both["label"] == "macular edema;intraretinal fluid"
    assert both["finding"] == "macular edema, intraretinal fluid"
    assert (both["patient_id"], both["eye_id"], both["bcva"], both["cst"]) == (
        *("201", "1", "61", "575"),
    )


def test_olives_finds_a_png_where_the_table_says_tif(tmp_path):
    source = oct_trees.olives(tmp_path / "source", prime_suffix=".png")
    images = read("olives", source)
    assert all(Path(image.path).is_file() for image in images)
    assert Counter(Path(image.name).suffix for image in images) == {".png": 49, ".tif": 49}


def test_central_n_takes_the_middle_of_volumes_that_are_single_files(trees):
    scans = [image.name for image in read("olives", trees["olives"], central_n=5)]
    assert scans[:5] == [f"Prime_FULL/02-045/W0/OS/{scan}.tif" for scan in range(22, 27)]
    assert len(scans) == 10
    middle = read("srinivasan", trees["srinivasan"], central_n=1)
    assert len(middle) == 45 and middle[0].name == "AMD1/002.tif"


@pytest.mark.parametrize(
    "length, count, middle",
    [(5, 3, [1, 2, 3]), (4, 1, [1]), (4, 2, [1, 2]), (3, 9, [0, 1, 2]), (3, None, [0, 1, 2])],
)
def test_the_middle_of_a_series(length, count, middle):
    assert central(list(range(length)), count) == middle


def test_retouchs_label_is_what_the_reference_marks_in_the_b_scan(trees):
    images = [image for image in read("retouch", trees["retouch"]) if "TRAIN025" in image.name]
    assert [image.frame for image in images] == list(range(7))
    labels = [image.row["label"] for image in images]
    assert labels == ["no fluid", "IRF", "SRF", "PED", "IRF;PED", "no fluid", "no fluid"]
    row = images[4].row
    assert row["finding"] == "intraretinal fluid, pigment epithelial detachment"
    assert (row["patient_id"], row["source"]) == ("TRAIN025", "RETOUCH Spectralis")
    assert images[4].name == "TRAIN025/TRAIN025_004.mhd"


def test_retouchs_test_cases_have_no_label_and_may_be_left_out(tmp_path):
    source = oct_trees.retouch(tmp_path / "source", wrapped=True, test=True)
    assert missing("retouch", source) == []
    rows = [image.row for image in read("retouch", source)]
    assert Counter(row["official_split"] for row in rows) == {"train": 21, "test": 7}
    assert {row["label"] for row in rows if row["official_split"] == "test"} == {""}
    assert all("split" not in row for row in rows)


def test_central_n_takes_b_scans_of_a_volume(trees):
    images = read("retouch", trees["retouch"], central_n=3, around="middle")
    assert [image.frame for image in images] == [2, 3, 4] * 3
    assert [image.row["label"] for image in images[:3]] == ["SRF", "PED", "IRF;PED"]


@pytest.mark.parametrize(
    "change, kind",
    [
        (lambda values: values[:-1], "reference of another size"),
        (lambda values: np.where(values == 3, 4, values).astype(np.uint8), "unknown value"),
        (lambda values: values.astype(np.uint16), "unknown value"),
    ],
)
def test_a_reference_that_does_not_fit_is_a_problem_of_its_case(change, kind, trees, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trees["retouch"], source)
    folder = source / "RETOUCH-TrainingSet-Topcon" / "TRAIN049"
    values = np.frombuffer((folder / "reference.raw").read_bytes(), np.uint8).reshape(7, 48, 64)
    oct_trees.write_metaimage(folder / "reference.mhd", change(values))
    found = read("retouch", source)
    (problem,) = (item for item in found if isinstance(item, Problem))
    assert problem.where == "RETOUCH-TrainingSet-Topcon/TRAIN049"
    assert problem.kind == kind and "reference.mhd" in problem.message
    assert len(found) > 14  # the other cases are told all the same


# What is not there

PARTS = {
    "kermany": {
        "OCT2017/train": "OCT2017/train/ with CNV, DME, DRUSEN, NORMAL",
        "OCT2017/test": "OCT2017/test/ with CNV, DME, DRUSEN, NORMAL",
        "OCT2017/train/CNV": "OCT2017/train/CNV/*.jpeg: the train images of choroidal",
        "OCT2017/test/NORMAL": "OCT2017/test/NORMAL/*.jpeg: the test images of normal",
    },
    "octdl": {
        "OCTDL_labels.csv": "OCTDL_labels.csv: disease, condition, patient and eye",
        **{
            f"OCTDL/{label}": f"OCTDL/{label}/*.jpg: the images of "
            for label in ("AMD", "DME", "ERM", "NO", "RAO", "RVO", "VID")
        },
    },
    "octid": {
        f"{label} Retinal OCT images": f"{label}1.jpeg and the others of its archive"
        for label in ("NORMAL", "AMRD", "CSR", "DR", "MH")
    },
    "srinivasan": {
        "Publication_Dataset/AMD7": "AMD7, each with TIFFs/8bitTIFFs/*.tif: volumes of dry",
        "Publication_Dataset/DME1": "DME1, each with TIFFs/8bitTIFFs/*.tif: volumes of diabetic",
        "Publication_Dataset/NORMAL15/TIFFs": "NORMAL15, each with TIFFs/8bitTIFFs/*.tif",
    },
    "olives": {
        "OLIVES_Dataset_Labels": "Biomarker_Clinical_Data_Images.csv: 16 biomarkers",
        "OLIVES/Prime_FULL": "OLIVES/Prime_FULL/: the B-scans of the PRIME trial",
        "OLIVES/TREX DME": "OLIVES/TREX DME/: the B-scans of the TREX-DME trial",
    },
    "retouch": {
        "RETOUCH-TrainingSet-Topcon": "RETOUCH-TrainingSet-Topcon/TRAIN.../: 22 cases of Topcon",
        "RETOUCH-TrainingSet-Cirrus/TRAIN001/oct.mhd": "TRAIN001/oct.mhd: the header of the vol",
        "RETOUCH-TrainingSet-Cirrus/TRAIN001/oct.raw": "TRAIN001/oct.raw: the volume",
        "RETOUCH-TrainingSet-Cirrus/TRAIN001/reference.mhd": "reference.mhd: the header of the re",
        "RETOUCH-TrainingSet-Cirrus/TRAIN001/reference.raw": "reference.raw: the marked fluids",
    },
}


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize(
    "name, part", [(name, part) for name, parts in PARTS.items() for part in parts]
)
def test_a_part_that_is_not_there_is_named_alone(name, part, trees, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trees[name], source)
    remove(source / part)
    (sentence,) = missing(name, source)
    assert PARTS[name][part] in sentence


@pytest.mark.parametrize("name", NAMES)
def test_of_an_empty_folder_everything_is_missing(name, tmp_path):
    assert len(missing(name, tmp_path)) >= 2


def test_a_class_folder_without_an_image_is_missing(trees, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trees["kermany"], source)
    folder = source / "OCT2017" / "train" / "DME"
    for path in folder.iterdir():
        path.unlink()
    (folder / "._DME-1-1.jpeg").touch()  # macOS's shadow of a file
    (sentence,) = missing("kermany", source)
    assert sentence.startswith("OCT2017/train/DME/*.jpeg")


# What is wrong


def problems_of(name, source):
    return [found for found in read(name, source) if isinstance(found, Problem)]


@pytest.mark.parametrize(
    "name, file",
    [
        ("kermany", "OCT2017/train/CNV/DME-1016042-3.jpeg"),
        ("kermany", "OCT2017/train/CNV/CNV-x-3.jpeg"),
        ("octid", "MH Retinal OCT images/scan 7.jpeg"),
    ],
)
def test_a_name_that_does_not_tell_class_or_patient_is_a_problem(name, file, trees, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trees[name], source)
    oct_trees.draw(source / file, 5)
    (problem,) = problems_of(name, source)
    assert (problem.where, problem.kind) == (file, "unknown name")


@pytest.mark.parametrize(
    "row, kind",
    [
        (["x_1", "GLAUCOMA", "", "", 1, "OD"], "unknown disease"),
        (["", "AMD", "", "", 1, "OD"], "empty file name"),
        (["../../etc/passwd", "AMD", "", "", 1, "OD"], "path outside the folder"),
        (["..\\secret", "AMD", "", "", 1, "OD"], "path outside the folder"),
    ],
)
def test_a_row_of_octdl_that_cannot_be_used_is_told_by_its_line(row, kind, trees, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trees["octdl"], source)
    with (source / "OCTDL_labels.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow([*row, "F", 1950, 40, 32])
    (problem,) = problems_of("octdl", source)
    assert (problem.where, problem.kind) == ("OCTDL_labels.csv:16", kind)


def test_an_image_of_octdl_that_the_table_does_not_name_is_a_problem(trees, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trees["octdl"], source)
    oct_trees.draw(source / "OCTDL" / "ERM" / "erm_9_9.jpg", 99)
    (problem,) = problems_of("octdl", source)
    assert (problem.where, problem.kind) == ("OCTDL/ERM/erm_9_9.jpg", "no row")


@pytest.mark.parametrize(
    "path, mark, kind",
    [
        ("/Prime_FULL/../../etc/0.tif", "0", "unknown path"),
        ("/OTHER/02-045/W0/OS/0.tif", "0", "unknown path"),
        ("/TREX DME/0201GOD/V1/OD/TREXJ_000000.tif", "0", "unknown path"),
        ("/Prime_FULL/02-045/W0/OS/0.tif", "maybe", "unknown value"),
    ],
)
def test_a_row_of_olives_that_cannot_be_used_is_told_by_its_line(path, mark, kind, trees, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trees["olives"], source)
    (table,) = source.rglob("Biomarker_Clinical_Data_Images.csv")
    with table.open("a", newline="") as stream:
        csv.writer(stream).writerow([path, 1, *["0"] * 15, mark, 1, 60, 300, 7])
    (problem,) = problems_of("olives", source)
    assert (problem.where, problem.kind) == (f"{table.name}:100", kind)


# The command line

CAPTION = "retinal OCT B-scan, {finding}"


def run(*argv, status=0):
    assert prepare_dataset.main([str(word) for word in argv]) == status


def imported(name, source, output_dir, *flags):
    run(
        *("import", "--source", source, "--layout", name, "--output_dir", output_dir),
        *("--caption", CAPTION, "--num_workers", 0, *flags),
    )
    with (output_dir / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", NAMES)
def test_an_imported_tree_is_a_valid_dataset_folder(name, trees, tmp_path, capsys):
    rows = imported(name, trees[name], tmp_path / "data")
    assert len(rows) == NUM_IMAGES[name]
    assert all(row["text"].startswith("retinal OCT B-scan, ") for row in rows)
    assert not list(tmp_path.glob("*.partial"))
    capsys.readouterr()
    required = ["text", "label", *(["patient_id"] if name != "octid" else [])]
    run("validate", "--data_dir", tmp_path / "data", "--num_workers", 0, "--require", *required)
    assert json.loads(capsys.readouterr().out)["rows"] == NUM_IMAGES[name]


def test_pixels_stay_what_they_are_and_volumes_become_png(trees, tmp_path):
    imported("srinivasan", trees["srinivasan"], tmp_path / "duke", "--central_n", 1)
    copy = tmp_path / "duke" / "AMD1" / "002.tif"
    original = trees["srinivasan"] / "Publication_Dataset" / "AMD1" / "TIFFs" / "8bitTIFFs"
    assert copy.read_bytes() == (original / "002.tif").read_bytes()
    imported("retouch", trees["retouch"], tmp_path / "retouch", "--central_n", 1)
    scan = np.asarray(Image.open(tmp_path / "retouch" / "TRAIN001" / "TRAIN001_003.png"))
    raw = trees["retouch"] / "RETOUCH-TrainingSet-Cirrus" / "TRAIN001" / "oct.raw"
    volume = np.frombuffer(raw.read_bytes(), np.uint8).reshape(7, 48, 64)
    assert (scan == volume[3]).all()


def test_volumes_whose_values_changed_are_written_anew_when_an_import_goes_on(tmp_path):
    source = oct_trees.retouch(tmp_path / "source")
    cases = source / "RETOUCH-TrainingSet-Cirrus"
    changed, broken = cases / "TRAIN001" / "oct.raw", next(source.rglob("TRAIN025/oct.raw"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="corrupt volume"):
        imported("retouch", source, tmp_path / "data")
    broken.write_bytes(whole)
    changed.write_bytes(bytes(255 - value for value in changed.read_bytes()))
    assert len(imported("retouch", source, tmp_path / "data")) == 21
    scan = np.asarray(Image.open(tmp_path / "data" / "TRAIN001" / "TRAIN001_003.png"))
    volume = np.frombuffer(changed.read_bytes(), np.uint8).reshape(7, 48, 64)
    assert (scan == volume[3]).all()


def test_kermany_with_patients_in_two_splits_is_imported_whole(tmp_path, capsys):
    source = oct_trees.kermany(tmp_path / "source", shared=True)
    rows = imported("kermany", source, tmp_path / "data")
    assert len(rows) == 36
    counts = Counter((row["official_split"], row["split"]) for row in rows)
    assert counts == {("train", "train"): 16, ("train", ""): 4, ("test", "test"): 16}
    run("validate", "--data_dir", tmp_path / "data", "--num_workers", 0)
    assert "4 patients are in more than one split" in capsys.readouterr().err
    run("split", "--data_dir", tmp_path / "data", "--overwrite", "--val_share", 0)
    run("validate", "--data_dir", tmp_path / "data", "--num_workers", 0, "--require", "split")


def test_a_wrong_tree_ends_with_every_missing_part_and_the_expected_tree(trees, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trees["octdl"], source)
    for part in ("OCTDL_labels.csv", "OCTDL/VID", "OCTDL/RAO"):
        remove(source / part)
    with pytest.raises(UserError) as error:
        imported("octdl", source, tmp_path / "data")
    for part in ("OCTDL_labels.csv: disease", "OCTDL/VID/*.jpg", "OCTDL/RAO/*.jpg"):
        assert part in str(error.value)
    assert find_layout("octdl").tree in str(error.value)
    assert not (tmp_path / "data").exists()


def test_files_that_the_table_names_and_the_disk_lacks_are_all_told(trees, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trees["octdl"], source)
    for name in ("AMD/amd_1047099_2.jpg", "NO/no_1047102_1.jpg"):
        (source / "OCTDL" / name).unlink()
    with pytest.raises(UserError) as error:
        imported("octdl", source, tmp_path / "data")
    assert "OCTDL_labels.csv:3: missing file" in str(error.value)
    assert "OCTDL_labels.csv:8: missing file" in str(error.value)
    rows = imported("octdl", source, tmp_path / "data", "--skip_invalid")
    assert len(rows) == 12

"""A layout of the tests' own: one table, images.csv, that says of each image what it likes."""

import csv
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from utils.dataset_records import Problem
from utils.importers.layout import Layout
from utils.importers.source_image import SourceImage

COLUMNS = ("text", "label", "patient_id", "split", "eye", "never")
TREE = "SOURCE/images.csv\nSOURCE/*.png"


def missing(source, options):
    parts = {"images.csv": "images.csv: the table", "notes.txt": "notes.txt: what is known"}
    return [sentence for name, sentence in parts.items() if not (source / name).exists()]


def images(source, options, index):
    texts = index.load(source / "images.csv", ["file"], values=["text"])
    for line, row in index.stream(source / "images.csv", ["file"]):
        where = f"images.csv:{line}"
        if row.get("label") == "BROKEN":
            yield Problem(where, "broken row", "it says so")
            continue
        cells = {name: row.get(name, "") for name in COLUMNS}
        cells["text"] = texts.get(row["file"])["text"]
        if options.pseudonyms is not None:
            cells["patient_id"] = options.pseudonyms.of(row["patient_id"])
        yield SourceImage(str(source / row["file"]), row["file"], cells, where)


LAYOUT = Layout("toy", "OCT", COLUMNS, TREE, missing, images)


def pixels(number, *, height=24, width=40):
    return np.random.default_rng(number).integers(0, 255, (height, width)).astype(np.uint8)


def write_dicom(path, values):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = pydicom.Dataset()
    header.file_meta = meta
    header.SOPClassUID = meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    header.PatientName, header.PatientID = "Doe^Jane", "MRN-4711"
    header.Rows, header.Columns = values.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.PixelData = values.tobytes()
    header.save_as(path, enforce_file_format=True)


def write_source(folder, rows):
    """A source of rows with ``file`` and any of `COLUMNS`; images that are not there are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes.txt").touch()
    with (folder / "images.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, ("file", *COLUMNS), restval="")
        writer.writeheader()
        writer.writerows(rows)
    for number, row in enumerate(rows):
        path = folder / row["file"]
        if not path.exists() and Path(row["file"]).name == row["file"]:
            if path.suffix == ".dcm":
                write_dicom(path, pixels(number))
            else:
                Image.fromarray(pixels(number)).save(path)
    return folder


def some_rows(count):
    return [
        {
            "file": f"scan-{number:04d}.png",
            "text": f"finding {number}",
            "label": ("DME", "NORMAL")[number % 2],
            "patient_id": f"p{number // 2}",
            "split": "train",
        }
        for number in range(count)
    ]

"""Small trees in exactly the layouts of MIMIC-CXR and Open-i, for the import's tests.

All texts are our own. Each function fills a folder and returns nothing; what must be found in it
stands in the tests.
"""

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

OBSERVATIONS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)  # in the order of MIMIC-CXR-JPG's table


def pixels(seed: int, *, bits: int = 8) -> np.ndarray:
    """A picture of its own for every seed, (40, 48)."""
    values = np.random.default_rng(seed).random((40, 48))
    return (values * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def write_image(path: Path, seed: int, *, bits: int = 8) -> None:
    """A PNG, JPEG or DICOM, as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".dcm", ".dicom"):
        write_dicom(path, pixels(seed, bits=16))
    else:
        Image.fromarray(pixels(seed, bits=bits)).save(path)


def write_dicom(path: Path, values: np.ndarray) -> None:
    """A 16-bit DICOM with a window and with the tags of a person."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.PatientName, file.PatientID = "Doe^Jane", "4711"
    file.Rows, file.Columns = values.shape
    file.SamplesPerPixel, file.PixelRepresentation = 1, 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PhotometricInterpretation = "MONOCHROME2"
    file.WindowCenter, file.WindowWidth = 32768, 65536
    file.PixelData = values.astype("<u2").tobytes()
    pydicom.dcmwrite(path, file)


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV, compressed if its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def write_text(path: Path, text: str) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# (subject, study, image, view, split), then the reports and the labels of the studies
MIMIC_IMAGES = (
    ("10000032", "50414267", "02aa804e-bde0afdd", "PA", "train"),
    ("10000032", "50414267", "174413ec-4ec4c1f7", "LATERAL", "train"),
    ("10000032", "53189527", "2a2277a9-b0ded155", "AP", "train"),
    ("11000011", "51967283", "68b5c4b1-227d0485", "AP", "validate"),
    ("19999987", "58621812", "ea030e7a-2e3b1346", "PA", "test"),
    ("19999987", "58621812", "fffabebf-74fd3a1f", "", "test"),
)
MIMIC_REPORTS = {
    "50414267": " FINDINGS:  The heart is\n large.\n \n IMPRESSION:  Cardiomegaly.\n",
    "53189527": " INDICATION:  Line.\n \n The line ends in the right atrium.\n",
    "51967283": " IMPRESSION:  Edema may be present.\n",
    "58621812": " CHEST, PA AND LATERAL:  Clear.\n",
}
MIMIC_LABELS = {
    "50414267": {"Cardiomegaly": "1.0", "Edema": "0.0"},
    "53189527": {"Support Devices": "1.0", "Lung Opacity": "1.0", "Pneumonia": "-1.0"},
    "51967283": {"Edema": "-1.0"},
    "58621812": {"No Finding": "1.0"},
}
MIMIC_METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)


def mimic_cxr(root: Path, *, suffix: str = ".jpg", reports: Path | None = None, gz: bool = True):
    """MIMIC-CXR-JPG, or MIMIC-CXR with .dcm; the reports in another folder if one is given."""
    end = ".csv.gz" if gz else ".csv"
    metadata, splits = [], []
    for seed, (subject, study, image, view, split) in enumerate(MIMIC_IMAGES):
        patient = f"files/p{subject[:2]}/p{subject}"
        write_image(root / patient / f"s{study}" / f"{image}{suffix}", seed)
        report = (reports or root) / patient / f"s{study}.txt"
        write_text(report, f"{'FINAL REPORT':>45}\n{MIMIC_REPORTS[study]}")
        metadata.append(
            (image, subject, study, "CHEST", view, 40, 48, 21800506, "213014.5", "", "", "Erect")
        )
        splits.append((image, study, subject, split))
    write_table(root / f"mimic-cxr-2.0.0-metadata{end}", MIMIC_METADATA, metadata)
    columns = ("dicom_id", "study_id", "subject_id", "split")
    write_table(root / f"mimic-cxr-2.0.0-split{end}", columns, splits)
    subjects = {study: subject for subject, study, *_ in MIMIC_IMAGES}
    labels = [
        (subjects[study], study, *(values.get(name, "") for name in OBSERVATIONS))
        for study, values in MIMIC_LABELS.items()
    ]
    columns = ("subject_id", "study_id", *OBSERVATIONS)
    write_table(root / f"mimic-cxr-2.0.0-chexpert{end}", columns, labels)


OPEN_I_STUDIES = {
    "1": (("CXR1_1_IM-0001-3001", "Lateral"), ("CXR1_1_IM-0001-4001", "Frontal")),
    "2": (("CXR2_IM-0652-1001", "Frontal"), ("CXR2_IM-0652-2001", "Lateral")),
    "10": (("CXR10_IM-0002-1001-0001", "Frontal"),),
}
OPEN_I_TEXTS = {  # indication, findings, impression
    "1": ("Cough.", "Lungs are clear of XXXX.", "Normal chest."),
    "2": ("Dyspnea.", "", "Borderline\n heart size."),
    "10": ("Pain.", "Granuloma on the left.", ""),
}
OPEN_I_MESH = {
    "1": ("normal",),
    "2": ("Cardiomegaly/borderline", "Pulmonary Artery/enlarged", "Cardiomegaly/mild"),
    "10": ("Calcified Granuloma/lung/upper lobe/left ", "Catheters, Indwelling/right"),
}


def _kaggle_name(image: str, study: str) -> str:
    return f"{study}_{image[image.index('IM-') :]}.dcm.png"


def open_i_views(root: Path) -> None:
    """Kaggle's table of projections."""
    rows = [
        (study, _kaggle_name(image, study), view)
        for study, images in OPEN_I_STUDIES.items()
        for image, view in images
    ]
    write_table(root / "indiana_projections.csv", ("uid", "filename", "projection"), rows)


def open_i_nlm(root: Path) -> None:
    """NLM's collection, with Kaggle's table of projections beside it."""
    seed = 0
    for study, images in OPEN_I_STUDIES.items():
        indication, findings, impression = OPEN_I_TEXTS[study]
        mesh = "".join(f"<major>{term}</major>" for term in OPEN_I_MESH[study])
        parents = "".join(
            f'<parentImage id="{image}"><figureId>F1</figureId><caption>Xray Chest PA and Lateral'
            f"</caption><panel type='single'><url>/hadoop/{image}.jpg</url></panel></parentImage>"
            for image, _ in images
        )
        write_text(
            root / "ecgen-radiology" / f"{study}.xml",
            f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{study}"/>'
            "<MedlineCitation><Article><Abstract>"
            '<AbstractText Label="COMPARISON">None.</AbstractText>'
            f'<AbstractText Label="INDICATION">{indication}</AbstractText>'
            f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
            f'<AbstractText Label="IMPRESSION">{impression}</AbstractText>'
            f"</Abstract></Article></MedlineCitation><MeSH>{mesh}"
            f"<automatic>heart</automatic></MeSH>{parents}</eCitation>\n",
        )
        for image, _ in images:
            write_image(root / "NLMCXR_png" / f"{image}.png", seed)
            seed += 1
    write_text(  # a report without an image, as the collection has some
        root / "ecgen-radiology" / "7.xml",
        "<eCitation><MedlineCitation><Article><Abstract/></Article></MedlineCitation></eCitation>",
    )
    open_i_views(root)


def open_i_kaggle(root: Path) -> None:
    """The form that Kaggle has."""
    columns = (
        "uid",
        "MeSH",
        "Problems",
        "image",
        "indication",
        "comparison",
        "findings",
        "impression",
    )
    rows = [
        (study, ";".join(OPEN_I_MESH[study]), "", "Xray Chest", indication, "None.", *told)
        for study, (indication, *told) in OPEN_I_TEXTS.items()
    ]
    write_table(root / "indiana_reports.csv", columns, rows)
    open_i_views(root)
    images = [(image, study) for study, group in OPEN_I_STUDIES.items() for image, _ in group]
    for seed, (image, study) in enumerate(images):
        write_image(root / "images" / "images_normalized" / _kaggle_name(image, study), seed)

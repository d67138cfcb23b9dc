"""Small trees in exactly the layouts of PadChest, CheXpert, ChestX-ray14 and VinDr-CXR.

All texts are our own.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from cxr_trees import OBSERVATIONS, write_image, write_table, write_text

PADCHEST_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,"
    "ViewPosition_DICOM,Projection,MethodProjection,Pediatric,Modality_DICOM,"
    "Manufacturer_DICOM,PhotometricInterpretation_DICOM,PixelRepresentation_DICOM,"
    "PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,"
    "ExposureInuAs_DICOM,ExposureTime,RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,"
    "Labels,Localizations,LabelsLocalizationsBySentence,labelCUIS,LocalizationsCUIS"
)
PADCHEST_IMAGES = (  # folder, image, projection, patient, labels, report
    ("0", "2053_k6ga29.png", "PA", "8398", "['normal']", "sin hallazgos"),
    ("0", "2053_n2bqp1.png", "L", "8398", "['normal']", "sin hallazgos"),
    ("13", "1349_tqvst2.png", "AP", "3137", "['cardiomegaly', ' pleural effusion ', '']", "derram"),
    ("54", "2776_qvzba6.png", "AP_horizontal", "3137", "['NSG tube', 'NSG tube']", "sonda\n  nsg"),
    ("54", "2776_excld1.png", "EXCLUDE", "5555", "['exclude']", "abdomen"),
)


def padchest(root: Path, *, flat: bool = False, gz: bool = False) -> None:
    """PadChest; with all images in one folder if it is flat."""
    rows = []
    for seed, (folder, image, projection, patient, labels, report) in enumerate(PADCHEST_IMAGES):
        write_image(root / ("images" if flat else folder) / image, seed, bits=16)
        cells = dict.fromkeys(PADCHEST_HEADER.split(","), "") | {
            "": seed,
            "ImageID": image,
            "ImageDir": folder,
            "StudyDate_DICOM": "20140915",
            "StudyID": image.partition("_")[0],
            "PatientID": patient,
            "PatientBirth": "1930.0",
            "Projection": projection,
            "PhotometricInterpretation_DICOM": "MONOCHROME2",
            "Report": report,
            "MethodLabel": "Physician",
            "Labels": labels,
        }
        rows.append(list(cells.values()))
    name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv" + ".gz" * gz
    write_table(root / name, PADCHEST_HEADER.split(","), rows)


CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
CHEXPERT_IMAGES = {  # of a table: patient, study, image, AP/PA, labels
    "train": (
        ("patient00001", "study1", "view1_frontal.jpg", "AP", {"Edema": "1.0", "Fracture": "-1.0"}),
        ("patient00002", "study2", "view1_frontal.jpg", "PA", {"No Finding": "1.0"}),
        ("patient00002", "study2", "view2_lateral.jpg", "", {"No Finding": "1.0"}),
    ),
    "valid": (("patient64541", "study1", "view1_frontal.jpg", "AP", {"Cardiomegaly": "1.0"}),),
    "test": (("patient64741", "study1", "view1_frontal.jpg", "AP", {"Atelectasis": "1.0"}),),
}
BATCHES = {
    "patient00001": "CheXpert-v1.0 batch 2 (train 1)",
    "patient00002": "CheXpert-v1.0 batch 4 (train 3)",
}


def chexpert(root: Path, *, batches: bool = False, sets: Sequence[str] = ("train", "valid")):
    """CheXpert-v1.0-small, or the full one in the folders of its batches."""
    prefix = "CheXpert-v1.0" if batches else "CheXpert-v1.0-small"
    seed = 0
    for name in sets:
        rows = []
        for patient, study, image, position, labels in CHEXPERT_IMAGES[name]:
            row = dict.fromkeys(CHEXPERT_HEADER.split(","), "") | labels
            row["Path"] = f"{prefix}/{name}/{patient}/{study}/{image}"
            row["Frontal/Lateral"] = "Lateral" if "lateral" in image else "Frontal"
            row |= {"Sex": "Female", "Age": 68, "AP/PA": position}
            rows.append(list(row.values()))
            folder = BATCHES.get(patient, name) if batches else name
            write_image(root / folder / patient / study / image, seed)
            seed += 1
        write_table(root / f"{name}.csv", CHEXPERT_HEADER.split(","), rows)


PLUS_HEADER = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,"
    "report,section_narrative,section_clinical_history,section_history,section_comparison,"
    "section_technique,section_procedure_comments,section_findings,section_impression,"
    "section_end_of_impression,section_summary,section_accession_number,age,sex,race,ethnicity,"
    "interpreter_needed,insurance_type,recent_bmi,deceased,split"
)
PLUS_TEXTS = {
    "patient00001": ("Interstitial\nmarkings.", "1. Pulmonary edema."),
    "patient00002": ("", "Normal chest."),
    "patient64541": ("Large heart.", ""),
}


def chexpert_plus(root: Path, *, suffix: str = ".png", folder: str = "PNG") -> None:
    """CheXpert Plus with its PNGs, or its DICOMs."""
    rows, labels = [], []
    for name in ("train", "valid"):
        for patient, study, image, position, observed in CHEXPERT_IMAGES[name]:
            path = f"{name}/{patient}/{study}/{image}"
            findings, impression = PLUS_TEXTS[patient]
            row = dict.fromkeys(PLUS_HEADER.split(","), "") | {
                "path_to_image": path,
                "path_to_dcm": path.replace(".jpg", ".dcm"),
                "frontal_lateral": "Lateral" if "lateral" in image else "Frontal",
                "ap_pa": position,
                "deid_patient_id": patient,
                "section_clinical_history": "Dyspnea.",
                "section_findings": findings,
                "section_impression": impression,
                "split": name,
            }
            write_image((root / folder / path).with_suffix(suffix), len(rows))
            rows.append(list(row.values()))
            values = {
                key: float(observed[key]) if key in observed else None for key in OBSERVATIONS
            }
            labels.append(json.dumps({"path_to_image": path, **values}))
    write_table(root / "df_chexpert_plus_240401.csv", PLUS_HEADER.split(","), rows)
    write_text(root / "chexbert_labels" / "impression_fixed.json", "\n".join(labels) + "\n")


NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)  # the names in brackets hold a comma without quotes, so they are four
NIH_IMAGES = (  # image, labels, patient, view, folder, list
    ("00000001_000.png", "Cardiomegaly|Emphysema", "1", "PA", "images_001", "train_val_list.txt"),
    ("00000002_000.png", "No Finding", "2", "AP", "images_001", "train_val_list.txt"),
    ("00030805_000.png", "Pleural_Thickening", "30805", "PA", "images_012", "test_list.txt"),
)


def nih14(root: Path, *, flat: bool = False, year: str = "2017_v2020") -> None:
    """ChestX-ray14; with all images in one folder if it is flat."""
    end = "," if year == "2017" else ""  # the older table has an empty last column
    lines = [NIH_HEADER + end]
    lists: dict[str, list[str]] = {}
    for seed, (image, labels, patient, view, folder, split) in enumerate(NIH_IMAGES):
        write_image(root / ("" if flat else folder) / "images" / image, seed)
        lines.append(f"{image},{labels},0,{patient},57,M,{view},2682,2749,0.143,0.143{end}")
        lists.setdefault(split, []).append(image)
    write_text(root / f"Data_Entry_{year}.csv", "\n".join(lines) + "\n")
    for name, images in lists.items():
        write_text(root / name, "\n".join(images))


VINDR_LABELS = ("Aortic enlargement", "Cardiomegaly", "Nodule/Mass", "Pneumonia")
VINDR_READINGS = {  # of a training image, by three readers; the rows of an image are not together
    "000434271f63a053c4128a0ba6352c7f": ("1100", "1000", "1010"),
    "00053190460d56c53cc3e57321387478": ("0000", "0000", "0000"),
    "0005e8e3701dfb1dd93d53e2ff537b6e": ("0001", "0010", "0100"),
}
VINDR_TEST = {"002a34c58c5b758217ed1f584ccbcfe9": "0100"}


def vindr_cxr(root: Path, *, sets: Sequence[str] = ("train", "test")) -> None:
    """VinDr-CXR, or one of its two sets."""
    images = {"train": VINDR_READINGS, "test": VINDR_TEST}
    for name in sets:
        for seed, image in enumerate(images[name]):
            write_image(root / name / f"{image}.dicom", seed + 10 * (name == "test"))
    last = {"train": "Other diseases", "test": "Other disease"}  # so they are named
    tables = {
        "train": [
            (image, f"R{reader + 1}", *readings[reader], 0, int(not int(readings[reader])))
            for reader in range(3)
            for image, readings in VINDR_READINGS.items()
        ],
        "test": [(image, *reading, 0, 0) for image, reading in VINDR_TEST.items()],
    }
    for name in sets:
        readers = ("rad_id",) if name == "train" else ()
        columns = ("image_id", *readers, *VINDR_LABELS, last[name], "No finding")
        write_table(root / "annotations" / f"image_labels_{name}.csv", columns, tables[name])

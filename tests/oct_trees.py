"""Small trees in the layouts of the public OCT data sets, as their archives unpack."""

import csv

import numpy as np
from PIL import Image

OLIVES_PATH = "Path (Trial/Arm/Folder/Visit/Eye/Image Name)"
OLIVES_BIOMARKERS = (
    *("Atrophy / thinning of retinal layers", "Disruption of EZ", "DRIL", "IR hemorrhages"),
    *("IR HRF", "Partially attached vitreous face", "Fully attached vitreous face"),
    *("Preretinal tissue/hemorrhage", "Vitreous debris", "VMT", "DRT/ME", "Fluid (IRF)"),
    *("Fluid (SRF)", "Disruption of RPE", "PED (serous)", "SHRM"),
)
OCTDL_COLUMNS = (
    *("file_name", "disease", "subcategory", "condition", "patient_id", "eye", "sex", "year"),
    *("image_width", "image_height"),
)

OCTDL_STAGES = {  # subcategory and condition, as they occur
    "AMD": ("late", "MNV"),
    "DME": ("none", "ME"),
    "ERM": ("none", "ERM"),
    "NO": ("myopia", "NO"),
    "RAO": ("none", "none"),
    "RVO": ("late", "DRIL"),
    "VID": ("LH", "MH"),
}


def draw(path, number, size=(40, 32)):
    """An image unlike every other: noise of its own number, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def draw_all(paths):
    for number, path in enumerate(paths):
        draw(path, number)


def write_table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def kermany(source, *, top="OCT2017", shared=False):
    """Two patients per class and split; with `shared` the first ones of test are in train, too."""
    paths = []
    for split, patients in (("train", (1016042, 53018)), ("test", (103044, 11281))):
        for position, label in enumerate(("CNV", "DME", "DRUSEN", "NORMAL")):
            for patient in patients:
                paths += [
                    source / top / split / label / f"{label}-{patient + position}-{number}.jpeg"
                    for number in (1, 2)
                ]
            if shared and split == "train":
                paths.append(source / top / split / label / f"{label}-{103044 + position}-9.jpeg")
    draw_all(paths)
    return source


def octdl(source, *, top="OCTDL"):
    """Two images of one patient per disease; the table leaves out the suffix, as the real one."""
    rows, paths = [], []
    for position, label in enumerate(("AMD", "DME", "ERM", "NO", "RAO", "RVO", "VID")):
        for number in (1, 2):
            name = f"{label.lower()}_{1047099 + position}_{number}"
            rows.append(
                [name, label, *OCTDL_STAGES[label], 100 + position, "OD", "F", 1950, 40, 32]
            )
            paths.append(source / top / label / f"{name}.jpg")
    draw_all(paths)
    write_table(source / "OCTDL_labels.csv", OCTDL_COLUMNS, rows)
    return source


def octid(source):
    """Three images per class, each archive in a folder of its own."""
    draw_all(
        source / f"{label} Retinal OCT images" / f"{label}{number}.jpeg"
        for label in ("NORMAL", "AMRD", "CSR", "DR", "MH")
        for number in (1, 2, 10)
    )
    return source


def srinivasan(source, *, top="Publication_Dataset", scans=3):
    """45 volumes."""
    draw_all(
        source / top / f"{label}{volume}" / "TIFFs" / "8bitTIFFs" / f"{scan:03d}.tif"
        for label in ("AMD", "DME", "NORMAL")
        for volume in range(1, 16)
        for scan in range(1, scans + 1)
    )
    return source


def olives(source, *, prime_suffix=".tif"):
    """One volume of 49 B-scans per trial, with a fundus image that no table names."""
    volumes = {
        "Prime_FULL/02-045/W0/OS": ("", prime_suffix, ("95", "74", "302", "95")),
        "TREX DME/GILA/0201GOD/V1/OD": ("TREXJ_0000", ".tif", ("1", "61", "575", "201")),
    }
    rows, paths = [], []
    for folder, (prefix, suffix, clinical) in volumes.items():
        for scan in range(49):
            stem = f"{folder}/{prefix}{f'{scan:02d}' if prefix else scan}"
            marks = ["1" if scan >= 40 and column == 10 else "0" for column in range(16)]
            marks[11] = "1" if scan >= 45 else "0"
            rows.append([f"/{stem}.tif", scan + 1, *marks, *clinical])
            paths.append(source / "OLIVES" / f"{stem}{suffix}")
        paths.append(source / "OLIVES" / folder / "fundus_W0.tif")
    draw_all(paths)
    columns = [OLIVES_PATH, "Scan (n/49)", *OLIVES_BIOMARKERS, "Eye_ID", "BCVA", "CST"]
    table = source / "OLIVES_Dataset_Labels" / "ml_centric_labels"
    write_table(table / "Biomarker_Clinical_Data_Images.csv", [*columns, "Patient_ID"], rows)
    return source


_METAIMAGE_TYPES = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT"}


def write_metaimage(header, volume):
    """A volume (B-scans, rows, columns) as ASCII header and raw file beside it."""
    header.parent.mkdir(parents=True, exist_ok=True)
    depth, height, width = volume.shape
    raw = header.with_suffix(".raw")
    raw.write_bytes(volume.tobytes())
    header.write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
        "CenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI\n"
        f"ElementSpacing = 0.0117 0.002 0.047\nDimSize = {width} {height} {depth}\n"
        f"ElementType = {_METAIMAGE_TYPES[str(volume.dtype)]}\nElementDataFile = {raw.name}\n"
    )


def retouch(source, *, wrapped=False, test=False, scans=7):
    """One case per device. Fluids by B-scan: 0 none, 1 IRF, 2 SRF, 3 PED, 4 IRF and PED, then none.

    The fovea is a dip of the retina's upper edge in the middle B-scan but one.
    """
    cases = {"Cirrus": "TRAIN001", "Spectralis": "TRAIN025", "Topcon": "TRAIN049"}
    for seed, (device, case) in enumerate(cases.items()):
        top = source / f"Training{device}" if wrapped else source
        folder = top / f"RETOUCH-TrainingSet-{device}" / case
        write_metaimage(
            folder / "oct.mhd", _retina(seed, scans, np.uint16 if seed == 1 else np.uint8)
        )
        reference = np.zeros((scans, 48, 64), np.uint8)
        for scan, fluids in enumerate(((), (1,), (2,), (3,), (1, 3))):
            for fluid in fluids:
                reference[scan, 30 : 30 + fluid, 10 * fluid] = fluid
        write_metaimage(folder / "reference.mhd", reference)
    if test:
        folder = source / "RETOUCH-TestSet-Cirrus" / "TEST001"
        write_metaimage(folder / "oct.mhd", _retina(9, scans, np.uint8))
    return source


def _retina(seed, scans, dtype):
    noise = np.random.default_rng(seed).integers(0, 40, (scans, 48, 64))
    rows = np.arange(48)[None, :, None]
    columns = np.arange(64)[None, None, :] - 32
    dip = 8 * np.exp(-(columns**2) / 60) * (np.arange(scans) == scans // 2)[:, None, None]
    retina = (rows > 16 + dip) & (rows < 36)
    return ((noise + 160 * retina) * (256 if dtype == np.uint16 else 1)).astype(dtype)


BUILDERS = {
    "kermany": kermany,
    "octdl": octdl,
    "octid": octid,
    "srinivasan": srinivasan,
    "olives": olives,
    "retouch": retouch,
}

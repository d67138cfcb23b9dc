"""Builds DICOM files with pydicom, for tests: grey and colour, one frame or many, any window."""

import io

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    OphthalmicTomographyImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

OPT = OphthalmicTomographyImageStorage
SECONDARY_CAPTURE = SecondaryCaptureImageStorage


def dicom_dataset(
    pixels,
    *,
    photometric="MONOCHROME2",
    bits=12,
    sop_class=SECONDARY_CAPTURE,
    syntax=ExplicitVRLittleEndian,
    **elements,
):
    """Dataset of (H, W), (F, H, W) or (.., H, W, 3) pixels; elements by their keywords."""
    pixels = np.asarray(pixels)
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    shape = pixels.shape[:-1] if colour else pixels.shape
    file.Rows, file.Columns = shape[-2:]
    if len(shape) == 3:
        file.NumberOfFrames = shape[0]
    file.SamplesPerPixel = 3 if colour else 1
    if colour:
        file.PlanarConfiguration = 0
    file.PixelRepresentation = int(pixels.min() < 0)
    file.BitsAllocated = 8 if bits <= 8 else 16
    file.BitsStored, file.HighBit = bits, bits - 1
    file.PhotometricInterpretation = photometric
    for name, value in elements.items():
        setattr(file, name, value)
    kind = "i" if file.PixelRepresentation else "u"
    data = pixels.astype(f"<{kind}{file.BitsAllocated // 8}").tobytes()
    file.PixelData = data + b"\0" * (len(data) % 2)
    return file


def table(values, *, first=0, bits=16):
    """An item of a LUT sequence."""
    item = Dataset()
    item.LUTDescriptor = [len(values) % 2**16, first, bits]
    item.LUTData = np.asarray(values, "<u2").tobytes()
    return item


def group(**sequences):
    """A functional group: keyword of a sequence to the elements of its one item."""
    found = Dataset()
    for name, elements in sequences.items():
        item = Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        setattr(found, name, [item])
    return found


def as_bytes(dataset):
    """The file."""
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset)
    return stream.getvalue()


def dicom_bytes(pixels, **options):
    """File of `dicom_dataset`."""
    return as_bytes(dicom_dataset(pixels, **options))


def write_dicom(path, pixels, **options):
    """Write the file of `dicom_dataset`, its folder too; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(pixels, **options))
    return path

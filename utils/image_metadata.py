"""What an image file says beside its pixels: EXIF, text entries, comments, DICOM attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, TiffTags

from utils import dicom
from utils.cli import UserError
from utils.image_endings import bytes_after_end

# Entries about the pixels alone; they tell nothing of a person.
_TECHNICAL_EXIF = frozenset(
    [
        "ImageWidth",
        "ImageLength",
        "BitsPerSample",
        "Compression",
        "PhotometricInterpretation",
        "Orientation",
        "SamplesPerPixel",
        "PlanarConfiguration",
        "XResolution",
        "YResolution",
        "ResolutionUnit",
        "StripOffsets",
        "RowsPerStrip",
        "StripByteCounts",
        "Predictor",
        "ColorMap",
        "ExtraSamples",
        "SampleFormat",
        "FillOrder",
        "TileWidth",
        "TileLength",
        "TileOffsets",
        "TileByteCounts",
        "YCbCrPositioning",
        "YCbCrSubSampling",
        "YCbCrCoefficients",
        "ReferenceBlackWhite",
        "NewSubfileType",
        "SubfileType",
        "ExifOffset",
        "ColorSpace",
        "ExifImageWidth",
        "ExifImageHeight",
        "InterColorProfile",
        "JPEGTables",
        "TransferFunction",
        "WhitePoint",
        "PrimaryChromaticities",
        "MinSampleValue",
        "MaxSampleValue",
        "SMinSampleValue",
        "SMaxSampleValue",
        "T4Options",
        "T6Options",
        "PageNumber",
        "FlashPixVersion",
        "ComponentsConfiguration",
    ]
)
_TECHNICAL_INFO = frozenset(
    [
        "jfif",
        "jfif_version",
        "jfif_unit",
        "jfif_density",
        "dpi",
        "gamma",
        "srgb",
        "chromaticity",
        "transparency",
        "bit_depth",
        "background",
        "compression",
        "resolution",
        "progressive",
        "progression",
        "adobe",
        "adobe_transform",
        "icc_profile",
        "exif",
        "photoshop",
        "interlace",
        "window",
        "inverted",
        "loop",
        "timestamp",
        "mp",
        "aspect",
        "chromaticities",
    ]
)
# Resources of Photoshop's by number, those that hold captions and authors, or small pictures
# ("Photoshop File Format", image resource IDs).
_RESOURCES = {
    0x0404: "IPTC",
    0x0409: "thumbnail",
    0x040C: "thumbnail",
    0x0422: "EXIF",
    0x0424: "XMP",
}
# Segments of a JPEG that are known, by how they begin: read by Pillow, or about pixels alone. MPF
# tells where further pictures stand, which are told as bytes after the end.
_KNOWN_SEGMENTS = {
    "APP0": (b"JFIF\0",),
    "APP1": (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"),
    "APP2": (b"ICC_PROFILE\0", b"MPF\0"),
    "APP13": (b"Photoshop 3.0\0",),
    "APP14": (b"Adobe",),
}
# ISO/IEC 15948, 11.3.4.2; and those that common writers use.
_PNG_KEYWORDS = frozenset(
    [
        "Title",
        "Author",
        "Description",
        "Copyright",
        "Creation Time",
        "Software",
        "Disclaimer",
        "Warning",
        "Source",
        "Comment",
        "XML:com.adobe.xmp",
        "xmp",
        "Raw profile type exif",
        "Raw profile type iptc",
        "Raw profile type xmp",
        "date:create",
        "date:modify",
        "date:timestamp",
        "synthetic",
        "generator",
    ]
)
_MAX_SHOWN = 200  # bytes of what may be a whole picture
# Attributes that identify: PS3.15, annex E, table E.1-1, those of the common image objects.
_DICOM_IDENTITIES = [
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientBirthName",
    "PatientAge",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientMotherBirthName",
    "PatientComments",
    "EthnicGroup",
    "Occupation",
    "MilitaryRank",
    "AdditionalPatientHistory",
    "MedicalRecordLocator",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "AcquisitionDateTime",
    "InstanceCreationDate",
    "StudyTime",
    "ReferringPhysicianName",
    "ReferringPhysicianAddress",
    "ReferringPhysicianTelephoneNumbers",
    "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansOfRecord",
    "OperatorsName",
    "RequestingPhysician",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "DeviceSerialNumber",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "AdmissionID",
    "AdmittingDate",
    "ImageComments",
    "StudyDescription",
    "SeriesDescription",
    "RequestAttributesSequence",
    "ProtocolName",
    "CurrentPatientLocation",
    "PatientInstitutionResidence",
]


def metadata_entries(source: str | Callable[[], BinaryIO]) -> list[tuple[str, str]]:
    """Names and values of a file's entries that are not about the pixels alone.

    Args:
        source: Path of an image file, DICOM too; or what opens its bytes.

    Returns:
        E.g. ``("EXIF DateTime", "2019:04:12 09:31:00")``, ``("DICOM PatientName", "A^B")``.

    Raises:
        OSError: If the file cannot be opened as an image.
        UserError: If it is DICOM and pydicom is not installed.
    """
    with Path(source).open("rb") if isinstance(source, str) else source() as stream:
        head = stream.read(dicom.PREAMBLE_BYTES)
        stream.seek(0)
        if dicom.is_dicom(head):
            return list(_dicom_entries(stream))
        with Image.open(stream) as image:
            if image.format == "PNG":
                image.load()  # text behind the pixels is read then only
            entries = [*_exif_entries(image), *_info_entries(image), *_segments(image)]
            stream.seek(0)
            rest = bytes_after_end(stream.read(), image.format)
            name = f"{image.format} bytes after the end".replace("MPO", "JPEG")
            return [*entries, (name, _shown(rest))] if rest else entries


def _exif_entries(image: Image.Image) -> Iterator[tuple[str, str]]:
    exif = image.getexif()
    for number, value in (*exif.items(), *exif.get_ifd(ExifTags.IFD.Exif).items()):
        name = ExifTags.TAGS.get(number) or TiffTags.lookup(number).name
        if name not in _TECHNICAL_EXIF and str(value).strip("\0 "):
            yield f"EXIF {name}", str(value)
    if place := exif.get_ifd(ExifTags.IFD.GPSInfo):
        yield "EXIF GPSInfo", str(dict(place))
    if small := exif.get_ifd(ExifTags.IFD.IFD1):
        yield "EXIF thumbnail", str(dict(small))


def _info_entries(image: Image.Image) -> Iterator[tuple[str, str]]:
    for name, value in image.info.items():
        if name == "photoshop":
            for number in _RESOURCES.keys() & value.keys():
                yield f"{image.format} {_RESOURCES[number]}", _shown(bytes(value[number]))
            continue
        if str(name).lower() not in _TECHNICAL_INFO and isinstance(value, str | bytes) and value:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            if image.format != "PNG" or name in _PNG_KEYWORDS or name in _DICOM_IDENTITIES:
                yield f"{image.format} {name}", text
            else:  # a keyword of somebody's own may be a person's name
                yield "PNG text", f"{name}: {text}"


def _segments(image: Image.Image) -> Iterator[tuple[str, str]]:
    """Segments of a JPEG that Pillow does not read."""
    for name, content in getattr(image, "applist", ()):
        if name.startswith("APP") and not content.startswith(_KNOWN_SEGMENTS.get(name, ())):
            yield f"JPEG {name}", _shown(content)


def _shown(content: bytes) -> str:
    return f"{len(content)} bytes: {content[:_MAX_SHOWN]!r}"


def _dicom_entries(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    try:
        import pydicom
    except ImportError as error:
        raise UserError("a DICOM file needs pydicom: pip install pydicom") from error
    header = pydicom.dcmread(stream, stop_before_pixels=True)
    for name in _DICOM_IDENTITIES:
        if str(header.get(name, "")).strip():
            yield f"DICOM {name}", str(header.get(name))
    for element in header:
        if element.tag.is_private and str(element.value).strip():
            yield f"DICOM private {element.tag}", str(element.value)

"""DICOM files of one or many frames as volumes; what of their attributes may be told."""

from functools import lru_cache
from pathlib import Path

from PIL import Image

from utils import dicom
from utils.image_files import MAX_PIXELS, image_errors
from utils.volume_info import OpenVolumes, VolumeInfo, check_size

_EYES = {"R": "OD", "L": "OS"}
_EYE_MODALITIES = ("OPT", "OP", "OPM", "OPTENF", "OPTBSV")
_VIEWS = ("AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO")  # PS3.3, C.8.1.3
_XRAY_MODALITIES = ("CR", "DX", "RG", "RF", "XR")
# Attributes that say who somebody is, in whose words the device's name must not be.
_IDENTITIES = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "InstitutionName",
    "DeviceSerialNumber",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "AccessionNumber",
)
_MAX_DEVICE_CHARACTERS = 64


def open_dicom_volume(path: Path) -> OpenVolumes:
    """Read a header; each frame is decoded when it is asked for.

    Where the file names no window, the smallest and largest value of all frames become one.

    Raises:
        UserError: If pydicom is not installed.
        ImageError: Broken, without an image, or over the limits.
    """
    with image_errors(str(path)), path.open("rb") as stream:
        header = dicom.read_header(stream, max_pixels=MAX_PIXELS)
        info = describe_header(header)
    check_size(path, num_frames=info.num_frames, height=info.height, width=info.width)

    def decode(frame: int) -> Image.Image:
        with image_errors(str(path)), path.open("rb") as stream:
            return dicom.decode_frame(stream, header, frame)

    @lru_cache(maxsize=1)
    def extremes() -> tuple[float, float]:
        windows = [decode(frame).info["window"] for frame in range(info.num_frames)]
        return min(low for low, _ in windows), max(high for _, high in windows)

    def read(frame: int) -> Image.Image:
        image = decode(frame)
        if image.mode == "F" and not image.info["named"]:
            image.info["window"] = extremes()
        return image

    return OpenVolumes((info,), read)


def describe_header(header) -> VolumeInfo:
    """What a header tells; the patient and the identity are for pseudonyms alone.

    Raises:
        DicomError: If an attribute that is needed cannot be read.
    """
    with dicom.pydicom_errors():
        view = code_of(header, "ViewPosition")
        return VolumeInfo(
            num_frames=dicom.num_frames(header),
            height=int(header.get("Rows") or 0),
            width=int(header.get("Columns") or 0),
            patient=_person(header),
            laterality=_laterality(header) if header.get("Modality") in _EYE_MODALITIES else "",
            device=_device(header),
            modality=_project_modality(header),
            identity=text_of(header, "SOPInstanceUID"),
            view=view if view in _VIEWS else "",
        )


def text_of(header, name: str) -> str:
    """An attribute as text, for pseudonyms and keys alone; empty if it is not there."""
    with dicom.pydicom_errors():
        return str(header.get(name) or "").strip()


def _person(header) -> str | None:
    """The patient's number with who gave it, else the name; None if the file has neither."""
    number, issuer = text_of(header, "PatientID"), text_of(header, "IssuerOfPatientID")
    name = text_of(header, "PatientName").replace("^", " ").strip()
    return "\0".join(filter(None, (issuer, number))) if number else name or None


def _project_modality(header) -> str:
    """OCT for ophthalmic tomography, CXR for X-rays of the chest, else DICOM's own word."""
    modality = code_of(header, "Modality")
    if modality == "OPT":
        return "OCT"
    if modality in _XRAY_MODALITIES and "CHEST" in code_of(header, "BodyPartExamined"):
        return "CXR"
    return modality


def code_of(header, name: str) -> str:
    """A coded string; empty if it is none, for free text may name somebody (PS3.5, 6.2: CS)."""
    text = text_of(header, name).upper()
    plain = text.replace("_", "").replace(" ", "")
    return text if len(text) <= 16 and plain.isascii() and plain.isalnum() else ""


def _laterality(header) -> str:
    for place in (header, *_frame_anatomy(header)):
        for name in ("ImageLaterality", "Laterality", "FrameLaterality"):
            if str(place.get(name) or "") in _EYES:
                return _EYES[str(place.get(name))]
    return ""


def _frame_anatomy(header):
    groups = [
        *header.get("SharedFunctionalGroupsSequence", ())[:1],
        *header.get("PerFrameFunctionalGroupsSequence", ())[:1],
    ]
    return [item for group in groups for item in group.get("FrameAnatomySequence", ())[:1]]


def _device(header) -> str:
    """Model of the device; empty if it holds a word of somebody's, or of somewhere's, name."""
    model = " ".join(str(header.get("ManufacturerModelName") or "").split())
    for name in _IDENTITIES:
        words = str(header.get(name) or "").replace("^", " ").casefold().split()
        if any(len(word) > 2 and word in model.casefold() for word in words):
            return ""
    return model[:_MAX_DEVICE_CHARACTERS]

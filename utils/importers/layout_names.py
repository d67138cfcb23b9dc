"""Names of the layouts and the flags each heeds; light, for the command line's parser."""

_REPORTS = ("views", "report_sections")
_VOLUMES = ("central_n", "around")

# Layout: the flags it heeds, beside those that every import has.
LAYOUT_FLAGS: dict[str, tuple[str, ...]] = {
    "mimic-cxr-jpg": _REPORTS,
    "mimic-cxr": _REPORTS,
    "open-i": _REPORTS,
    "padchest": _REPORTS,
    "chexpert": ("views",),
    "chexpert-plus": _REPORTS,
    "nih14": ("views",),
    "vindr-cxr": ("views",),
    "kermany": (),
    "octdl": (),
    "octid": (),
    "srinivasan": ("central_n",),
    "olives": ("central_n",),
    "retouch": _VOLUMES,
    "dicom": (*_VOLUMES, "reports", "reports_key", "pseudonym_key"),
    "device-files": (*_VOLUMES, "pseudonym_key"),
}

LAYOUT_NAMES = tuple(LAYOUT_FLAGS)

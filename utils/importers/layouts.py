"""Finds a layout by its name; imports the one module that knows it."""

from importlib import import_module

from utils.importers.layout import Layout

_MODULES = {
    "mimic-cxr-jpg": "mimic_cxr",
    "mimic-cxr": "mimic_cxr",
    "open-i": "open_i",
    "padchest": "padchest",
    "chexpert": "chexpert",
    "chexpert-plus": "chexpert",
    "nih14": "nih14",
    "vindr-cxr": "vindr_cxr",
    "kermany": "kermany",
    "octdl": "octdl",
    "octid": "octid",
    "srinivasan": "srinivasan",
    "olives": "olives",
    "retouch": "retouch",
    "dicom": "dicom_tree",
    "device-files": "device_files",
}


def find_layout(name: str) -> Layout:
    """The layout of one of `utils.importers.layout_names.LAYOUT_NAMES`."""
    module = import_module(f"utils.importers.{_MODULES[name]}")
    return next(layout for layout in module.LAYOUTS if layout.name == name)

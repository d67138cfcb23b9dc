"""The chest X-rays of Indiana University (Open-i, IU X-ray): NLM's collection or Kaggle's form.

https://openi.nlm.nih.gov/faq (NLMCXR_png.tgz, NLMCXR_reports.tgz), CC BY-NC-ND 4.0;
https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university. One study a patient
(Demner-Fushman et al. 2016, https://doi.org/10.1093/jamia/ocv080). NLM's reports do not say which
image is frontal (the first is often the lateral one); Kaggle's indiana_projections.csv does.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from utils.dataset_records import Problem
from utils.importers.chest_views import is_wanted_view
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.release_folders import file_names, has_file
from utils.importers.source_image import SourceImage
from utils.importers.table_index import Lookup, TableIndex
from utils.importers.tree_parts import FileFinder, find_table, missing_part
from utils.line_text import fold_spaces

_VIEWS = "indiana_projections.csv"
_REPORTS = "indiana_reports.csv"
_XML_FOLDERS = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology")
_PNG_FOLDERS = ("NLMCXR_png", "images")
_KAGGLE_FOLDERS = ("images/images_normalized", "images_normalized", "images")
_IMAGE_ID = re.compile(r"CXR(?P<study>\d+)_(?:.*_)?(?P<image>IM-.+)")
_SOURCE = "Open-i"

_TREE = """\
open-i/                                NLM's collection
  NLMCXR_png/CXR1_1_IM-0001-3001.png   images
  ecgen-radiology/1.xml                reports, MeSH terms
  indiana_projections.csv              views, of Kaggle's form; not needed with --views all
or
open-i/                                Kaggle's form
  images/images_normalized/1_IM-0001-4001.dcm.png
  indiana_reports.csv                  reports, MeSH terms
  indiana_projections.csv              the study and the view of each image
"""


def _folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _is_kaggle(root: Path) -> bool:
    return _folder(root, _XML_FOLDERS) is None and find_table(root, _REPORTS) is not None


def _missing(root: Path, options: LayoutOptions) -> list[str]:
    parts = []
    kaggle = _is_kaggle(root)
    folders = _KAGGLE_FOLDERS if kaggle else _PNG_FOLDERS
    images = _folder(root, folders)
    if images is None or not has_file(images, (".png",)):
        parts.append(missing_part(root, f"{folders[0]}/*.png", "the images"))
    xml = _folder(root, _XML_FOLDERS)
    if not kaggle and (xml is None or not has_file(xml, (".xml",))):
        holds = f"the reports (of Kaggle's form: {_REPORTS})"
        parts.append(missing_part(root, "ecgen-radiology/*.xml", holds))
    if find_table(root, _VIEWS) is None and (kaggle or options.views != "all"):
        holds = "which image is frontal"
        if not kaggle:
            holds += "; NLM's reports do not say it, --views all takes every image"
        parts.append(missing_part(root, _VIEWS, holds))
    return parts


def mesh_columns(terms: list[str]) -> dict[str, str]:
    """Columns ``label`` (the headings: Cardiomegaly) and ``mesh`` (as told: Cardiomegaly/mild)."""
    terms = [fold_spaces(term) for term in terms if term.strip()]
    headings = dict.fromkeys(term.partition("/")[0].strip() for term in terms)
    return {"label": ";".join(headings), "mesh": ";".join(terms)}


def _text(sections: dict[str, str], options: LayoutOptions, where: str) -> str | Problem:
    wanted = options.report_sections
    text = fold_spaces(" ".join(sections.get(name, "") for name in wanted))
    if wanted and not text:
        return Problem(where, "empty text", f"no section {' or '.join(wanted)}")
    return text


def _row(study: str, view: str, text: str, mesh: list[str]) -> dict[str, str]:
    return {
        "text": text,
        **mesh_columns(mesh),
        "patient_id": study,
        "source": _SOURCE,
        "modality": "CXR",
        "study_id": study,
        "view": view,
    }


def _images(
    root: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    read = _kaggle_images if _is_kaggle(root) else _nlm_images
    return read(root, options, index)


def _nlm_images(
    root: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    table = find_table(root, _VIEWS)
    views = None if table is None else index.load(table, ["filename"], values=["projection"])
    folder = _folder(root, _PNG_FOLDERS)
    reports = _folder(root, _XML_FOLDERS)
    for name in sorted(file_names(reports, (".xml",)), key=lambda name: (len(name), name)):
        where = f"{reports.relative_to(root).as_posix()}/{name}"
        try:
            report = ElementTree.parse(reports / name).getroot()
        except ElementTree.ParseError as error:
            yield Problem(where, "broken XML", f"{error}; unpack it again")
            continue
        yield from _nlm_study(report, where, (folder, views, options))


def _nlm_study(
    report: ElementTree.Element,
    where: str,
    source: tuple[Path, Lookup | None, LayoutOptions],
) -> Iterator[SourceImage | Problem]:
    folder, views, options = source
    sections = {
        part.get("Label", "").lower(): "".join(part.itertext())
        for part in report.iter("AbstractText")
    }
    text = _text(sections, options, where)
    mesh = [term.text or "" for term in report.iterfind(".//MeSH/major")]
    for image in dict.fromkeys(part.get("id", "") for part in report.iter("parentImage")):
        parts = _IMAGE_ID.fullmatch(image)
        view = _nlm_view(parts, views)
        name = f"{image}.png"
        if parts is None:
            yield Problem(where, "unknown image", f"parentImage id {image!r} names no image")
        elif view is None and options.views != "all":
            yield Problem(where, "unknown view", f"{image} is not in {_VIEWS}")
        elif not is_wanted_view(view or "", options.views):
            continue
        elif not (folder / name).is_file():
            yield Problem(where, "missing file", f"{folder.name}/{name}")
        elif isinstance(text, Problem):
            yield text
        else:
            row = _row(parts["study"], view or "", text, mesh)
            yield SourceImage(str(folder / name), name, row, where)


def _nlm_view(parts: re.Match | None, views: Lookup | None) -> str | None:
    """The view that Kaggle's table gives: CXR2_IM-0652-1001 is its 2_IM-0652-1001.dcm.png."""
    if parts is None or views is None:
        return None
    found = views.get(f"{parts['study']}_{parts['image']}.dcm.png")
    return None if found is None else found["projection"].lower()


def _kaggle_images(
    root: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    table = find_table(root, _VIEWS)
    kept = ("MeSH", "indication", "comparison", "findings", "impression")
    reports = index.load(find_table(root, _REPORTS), ["uid"], values=kept)
    files = FileFinder(root / name for name in _KAGGLE_FOLDERS)
    for line, row in index.stream(table, ("uid", "filename", "projection")):
        view = row["projection"].lower()
        if not is_wanted_view(view, options.views):
            continue
        where = f"{table.name}:{line}"
        path = files.find([row["filename"]])
        told = reports.all(row["uid"])
        report = told[0] if told else None
        text = _text(report or {}, options, where)
        if path is None:
            yield Problem(where, "missing file", row["filename"])
        elif report is None:
            yield Problem(where, "missing report", f"uid {row['uid']} is not in {_REPORTS}")
        elif any(other != report for other in told):
            detail = f"uid {row['uid']} has {len(told)} rows in {_REPORTS}, not all alike"
            yield Problem(where, "several reports", detail)
        elif isinstance(text, Problem):
            yield text
        else:
            columns = _row(row["uid"], view, text, report["MeSH"].split(";"))
            yield SourceImage(str(path), row["filename"], columns, where)


LAYOUTS = (
    Layout(
        name="open-i",
        modality="CXR",
        columns=(
            "text",
            "label",
            "patient_id",
            "source",
            "modality",
            "study_id",
            "view",
            "mesh",
        ),
        tree=_TREE,
        missing=_missing,
        images=_images,
    ),
)

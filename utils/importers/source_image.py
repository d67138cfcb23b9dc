"""One image of a source, as a layout tells of it before its pixels are read."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image to bring into a dataset folder.

    Attributes:
        path: The file as it lies in the source.
        name: ``file_name`` in the new folder: relative, forward slashes, with the source's suffix
            (PNG takes its place where a PNG is written); unique within an import, whatever the
            case of its letters.
        row: The other columns: text, label, patient_id, split, source, modality, and more.
        where: What messages call it: ``metadata.csv.gz:17``, or the file's relative path.
        frame: Of a volume or a file of several frames, counted from 0; None: the single image.
    """

    path: str
    name: str
    row: Mapping[str, str]
    where: str
    frame: int | None = None

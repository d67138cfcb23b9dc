"""The fourteen observations of CheXpert's labeler, as tables of CheXpert and MIMIC-CXR give them.

Irvin et al. 2019 (https://arxiv.org/abs/1901.07031): 1.0 is stated, 0.0 denied, -1.0 uncertain,
an empty cell not mentioned.
"""

from collections.abc import Mapping

OBSERVATIONS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_STATED = ("1.0", "1")
_UNCERTAIN = ("-1.0", "-1")


def label_columns(row: Mapping[str, str] | None) -> dict[str, str]:
    """Columns ``label`` (what is stated) and ``uncertain`` of a row; empty where it has none.

    Args:
        row: Column names to cells; None where the table has no row.
    """
    cells = {name: (row or {}).get(name, "").strip() for name in OBSERVATIONS}
    return {
        "label": ";".join(name for name, cell in cells.items() if cell in _STATED),
        "uncertain": ";".join(name for name, cell in cells.items() if cell in _UNCERTAIN),
    }

"""Views of chest X-rays: which are frontal, which lateral, in the words of the data sets."""

# MIMIC-CXR: PA, AP, LATERAL, LL; PadChest: PA, AP, AP_horizontal, L; CheXpert: also RL.
_FRONTAL = frozenset({"PA", "AP", "AP_HORIZONTAL", "FRONTAL"})
_LATERAL = frozenset({"LATERAL", "XTABLE LATERAL", "L", "LL", "RL"})


def is_wanted_view(view: str, wanted: str) -> bool:
    """Whether an image belongs to what ``--views`` asks for.

    Args:
        view: The data set's own word; a decubitus, an oblique or an unknown view is neither
            frontal nor lateral.
        wanted: frontal, lateral or all.
    """
    view = view.strip().upper()
    return wanted == "all" or view in {"frontal": _FRONTAL, "lateral": _LATERAL}[wanted]


def missing_laterals(wanted: str) -> list[str]:
    """What a data set of frontal views alone lacks."""
    if wanted != "lateral":
        return []
    return ["lateral views: the data set has frontal ones only; leave --views out"]

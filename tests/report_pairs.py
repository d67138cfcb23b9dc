"""200 pairs of reports, always the same: the demo's words, spoiled in every way that a model does.

Not the project's scores, and no fixture: several test files score these texts.
"""

import numpy as np

from demo.oct_report import compose

FINDINGS = (
    "macular edema",
    "drusen",
    "pigment epithelial detachment",
    "subretinal fluid",
    "epiretinal membrane",
)
CHINESE = (
    ("黄斑水肿，视网膜内见多个囊腔，约300微米。", "黄斑水肿，视网膜内见少量囊腔，约250微米。"),
    ("视网膜色素上皮脱离", "视网膜下积液"),
    ("未见异常。", "未见异常。"),
    ("Drusen 玻璃膜疣 0.5 mm", "玻璃膜疣 drusen 0.5mm"),
)
ODD = (
    ("Normal macula.", ""),
    ("", "Drusen."),
    ("", ""),
    ("Drusen", "drusen"),
    ("Drusen.", "Edema."),
    ("Drusen at the fovea", "fovea"),
    ("edema", "mild macular edema with two small cysts at the fovea"),
    ("...", "; -"),
)


def a_report(rng: np.random.Generator) -> str:
    """A report of the demo with 0 to 2 findings."""
    lesions = {
        str(name): {"count": int(rng.integers(1, 12)), "size_um": float(rng.integers(80, 900))}
        for name in rng.choice(FINDINGS, size=int(rng.integers(0, 3)), replace=False)
    }
    severity, side = rng.choice(["mild", "moderate", "severe"]), rng.choice(["left", "central"])
    return compose(rng, lesions=lesions, severity=str(severity), side=str(side))


def spoiled(rng: np.random.Generator, report: str) -> str:
    """The report with words dropped, repeated, swapped, bent, or all its sentences turned round."""
    words = report.split()
    for _ in range(int(rng.integers(0, 5))):
        place = int(rng.integers(len(words)))
        kind = int(rng.integers(5))
        if kind == 0 and len(words) > 1:
            del words[place]
        elif kind == 1:
            words[place:place] = words[place : place + 3]
        elif kind == 2:
            words[place] = str(rng.choice(words))
        elif kind == 3:
            words[place] += "s"
        else:
            words = words[place:] + words[:place]
    return " ".join(words)


def fixed_pairs() -> tuple[list[str], list[str]]:
    """References and written reports, 200 each."""
    rng = np.random.default_rng(7)
    pairs = [*CHINESE, *ODD]
    while len(pairs) < 200:
        report = a_report(rng)
        other = a_report(rng) if len(pairs) % 5 == 0 else report
        pairs.append((report, spoiled(rng, other)))
    return [real for real, _ in pairs], [new for _, new in pairs]

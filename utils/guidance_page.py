"""The page that sets the sub-sets of a guidance grid side by side: same prompts, same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.acceptance import Acceptance
from utils.generation_page import RESEARCH_USE, TILE_PX
from utils.generation_samples import Sample
from utils.html_report import Page
from utils.images import contact_sheet, read_image
from utils.manifest import ACCEPTED

MAX_COLUMNS = 6  # pictures in a row, if that holds a seed's

_HOW_TO_READ = (
    "The same prompts from the same seeds; only the guidance scale, the weight of the prompt, "
    "differs. More of it draws findings clearer, so that more images pass the gate, and all images "
    "more alike, and past some point with too much contrast. Acceptance alone therefore always "
    "speaks for more guidance: choose by what the set is for, with distance and variety of each "
    "sub-set beside it (evaluate.py --compare)."
)


def guidance_page(
    acceptances: Mapping[str, Acceptance],
    rows: Sequence[Mapping[str, Sample]],
    folders: Mapping[str, str],
) -> Page:
    """The comparison.

    Args:
        acceptances: Guidance scale as text -> its set's acceptance, in the order of the scales.
        rows: Images to show, from `same_seed_samples` with the scales as names.
        folders: Guidance scale -> its folder, relative to the page.
    """
    scales = list(acceptances)
    page = Page(
        "Guidance scales side by side",
        lead=f"{len(scales)} sets of the same prompts and seeds, with guidance "
        f"{', '.join(scales[:-1])} and {scales[-1]}.",
    )
    page.notice(RESEARCH_USE, title="Purpose")
    page.paragraph(_HOW_TO_READ)
    _add_counts(page, acceptances)
    _add_pictures(page, scales, rows)
    page.heading("Each set's own page")
    for scale in scales:
        page.link(f"Guidance {scale}", f"{folders[scale]}/report.html")
    return page


def _add_counts(page: Page, acceptances: Mapping[str, Acceptance]) -> None:
    """Acceptance and score of each scale, then acceptance per label."""
    page.heading("Acceptance")
    rows = []
    for scale, acceptance in acceptances.items():
        tally = acceptance.overall
        low, high = (100 * bound for bound in tally.interval)
        rows.append(
            {
                "scale": scale,
                **vars(tally),
                "rate": f"{100 * tally.rate:.1f} % ({low:.1f} – {high:.1f})",
                "score": tally.mean_score,
                "low": ", ".join(dict.fromkeys(acceptance.low() + acceptance.missing())) or None,
            }
        )
    columns = {
        "scale": "Guidance",
        ACCEPTED: "In the set",
        "failed": "Given up",
        "attempts": "Attempts",
        "rate": "Accepted per attempt (95 % interval)",
        "score": "Mean score",
        "low": "Hardly pass",
    }
    for key in ("score", "low"):
        if not any(row[key] for row in rows):
            del columns[key]
    caption = "Score: the classifier's probability of the asked label, in the set."
    page.table(rows, columns, caption=caption if "score" in columns else None)
    labels = list(dict.fromkeys(label for one in acceptances.values() for label in one.per_label))
    page.bars(
        {
            label: {
                f"guidance {scale}": 100 * acceptance.per_label[label].rate
                for scale, acceptance in acceptances.items()
            }
            for label in labels
        },
        title="Accepted attempts per label",
        intervals={
            label: {
                f"guidance {scale}": tuple(100 * b for b in acceptance.per_label[label].interval)
                for scale, acceptance in acceptances.items()
            }
            for label in labels
        },
        x_label="accepted attempts, %",
        caption="Whiskers: 95 % intervals.",
    )


def _add_pictures(page: Page, scales: Sequence[str], rows: Sequence[Mapping[str, Sample]]) -> None:
    """The images of one seed side by side, a column per scale; several seeds in a row."""
    page.heading("The same seeds")
    if not rows:
        page.paragraph("No image was accepted from the same seed with every guidance scale.")
        return
    tiles = [read_image(row[scale].path) for row in rows for scale in scales]
    captions = [_caption(row[scale], scale) for row in rows for scale in scales]
    columns = len(scales) * max(1, MAX_COLUMNS // len(scales))
    page.image(
        contact_sheet(tiles, columns=columns, captions=captions, tile_px=TILE_PX),
        f"{len(rows)} images accepted with every scale from the same seed, drawn by chance; "
        f"of each, side by side, guidance {', '.join(scales)}. Under each picture the guidance, "
        "its score if it has one, and the asked label.",
    )


def _caption(sample: Sample, scale: str) -> str:
    score = f"{float(sample.score):.2f}, " if sample.score else ""
    return f"{scale}: {score}{sample.label}"

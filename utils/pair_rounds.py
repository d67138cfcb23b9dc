"""Mode synthetic_pairs: the generator's own images whose text, label and image agree."""

from __future__ import annotations

import numpy as np

from utils.captioner import Captioner
from utils.classifier import Classifier
from utils.cli import UserError
from utils.dataset import load_dataset
from utils.finding_labeler import load_labeler
from utils.improvement import Improvement
from utils.pair_agreement import examine_pairs
from utils.round_material import Material
from utils.round_record import round_dir
from utils.run_folder import write_csv
from utils.training_mix import Part


def gather(work: Improvement, number: int, model: str) -> Material:
    """Draw from the texts of training patients, keep what agrees, weight 1 each.

    Args:
        work: The loop.
        number: Of the round; the images of each have other seeds.
        model: Draws.

    Raises:
        UserError: If nothing agrees.
    """
    args, name = work.args, round_dir(work.folder, number).name
    folder = work.stages.draw(
        f"{name}/drawn",
        model=model,
        prompts=work.prompts("train"),
        num_images=args.num_images,
        seed=args.seed + number,
        gated=True,
    )
    drawn = load_dataset(folder, check_pixels=False)
    agreement = examine_pairs(
        drawn,
        classifier=Classifier.load(args.classifier, device=work.device),
        captioner=Captioner.load(args.captioner, device=work.device, offline=args.offline),
        labeler=load_labeler(args.finding_rules),
    )
    write_csv(
        work.folder / name / "agreement.csv",
        (
            {
                "file_name": record.file_name,
                "text": record.text,
                "label": ";".join(record.labels),
                "report": report,
                "label_agrees": str(bool(label)).lower(),
                "text_agrees": str(bool(text)).lower(),
            }
            for record, report, label, text in zip(
                drawn, agreement.reports, agreement.label, agreement.text
            )
        ),
        ["file_name", "text", "label", "report", "label_agrees", "text_agrees"],
    )
    places = np.flatnonzero(agreement.kept).tolist()
    if not places:
        raise UserError(
            f"{folder}: text, label and image agree in none of {len(drawn)} drawn images; "
            f"agreement.csv beside it says what does not"
        )
    kept = drawn.select(places)
    texts = [record.text for record in kept]
    part = Part("synthetic", kept.records, texts, np.ones(len(kept)))
    return Material([part], agreement.summary())

"""Flags of self_improve.py; nothing heavy is imported here."""

from __future__ import annotations

import argparse
import shlex

from utils import cli, report_flags
from utils.extractor_names import CLASSIFIER_PREFIX, WEIGHT_FILES
from utils.round_watch import SELECTABLE
from utils.training_flag_values import RESIZE_MODES, model_source

MODES = ("plain", "unlabeled", "synthetic_pairs", "rlhf")
_EVALUABLE_MODES = tuple(mode for mode in RESIZE_MODES if not mode.startswith("random"))


def words(text: str) -> list[str]:
    """Flag type: flags as a shell would split them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def share(text: str) -> float:
    """Flag type: a number in (0, 1]."""
    value = cli.probability(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in (0, 1]")
    return value


def extractor(text: str) -> str:
    """Flag type: a feature network."""
    if text in WEIGHT_FILES or text.startswith(CLASSIFIER_PREFIX):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is none of {', '.join(WEIGHT_FILES)}, {CLASSIFIER_PREFIX}DIR"
    )


def add_data_flags(group: argparse._ArgumentGroup) -> None:
    """What the generator learns from."""
    group.add_argument(
        "--real_dir",
        type=cli.data_source,
        required=True,
        metavar="SOURCE",
        help="real scans with texts; its splits by patient are kept, or made where it has none: "
        "train is learned from, val chooses the best round, test measures it once",
    )
    group.add_argument(
        "--unlabeled_dir",
        type=cli.data_source,
        metavar="SOURCE",
        help="unlabeled: real scans without texts; none of a val or test patient",
    )
    group.add_argument(
        "--by_image",
        action="store_true",
        help="without column split: an image without patient_id is a patient of its own",
    )
    group.add_argument(
        "--skip_invalid", action="store_true", help="drop broken rows; else they end the run"
    )
    group.add_argument(
        "--resize_mode",
        choices=_EVALUABLE_MODES,
        default="center_crop",
        help="how a wide scan becomes a square (default: %(default)s)",
    )


def add_model_flags(group: argparse._ArgumentGroup) -> None:
    """The networks."""
    group.add_argument(
        "--model",
        type=model_source,
        required=True,
        metavar="DIR|NAME",
        help="pipeline that is to be improved",
    )
    group.add_argument(
        "--judge",
        type=cli.existing_dir,
        metavar="DIR",
        help="independent diagnosis classifier (semi_supervised.py) that measures every round: "
        "whether the right finding is seen, and the features of distance, precision and recall; "
        "never the one of --classifier, which chooses what is learned from",
    )
    group.add_argument(
        "--feature_extractor",
        type=extractor,
        metavar="NAME",
        help=f"network of the features instead of the judge: {', '.join(WEIGHT_FILES)} or "
        f"{CLASSIFIER_PREFIX}DIR",
    )
    group.add_argument("--feature_weights", metavar="PATH", help="its weights, as in evaluate.py")
    group.add_argument(
        "--classifier",
        type=cli.existing_dir,
        metavar="DIR",
        help="synthetic_pairs: recognises the label of a drawn image; unlabeled: what it sees in a "
        "scan must go with the report; rlhf: what the reward model sees of an image",
    )
    group.add_argument(
        "--captioner",
        metavar="DIR|NAME",
        help="report model (report_generation.py) that writes of unlabeled or drawn scans",
    )
    group.add_argument(
        "--finding_rules",
        default="oct",
        metavar="NAME|FILE",
        help=f"findings of texts: {', '.join(report_flags.RULES)} or a file (default: %(default)s)",
    )


def add_round_flags(group: argparse._ArgumentGroup) -> None:
    """How many rounds, and what one consists of."""
    group.add_argument("--mode", choices=MODES, required=True, help="see above")
    group.add_argument(
        "--num_rounds",
        type=cli.positive_int,
        default=3,
        metavar="N",
        help="rounds at most (default: %(default)s)",
    )
    group.add_argument(
        "--max_train_steps",
        type=cli.positive_int,
        default=500,
        metavar="N",
        help="optimizer steps of each round (default: %(default)s)",
    )
    group.add_argument(
        "--max_added_share",
        type=share,
        default=0.5,
        metavar="P",
        help="share of the training weight that unlabeled or drawn scans have at most, against "
        "collapse; the others are the real pairs (default: %(default)s)",
    )
    group.add_argument(
        "--without_real",
        action="store_true",
        help="leave the real pairs out of the training (default: always part of it)",
    )
    group.add_argument(
        "--num_images",
        type=cli.positive_int,
        default=1000,
        metavar="N",
        help="synthetic_pairs, rlhf: images drawn to learn from in each round (default: "
        "%(default)s)",
    )


def add_training_flags(group: argparse._ArgumentGroup) -> None:
    """How a round trains; train_text_to_image.py's flags of the same names."""
    group.add_argument(
        "--train",
        choices=("unet", "lora"),
        help="what is trained (default: lora for rlhf, else unet)",
    )
    group.add_argument(
        "--learning_rate",
        type=cli.positive_float,
        metavar="LR",
        help="constant after a short warm-up (default: 1e-5 of the U-Net and of dpo, else 1e-4)",
    )
    group.add_argument("--lora_rank", type=cli.positive_int, default=16, help="(default: 16)")
    group.add_argument(
        "--train_batch_size", type=cli.positive_int, default=16, help="(default: %(default)s)"
    )
    group.add_argument(
        "--training_flags",
        type=words,
        default=[],
        metavar="'FLAGS'",
        help="more flags of train_text_to_image.py, in one quoted word behind an equals sign; they "
        "win: --training_flags='--gradient_checkpointing --snr_gamma 5'",
    )
    group.add_argument(
        "--drawing_flags",
        type=words,
        default=[],
        metavar="'FLAGS'",
        help="more flags of generate_synthetic_dataset.py for all images, e.g. --drawing_flags="
        "'--guidance_scale 3'; none of its gate: images that measure are not chosen",
    )
    group.add_argument(
        "--gate_flags",
        type=words,
        default=[],
        metavar="'FLAGS'",
        help="flags of its gate for the images that are learned from, e.g. --gate_flags="
        "'--train_dir data/oct' against copies",
    )


def add_watch_flags(group: argparse._ArgumentGroup) -> None:
    """How rounds are measured, and when it stops."""
    group.add_argument(
        "--num_eval_images",
        type=cli.positive_int,
        default=500,
        metavar="N",
        help="images that measure a round, drawn from the texts of val patients with the same "
        "seeds every time; as many again of test patients at the end (default: %(default)s)",
    )
    group.add_argument(
        "--select_by",
        choices=tuple(SELECTABLE),
        help="what decides which round is best (default: held_out_reward for rlhf, else agreement "
        "with --judge, else fid)",
    )
    group.add_argument(
        "--patience",
        type=cli.positive_int,
        default=1,
        metavar="N",
        help="stop after so many rounds without a better one (default: %(default)s)",
    )
    limits = {
        "max_recall_drop": (0.1, "share of the first model's recall that may be lost"),
        "max_similarity_rise": (0.1, "MS-SSIM within a prompt may rise by this"),
        "max_agreement_drop": (0.05, "share of images with the right finding that may be lost"),
        "max_loss_rise": (0.1, "share by which the denoising loss on real val scans may rise"),
        "max_distance": (0.2, "mean squared difference of predictions from the first model's, as "
                              "a share of its denoising loss"),
    }  # fmt: skip
    for name, (default, text) in limits.items():
        group.add_argument(
            f"--{name}",
            type=cli.non_negative_float,
            default=default,
            metavar="X",
            help=f"{text}; more stops the loop (default: %(default)s)",
        )

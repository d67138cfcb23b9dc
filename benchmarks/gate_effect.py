r"""What the gate of generate_synthetic_dataset.py does to a set: agreement gained, variety paid.

    python benchmarks/gate_effect.py --output_dir runs/gate
    python benchmarks/gate_effect.py --output_dir runs/gate --guidance_scale 1 1.5 \
        --accept_prob 0.35 0.9 --num_images 600

Simulates two clinics and trains a classifier on each: the gate, and the judge, of another backbone,
another seed and other patients. Then, with each guidance scale, draws the same prompts from
demo/base without a gate and with each threshold, and measures every set with the judge against the
first clinic's test scans: agreement (share of images whose asked finding the judge recognises),
MS-SSIM between images of one finding, and precision, recall and coverage on the judge's features.
Every set has the same number of images but for those that were given up.

Prints the result as JSON and writes it to gate_effect.json, the table to gate_effect.md. A stage
that has ended is not run again. Figures in docs/benchmarks.md.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.html_text import format_number  # noqa: E402
from utils.run_folder import get_logger, print_result, write_json, write_text  # noqa: E402

LOOKS = ("spectral", "cirrus", "swept")  # the devices that demo/base knows
SCORES = ("agreement", "ms_ssim", "precision", "recall", "coverage")
RESOLUTION = 128

logger = get_logger("gate_effect")


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = cli.make_parser(__doc__)
    cli.add_runtime_flags(parser, "output_dir", "batch_size", "seed", batch_size=24, seed=1)
    add = parser.add_argument
    add("--model", type=cli.existing_dir, default=ROOT / "demo" / "base", help="pipeline folder")
    add("--num_scans", type=cli.positive_int, default=1800, help="scans of each simulated clinic")
    add("--gate_backbone", default="small", help="(default: %(default)s)")
    add("--gate_epochs", type=cli.positive_int, default=8, help="(default: %(default)s)")
    add("--judge_backbone", default="resnet18", help="(default: %(default)s)")
    add("--judge_epochs", type=cli.positive_int, default=10, help="(default: %(default)s)")
    add("--num_images", type=cli.positive_int, default=480, help="of a set (default: %(default)s)")
    add(
        "--guidance_scale",
        type=cli.positive_float,
        nargs="+",
        default=[1.0],
        help="a comparison for each; weak guidance leaves the gate something to do "
        "(default: %(default)s)",
    )
    add("--num_inference_steps", type=cli.positive_int, default=10, help="(default: %(default)s)")
    add(
        "--accept_prob",
        type=cli.probability,
        nargs="+",
        default=[0.35, 0.9],
        help="thresholds of the gate (default: %(default)s)",
    )
    add("--max_attempts", type=cli.positive_int, default=10, help="(default: %(default)s)")
    add(
        "--mixed_precision",
        choices=("no", "bf16"),
        default="bf16",
        help="of training and drawing (default: %(default)s)",
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.gate_backbone == args.judge_backbone:
        parser.error("--judge_backbone: a judge like the gate shares its errors; take another one")
    return args


def run(command: Sequence[object], ends_with: Path) -> None:
    """Run one of the toolkit's scripts, unless the file it writes last is there."""
    if ends_with.exists():
        logger.info("%s is there", ends_with)
        return
    logger.info(" ".join(map(str, command)))
    subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )


def simulate(args: argparse.Namespace, name: str, seed: int) -> Path:
    """A clinic's scans, split by patient."""
    folder = args.output_dir / name
    command = ["prepare_dataset.py", "simulate", "--output_dir", folder]
    command += ["--num_images", args.num_scans, "--resolution", RESOLUTION, "--seed", seed]
    run([*command, "--looks", *LOOKS], folder / "metadata.csv")
    command = ["prepare_dataset.py", "split", "--data_dir", folder, "--overwrite", "--seed", seed]
    run(command, folder / ".split_done")
    (folder / ".split_done").touch()
    return folder


def train_classifier(args: argparse.Namespace, name: str, data: Path, seed: int) -> Path:
    """Train the gate or the judge; the classifier's folder."""
    backbone, epochs = vars(args)[f"{name}_backbone"], vars(args)[f"{name}_epochs"]
    folder = args.output_dir / name
    command = ["semi_supervised.py", "--real_dir", data, "--output_dir", folder, "--overwrite"]
    command += ["--backbone", backbone, "--max_epochs", epochs, "--resolution", RESOLUTION]
    command += ["--mixed_precision", args.mixed_precision, "--seed", seed, "--offline"]
    run(command, folder / "results.json")
    return folder / "classifier"


def draw(args: argparse.Namespace, data: Path, name: str, guidance: float, *gate: object) -> Path:
    """Draw a set, as many images of each finding."""
    folder = args.output_dir / name
    command = ["generate_synthetic_dataset.py", "--model", args.model, "--output_dir", folder]
    command += ["--prompts_from", data, "--class_balanced", "--num_images", args.num_images]
    command += ["--guidance_scale", guidance, "--num_inference_steps", args.num_inference_steps]
    command += ["--batch_size", args.batch_size, "--mixed_precision", args.mixed_precision]
    run([*command, "--seed", args.seed, "--offline", *gate], folder / "metadata.csv")
    return folder


def judge(args: argparse.Namespace, data: Path, drawn: Path, classifier: Path) -> dict:
    """Scores of a set, as metrics.json holds them."""
    folder = args.output_dir / f"evaluation_{drawn.name}"
    command = ["evaluate.py", "--real_dir", data, "--real_split", "test", "--synthetic_dir", drawn]
    command += ["--feature_extractor", f"classifier:{classifier}", "--output_dir", folder]
    command += ["--metrics", "agreement", "prdc", "ms_ssim", "--offline", "--seed", args.seed]
    run(command, folder / "metrics.json")
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def acceptance_of(drawn: Path) -> dict:
    """Counts of a set's attempts, over all and per label."""
    from utils.acceptance import Acceptance
    from utils.manifest import Manifest

    return Acceptance.count(Manifest(drawn).read()).as_dict()


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    """All stages; one entry per set."""
    clinic = simulate(args, "clinic", args.seed)
    judge_clinic = simulate(args, "judge_clinic", args.seed + 1)
    gate_dir = train_classifier(args, "gate", clinic, args.seed)
    judge_dir = train_classifier(args, "judge", judge_clinic, args.seed + 1)
    entries = []
    for guidance in args.guidance_scale:
        for threshold in (None, *args.accept_prob):
            gate, name = [], f"guidance_{guidance:g}"
            if threshold is not None:
                gate = ["--classifier", gate_dir, "--accept_prob", threshold]
                gate += ["--max_attempts", args.max_attempts]
                name += f"_gate_{threshold:g}"
            drawn = draw(args, clinic, name, guidance, *gate)
            found = judge(args, clinic, drawn, judge_dir)
            entries.append(
                {
                    "guidance": guidance,
                    "accept_prob": threshold,
                    "acceptance": acceptance_of(drawn),
                    "scores": {key: found["overall"][key] for key in SCORES},
                    "per_label": {
                        label: scores["agreement"] for label, scores in found["per_label"].items()
                    },
                }
            )
    return entries


def with_interval(entry: Mapping) -> str:
    """A score, its interval behind it."""
    low, high = entry.get("ci95") or (None, None)
    text = format_number(entry["value"])
    return text if low is None else f"{text} ({format_number(low)}–{format_number(high)})"


def as_table(entries: Sequence[Mapping]) -> str:
    """Two Markdown tables: all labels, and agreement label by label."""
    labels = list(entries[0]["per_label"])
    heads = ["guidance", "gate", "accepted per attempt", "given up", *SCORES]
    overall, per_label = [heads, ["---"] * len(heads)], [["guidance", "gate", *labels]]
    per_label.append(["---"] * len(per_label[0]))
    for entry in entries:
        gate = "none" if entry["accept_prob"] is None else f"{entry['accept_prob']:g}"
        first = [f"{entry['guidance']:g}", gate]
        tally = entry["acceptance"]["overall"]
        scores = [with_interval(entry["scores"][key]) for key in SCORES]
        overall.append([*first, f"{tally['rate']:.3f}", str(tally["failed"]), *scores])
        per_label.append([*first, *(with_interval(entry["per_label"][name]) for name in labels)])
    real = [format_number(entries[0]["scores"][key].get("real")) for key in SCORES]
    overall.append(["real test scans", "", "", "", *real])
    tables = ("\n".join(f"| {' | '.join(row)} |" for row in rows) for rows in (overall, per_label))
    return "\n\n".join(tables) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, write."""
    args = parse_args(argv)
    entries = measure(args)
    write_json(args.output_dir / "gate_effect.json", entries)
    table = as_table(entries)
    write_text(args.output_dir / "gate_effect.md", table)
    sys.stderr.write(table)
    print_result(entries)


if __name__ == "__main__":
    cli.main_guard(main)

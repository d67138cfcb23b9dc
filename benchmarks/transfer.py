r"""What an OCT model is worth as a start on chest X-rays, and what it forgets there.

    python benchmarks/transfer.py --output_dir runs/transfer
    python benchmarks/transfer.py --output_dir runs/short --shares 10 100 --max_train_steps 200

Simulates an OCT clinic and a chest clinic, and a second one of each on which an independent judge
learns. Three starts learn the chest clinic's films from 1, 5, 10 and 100 % of its training
patients, in equal steps: ``oct`` (demo/base fine-tuned on the OCT clinic),
``base`` (demo/base, which has seen simulated scans too, but not this clinic) and ``untrained`` (the
same pipeline with a U-Net drawn anew). Each draws the test patients' reports with the same seeds:
agreement with the finding asked for, Fréchet distance on the judge's features, recall, and the
loss on val patients all along. Then what the OCT model still draws of OCT, without and with
rehearsal, whose steps show fewer films. Intervals are over prompts and patients: each model is
trained once, and the luck of a training is not in them.

Prints the result as JSON and writes it to transfer.json, the tables to transfer.md; bold is a
change whose interval leaves out 0, for better or worse. A stage that has ended is not run again,
and a training that was stopped goes on; other flags need another folder. Figures in
docs/transfer.md.
"""

import argparse
import csv
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.checkpoints import list_checkpoints  # noqa: E402
from utils.html_text import format_change, format_number  # noqa: E402
from utils.resumable_run import only_writer, open_run  # noqa: E402
from utils.run_folder import print_result, write_json, write_text  # noqa: E402
from utils.stage_runner import StageRunner, to_argv  # noqa: E402

CLINICS = {"OCT": "OCT", "CXR": "CXR", "OCT_second": "OCT", "CXR_second": "CXR"}
LOOKS = {"OCT": "portable", "CXR": None}  # one device of OCT, as in quickstart.sh; all of films
# What a small judge tells apart with few films: not consolidations, and not devices.
FINDINGS = {
    "OCT": None,
    "CXR": (
        *("normal", "cardiomegaly", "left pleural effusion", "right pleural effusion"),
        *("left pneumothorax", "right pneumothorax"),
    ),
}
STARTS = ("oct", "base", "untrained")
SCORES = ("agreement", "fid", "recall")
# Labels that the benchmark tells one by one.
TOLD = ("left pleural effusion", "right pleural effusion", "cardiomegaly")
TEMPLATE = "{modality}: {text}"
DRAWING = {
    "num_inference_steps": 15,
    "guidance_scale": 3,
    "guidance_interval": (0.2, 0.8),
    "class_balanced": True,
    "prompts_split": "test",
    "offline": True,
    "seed": 5_000_000,
}
NUM_CURVE_POINTS = 6


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = cli.make_parser(__doc__)
    cli.add_runtime_flags(parser, "output_dir", "seed", "mixed_precision", seed=1)
    add = parser.add_argument
    add("--base", type=cli.existing_dir, default=ROOT / "demo" / "base", help="pipeline folder")
    add("--starts", nargs="+", choices=STARTS, default=list(STARTS), help="(default: all)")
    add(
        "--shares",
        nargs="+",
        type=cli.positive_int,
        default=[1, 5, 10, 100],
        metavar="PERCENT",
        help="of the chest clinic's training patients (default: %(default)s)",
    )
    add("--num_scans", type=cli.positive_int, default=1200, help="images of each clinic")
    add(
        "--train",
        choices=("unet", "unet+text_encoder"),
        default="unet+text_encoder",
        help="(default: %(default)s, as transfer_cxr.sh)",
    )
    add("--oct_steps", type=cli.positive_int, default=400, help="(default: %(default)s)")
    add("--max_train_steps", type=cli.positive_int, default=300, help="on films")
    add("--judge_steps", type=cli.positive_int, default=300, help="(default: %(default)s)")
    add("--train_batch_size", type=cli.positive_int, default=16, help="(default: %(default)s)")
    add("--learning_rate", type=cli.positive_float, default=1e-3, help="of films")
    add("--rehearsal_share", type=cli.probability, default=0.1, help="(default: %(default)s)")
    add("--num_images", type=cli.positive_int, default=160, help="drawn by each model")
    return parser


def prepare(args: argparse.Namespace, stages: StageRunner) -> None:
    """Clinics, judges, parts of the chest clinic, and the starts."""
    folder = args.output_dir
    for number, (name, modality) in enumerate(CLINICS.items()):
        flags = {"output_dir": folder / name, "num_images": args.num_scans, "modality": modality}
        flags |= {"looks": LOOKS[modality], "findings": FINDINGS[modality]}
        flags["seed"] = args.seed + 1000 * number
        stages.run(f"{name}_simulated", "prepare_dataset.py", ["simulate", *to_argv(flags)])
        flags = {"data_dir": folder / name, "overwrite": True, "seed": args.seed}
        stages.run(f"{name}_split", "prepare_dataset.py", ["split", *to_argv(flags)])
    for number, modality in enumerate(LOOKS):
        flags = {"real_dir": folder / f"{modality}_second", "arms": "real", "backbone": "small"}
        flags |= {"resolution": 128, "early_stopping_patience": 0, "seed": args.seed + number}
        flags |= {"max_train_steps": args.judge_steps, "mixed_precision": args.mixed_precision}
        flags["output_dir"] = folder / f"judge_{modality}"
        stages.run(f"judge_{modality}", "semi_supervised.py", to_argv(flags))
    for share in args.shares:
        if share < 100:
            flags = {"data_dir": folder / "CXR", "share": share / 100, "seed": args.seed}
            flags["output_dir"] = folder / f"films-{share}"
            stages.run(f"films-{share}", "demo/hide_labels.py", to_argv(flags))
    flags = {"model": args.base, "output_dir": folder / "untrained", "forget": "all"}
    stages.run("untrained", "demo/forgetful_base.py", to_argv(flags | {"seed": args.seed}))
    rate = {"learning_rate": 2e-4}  # base knows OCT
    train(args, stages, "oct", args.base, folder / "OCT", steps=args.oct_steps, **rate)


def train(
    args: argparse.Namespace,
    stages: StageRunner,
    name: str,
    model: Path,
    data: Path,
    *,
    steps: int,
    **own: object,
) -> Path:
    """Fine-tune a model on a data set, with the loss on val patients all along; its folder."""
    output_dir = args.output_dir / "models" / name
    flags = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": data,
        "prompt_template": TEMPLATE,
        "train": args.train,
        "resolution": 128,
        "resize_mode": "center_crop",
        "train_batch_size": args.train_batch_size,
        "max_train_steps": steps,
        "learning_rate": args.learning_rate,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 20,
        "adam_beta2": 0.99,  # as demo/base was trained
        "use_ema": True,
        "validation_split": "val",
        "validation_loss_steps": max(1, steps // NUM_CURVE_POINTS),
        "latent_cache_dir": args.output_dir / "latent_cache",
        "report_to": "none",
        "offline": True,
        "seed": args.seed,
        "mixed_precision": args.mixed_precision,
        "output_dir": output_dir,
    }
    go_on = ["--resume_from_checkpoint", "latest"] if list_checkpoints(output_dir) else []
    argv = to_argv(flags | own)
    stages.run(f"models/{name}", "train_text_to_image.py", argv, only_now=go_on)
    return output_dir


def draw(args: argparse.Namespace, stages: StageRunner, name: str, modality: str) -> Path:
    """Draw the reports of a clinic's test patients; the folder of the images."""
    output_dir = args.output_dir / "drawn" / f"{name}-{modality}"
    flags = DRAWING | {"model": args.output_dir / "models" / name, "output_dir": output_dir}
    flags |= {"prompts_from": args.output_dir / modality, "num_images": args.num_images}
    flags["prompt_template"] = TEMPLATE
    stages.run(f"drawn/{name}-{modality}", "generate_synthetic_dataset.py", to_argv(flags))
    return output_dir


def transfer(args: argparse.Namespace, stages: StageRunner) -> dict[str, dict[str, Path]]:
    """Teach every start every share of the films; what each drew, by modality and model."""
    folder = args.output_dir
    models = {
        "oct": folder / "models" / "oct",
        "base": args.base,
        "untrained": folder / "untrained",
    }
    films: dict[str, Path] = {}
    for share in args.shares:
        data = folder / "CXR" if share == 100 else folder / f"films-{share}" / "labeled"
        for start in args.starts:
            name = f"{start}-{share}"
            train(args, stages, name, models[start], data, steps=args.max_train_steps)
            films[name] = draw(args, stages, name, "CXR")
    scans = {"oct": draw(args, stages, "oct", "OCT")}
    if "oct" in args.starts and 100 in args.shares:
        own = {"rehearsal": folder / "OCT", "rehearsal_share": args.rehearsal_share}
        known = (args, stages, "rehearsed-100", models["oct"], folder / "CXR")
        train(*known, steps=args.max_train_steps, **own)
        films["rehearsed-100"] = draw(args, stages, "rehearsed-100", "CXR")
        scans |= {name: draw(args, stages, name, "OCT") for name in ("oct-100", "rehearsed-100")}
    return {"CXR": films, "OCT": scans}


def judge_all(
    args: argparse.Namespace, modality: str, drawn: Mapping[str, Path]
) -> dict[str, dict]:
    """Scores of every set on test patients, with differences from the set it is to be held to."""
    from accelerate import PartialState

    from utils.classifier import Classifier
    from utils.dataset import load_dataset
    from utils.diagnosis_network import DiagnosisNetwork
    from utils.features import load_extractor
    from utils.round_scores import Judge, compare, judge_round

    PartialState(cpu=True)
    path = args.output_dir / f"judge_{modality}" / "classifier"
    judge = Judge(
        load_extractor(f"classifier:{path}"),
        DiagnosisNetwork(Classifier.load(path)),
        {},
        *(128, "center_crop", args.output_dir / "feature_cache", 64, args.seed),
    )
    real = judge.look_at("real", load_dataset(args.output_dir / modality, split="test"))
    sets = {name: load_dataset(path, allow_duplicates=True) for name, path in drawn.items()}
    found = {name: judge_round(judge, real, dataset) for name, dataset in sets.items()}
    result = {}
    for name, outcome in found.items():
        entry = {"scores": outcome.scores, "real": outcome.yardsticks}
        entry["agreement_ci95"] = mean_interval(outcome, seed=args.seed)
        entry["by_label"] = by_label(outcome, sets[name])
        other = held_to(name, found)
        if other is not None:
            entry["held_to"] = other
            entry["change"] = compare(found[other], outcome, real, seed=args.seed)
        result[name] = entry
    return result


def held_to(name: str, others: Mapping[str, object]) -> str | None:
    """The set that one is compared with.

    Of films, base of the same share, and with rehearsal the one without; of OCT, the model before.
    """
    start, _, share = name.partition("-")
    if "oct" in others:  # scans of OCT
        return "oct" if name != "oct" else None
    other = f"oct-{share}" if start == "rehearsed" else f"base-{share}"
    return other if other in others and other != name else None


def mean_interval(outcome, *, seed: int) -> tuple[float, float]:
    """95 % interval of the agreement, over prompts."""
    from utils import metrics

    hits = outcome.per_image["agreement"]
    return metrics.bootstrap_interval(hits, groups=outcome.prompts, seed=seed)


def by_label(outcome, dataset) -> dict[str, dict]:
    """Share of the images of a label in which the judge sees it, with Wilson's interval."""
    from utils.intervals import wilson_interval

    seen, found = outcome.per_image["agreement"] > 0, {}
    for label in dataset.labels:
        index = [i for i, record in enumerate(dataset) if label in record.labels]
        num_seen = int(seen[index].sum())
        interval = wilson_interval(num_seen, len(index))
        share = num_seen / len(index)
        found[label] = {"share": share, "ci95": interval, "num_images": len(index)}
    return found


def curves(args: argparse.Namespace, names: Sequence[str]) -> dict[str, dict[str, dict]]:
    """Loss on val patients by step of every training, and on rehearsed ones where measured."""
    found = {}
    for name in names:
        path = args.output_dir / "models" / name / "validation_log.csv"
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = [column for column in ("loss", "rehearsal_loss") if column in rows[0]]
        found[name] = {
            column: {row["step"]: float(row[column]) for row in rows} for column in columns
        }
    return found


def score_table(result: Mapping[str, Mapping]) -> str:
    """A row per model: scores, the change from what it is held to, and the labels told."""
    labels = [label for label in TOLD if label in next(iter(result.values()))["by_label"]]
    lines = ["| | " + " | ".join((*SCORES, *labels)) + " |"]
    lines.append("|---" * (len(SCORES) + len(labels) + 1) + "|")
    for name, entry in result.items():
        cells = [format_number(entry["scores"][score]) for score in SCORES]
        cells[0] += " [{:.2f}, {:.2f}]".format(*entry["agreement_ci95"])
        for label in labels:
            told = entry["by_label"][label]
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(told["share"], *told["ci95"]))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        if "change" in entry:
            cells = [_change(entry["change"][score]) for score in SCORES] + [""] * len(labels)
            lines.append(f"| – from {entry['held_to']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _change(change: Mapping) -> str:
    text = format_change(change)
    return text if change["better"] is None else f"**{text}**"


def curve_table(found: Mapping[str, Mapping[str, Mapping]]) -> str:
    """A row per training and loss, a column per step measured."""
    steps = sorted({int(step) for losses in found.values() for step in losses["loss"]})
    lines = ["| loss on val patients after step | " + " | ".join(map(str, steps)) + " |"]
    lines.append("|---" * (len(steps) + 1) + "|")
    for name, losses in found.items():
        for column, points in losses.items():
            cells = [format_number(points[str(s)]) if str(s) in points else "" for s in steps]
            what = name if column == "loss" else f"{name}, OCT"
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, train, draw, judge, write."""
    args = build_parser().parse_args(argv)
    os.environ["PYTHONPATH"] = str(ROOT)  # scripts in demo/ find utils/ by it
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(args.output_dir) as lock:
        same = {"identity": {"benchmark": "transfer"}, "free_flags": ("output_dir",)}
        open_run(args.output_dir, args, **same, outputs=(), anew=False)
        stages = StageRunner(args.output_dir, ROOT, (), lock)
        prepare(args, stages)
        drawn = transfer(args, stages)
    result = {modality: judge_all(args, modality, sets) for modality, sets in drawn.items()}
    result["loss"] = curves(args, list(drawn["CXR"]))
    result["seconds"] = stages.seconds()
    write_json(args.output_dir / "transfer.json", result)
    tables = [score_table(result["CXR"]), score_table(result["OCT"]), curve_table(result["loss"])]
    write_text(args.output_dir / "transfer.md", "\n".join(tables))
    print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)

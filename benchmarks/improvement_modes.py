r"""What each mode of self_improve.py adds to a weak generator, beside as much plain training.

    python benchmarks/improvement_modes.py --output_dir runs/modes
    python benchmarks/improvement_modes.py --output_dir runs/modes --modes plain dpo --num_rounds 3

Simulates a clinic of which a fifth has reports, and two more: a judge learns on the second, the
oracle of simulated raters on the third. The generator is demo/base without its knowledge of words,
trained on the few pairs. Gate and report model learn from the few pairs too. Simulated raters judge
what the weak generator draws. Then every mode runs the same number of rounds and steps, and its
last round draws the test patients' texts with the same seeds; scores and differences from the weak
generator and from plain training, by networks that had no part in any mode.

Prints the result as JSON and writes it to improvement_modes.json, the tables to
improvement_modes.md. A stage that has ended is not run again. Figures in docs/benchmarks.md.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.html_text import format_change, format_number  # noqa: E402
from utils.run_folder import get_logger, print_result, write_json, write_text  # noqa: E402
from utils.stage_runner import StageRunner, to_argv  # noqa: E402

MODES = ("plain", "unlabeled", "synthetic_pairs", "reward_weighted", "dpo")
SCORES = ("agreement", "fid", "recall", "coverage", "held_out_reward")
DRAWING = "--num_inference_steps 15 --guidance_scale 3 --guidance_interval 0.2 0.8"
GUARDS = ("recall_drop", "similarity_rise", "agreement_drop", "loss_rise", "distance")
TEST_SEED = 4_000_000

logger = get_logger("modes")


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = cli.make_parser(__doc__)
    cli.add_runtime_flags(parser, "output_dir", "seed", "mixed_precision", seed=1)
    add = parser.add_argument
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="plain is always run")
    add("--num_scans", type=cli.positive_int, default=1200, help="scans of each simulated clinic")
    add("--label_share", type=cli.probability, default=0.2, help="(default: %(default)s)")
    add("--weak_steps", type=cli.positive_int, default=150, help="(default: %(default)s)")
    add("--num_rounds", type=cli.positive_int, default=1, help="(default: %(default)s)")
    add("--max_train_steps", type=cli.positive_int, default=300, help="of a round")
    add("--learning_rate", type=cli.positive_float, default=1e-4, help="(default: %(default)s)")
    add("--dpo_beta", type=cli.positive_float, default=2000.0, help="(default: %(default)s)")
    add("--num_images", type=cli.positive_int, default=288, help="drawn to learn from in a round")
    add("--num_eval_images", type=cli.positive_int, default=240, help="(default: %(default)s)")
    add("--num_raters", type=cli.positive_int, default=6, help="simulated (default: %(default)s)")
    add("--kappa", type=cli.probability, default=0.6, help="of the raters (default: %(default)s)")
    return parser


def prepare(args: argparse.Namespace, stages: StageRunner) -> dict[str, Path]:
    """Clinics, networks, the weak generator, and what simulated raters say of its images."""
    folder, size = args.output_dir, args.num_scans
    common = {"seed": args.seed, "mixed_precision": args.mixed_precision}
    for number, name in enumerate(("clinic", "second", "third")):
        flags = {"output_dir": folder / name, "num_images": size, "looks": "portable"}
        flags["seed"] = args.seed + 1000 * number
        stages.run(f"{name}_simulated", "prepare_dataset.py", ["simulate", *to_argv(flags)])
        flags = {"data_dir": folder / name, "overwrite": True, "seed": args.seed}
        stages.run(f"{name}_split", "prepare_dataset.py", ["split", *to_argv(flags)])
    flags = {"data_dir": folder / "clinic", "share": args.label_share, "seed": args.seed}
    flags["output_dir"] = folder / "few"
    stages.run("few", "demo/hide_labels.py", to_argv(flags))
    few = folder / "few" / "labeled"
    for name, source in (("judge", "second"), ("oracle", "third"), ("gate", "few/labeled")):
        flags = {"real_dir": folder / source, "arms": "real", "backbone": "small"} | common
        flags |= {"resolution": 128, "early_stopping_patience": 0, "output_dir": folder / name}
        flags["max_train_steps"] = 300
        flags["seed"] += len(name)  # other weights to start from
        stages.run(name, "semi_supervised.py", to_argv(flags))
    flags = {"real_dir": few, "arms": "real", "resolution": 64, "max_train_steps": 1000} | common
    flags |= {"early_stopping_patience": 0, "offline": True, "output_dir": folder / "reports"}
    stages.run("reports", "report_generation.py", to_argv(flags))
    stages.run("forgetful", "demo/forgetful_base.py", to_argv({"output_dir": folder / "forgetful"}))
    flags = training_flags(args) | {"max_train_steps": args.weak_steps}
    flags |= {"pretrained_model_name_or_path": folder / "forgetful", "train_data_dir": few}
    flags |= {"learning_rate": 2e-4, "output_dir": folder / "weak"}
    stages.run("weak", "train_text_to_image.py", to_argv(flags))
    rate(args, stages, few)
    return {"few": few, "unlabeled": folder / "few" / "unlabeled"}


def training_flags(args: argparse.Namespace) -> dict[str, object]:
    """What the weak generator is trained with."""
    return {
        "resolution": 128,
        "resize_mode": "center_crop",
        "train_batch_size": 8,
        "lr_warmup_steps": 10,
        "lr_scheduler": "cosine",
        "report_to": "none",
        "offline": True,
        "seed": args.seed,
        "mixed_precision": args.mixed_precision,
    }


def rate(args: argparse.Namespace, stages: StageRunner, few: Path) -> None:
    """Draw four images of each text with the weak generator; simulated raters judge them."""
    folder = args.output_dir
    flags = {"model": folder / "weak", "prompts_from": few, "class_balanced": True}
    flags |= {"num_images": 144, "num_images_per_prompt": 4, "seed": args.seed + 50}
    flags |= {"offline": True, "output_dir": folder / "rated"}
    argv = to_argv(flags) + DRAWING.split()
    stages.run("rated", "generate_synthetic_dataset.py", argv)
    flags = {"real_dir": few, "real_split": "train", "synthetic_dir": f"weak={folder / 'rated'}"}
    flags |= {"num_images": 60, "num_pairs": 60, "seed": args.seed}
    flags |= {"questions": ("turing", "quality", "agreement", "preference")}
    flags["output_dir"] = folder / "study"
    stages.run("study", "rate_images.py", ["create", *to_argv(flags)])
    flags = {"study_dir": folder / "study", "classifier": folder / "oracle" / "classifier"}
    flags |= {"num_raters": args.num_raters, "kappa": args.kappa, "seed": args.seed}
    stages.run("raters", "demo/simulated_raters.py", to_argv(flags))
    for command in ("export", "analyze"):
        flags = {"study_dir": folder / "study", "output_dir": folder / f"study_{command}"}
        stages.run(f"study_{command}", "rate_images.py", [command, *to_argv(flags)])


def improve(
    args: argparse.Namespace, stages: StageRunner, mode: str, data: Mapping[str, Path]
) -> Path:
    """Run a mode for all its rounds, whatever comes of them; the pipeline of the last one."""
    folder = args.output_dir
    gate = folder / "gate" / "classifier"
    captioner = folder / "reports" / "captioner"
    own = {
        "unlabeled": {
            "unlabeled_dir": data["unlabeled"],
            "captioner": captioner,
            "classifier": gate,
        },
        "synthetic_pairs": {
            "captioner": captioner,
            "classifier": gate,
            "num_images": args.num_images,
        },
    }
    rated = {"ratings": folder / "study_export", "classifier": gate, "train": "unet"}
    rated |= {"num_images": args.num_images}
    for method in ("reward_weighted", "dpo"):
        own[method] = rated | {"method": method}
    own.get("dpo", {})["dpo_beta"] = args.dpo_beta
    is_rated = mode in ("reward_weighted", "dpo")
    flags = {"mode": "rlhf" if is_rated else mode, "model": folder / "weak"}
    flags |= {"real_dir": data["few"], "judge": folder / "judge" / "classifier"}
    flags |= own.get(mode, {})
    flags |= {"num_rounds": args.num_rounds, "patience": args.num_rounds + 1}
    flags |= {f"max_{name}": 9 for name in GUARDS}
    flags |= {"max_train_steps": args.max_train_steps, "learning_rate": args.learning_rate}
    flags |= {"train_batch_size": 8, "num_eval_images": args.num_eval_images // 2}
    flags |= {"offline": True, "mixed_precision": args.mixed_precision, "seed": args.seed}
    flags["output_dir"] = folder / mode
    argv = [*to_argv(flags), f"--drawing_flags={DRAWING}"]
    found = stages.run(mode, "self_improve.py", argv)
    rounds = found["rounds"]
    if rounds < args.num_rounds:
        logger.warning("%s: ended after round %d: %s", mode, rounds, found["stopped"])
    return folder / mode / f"round-{rounds}" / "pipeline"


def draw_test(args: argparse.Namespace, stages: StageRunner, name: str, model: Path) -> Path:
    """Draw the texts of test patients."""
    folder = args.output_dir / "test" / name
    flags = {"model": model, "prompts_from": args.output_dir / "clinic", "prompts_split": "test"}
    flags |= {"class_balanced": True, "num_images": args.num_eval_images, "offline": True}
    flags |= {"seed": TEST_SEED, "output_dir": folder}
    stages.run(f"test/{name}", "generate_synthetic_dataset.py", to_argv(flags) + DRAWING.split())
    return folder


def judge_all(args: argparse.Namespace, drawn: Mapping[str, Path]) -> dict[str, dict]:
    """Scores of every set on test patients, with differences from the weak one and from plain."""
    from accelerate import PartialState

    from utils.classifier import Classifier
    from utils.dataset import load_dataset
    from utils.diagnosis_network import DiagnosisNetwork
    from utils.features import load_extractor
    from utils.reward_model import RewardModel
    from utils.round_scores import Judge, compare, judge_round

    state, cache_dir = PartialState(cpu=True), args.output_dir / "feature_cache"
    path = args.output_dir / "judge" / "classifier"
    rewards = {}
    for mode in ("dpo", "reward_weighted"):
        folder = args.output_dir / mode / "held_out_reward"
        if folder.is_dir():
            reward = RewardModel.load(folder)
            score = partial(reward.score, cache_dir=cache_dir, state=state)
            rewards["held_out_reward"] = score
    judge = Judge(
        load_extractor(f"classifier:{path}"),
        DiagnosisNetwork(Classifier.load(path)),
        rewards,
        *(128, "center_crop", cache_dir, 64, args.seed),
    )
    real = judge.look_at("real", load_dataset(args.output_dir / "clinic", split="test"))
    found = {
        name: judge_round(judge, real, load_dataset(folder, check_pixels=False))
        for name, folder in drawn.items()
    }
    result = {}
    for name, outcome in found.items():
        entry = {"scores": outcome.scores, "real": outcome.yardsticks}
        for other in ("weak", "plain"):
            if name not in ("weak", other):
                entry[f"from_{other}"] = compare(found[other], outcome, real, seed=args.seed)
        result[name] = entry
    return result


def as_table(result: Mapping[str, Mapping]) -> str:
    """A row per mode: the value, and its change from the weak generator and from plain training."""
    names = [name for name in SCORES if name in result["weak"]["scores"]]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for mode, entry in result.items():
        values = [format_number(entry["scores"][name]) for name in names]
        lines.append(f"| {mode} | " + " | ".join(values) + " |")
        for other in ("weak", "plain"):
            if f"from_{other}" in entry:
                cells = [_cell(entry[f"from_{other}"][name]) for name in names]
                lines.append(f"| – from {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(change: Mapping) -> str:
    text = format_change(change)
    return f"**{text}**" if change["better"] else text


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, run the modes, judge, write."""
    args = build_parser().parse_args(argv)
    os.environ["PYTHONPATH"] = str(ROOT)  # scripts in demo/ find utils/ by it
    stages = StageRunner(args.output_dir, ROOT, (), None)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    data = prepare(args, stages)
    models = {"weak": args.output_dir / "weak"}
    for mode in dict.fromkeys(["plain", *args.modes]):
        models[mode] = improve(args, stages, mode, data)
    drawn = {name: draw_test(args, stages, name, model) for name, model in models.items()}
    result = judge_all(args, drawn)
    write_json(args.output_dir / "improvement_modes.json", result)
    write_text(args.output_dir / "improvement_modes.md", as_table(result))
    print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)

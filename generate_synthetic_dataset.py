#!/usr/bin/env python
r"""Draw a labelled data set from a fine-tuned Stable Diffusion pipeline.

Attempt a at image i depends on the model, its prompt, the sampler's settings and (--seed, i, a)
alone: batch size, number of processes and machines, interruptions and the order of the work change
no byte (on a GPU a grey level here and there). With --classifier an image is kept only if its own
label is recognised in it; others are drawn anew. The same command started again goes on where it
stopped. Every PNG says that it is synthetic.

Examples:
  # ten images of one finding
  python generate_synthetic_dataset.py --model runs/oct --prompt "macular edema with cysts" \
      --label "macular edema" --num_images 10 --output_dir runs/edema

  # as many images as captions, the findings as frequent as in the training split
  python generate_synthetic_dataset.py --model runs/oct --prompts_from data/oct \
      --output_dir runs/synthetic

  # 6,000 images, every label equally often, each recognised by a classifier at a threshold with a
  # precision of 0.9 on real scans, no copies of training scans; on all GPUs of the machine
  accelerate launch generate_synthetic_dataset.py --model runs/oct --prompts_from data/oct \
      --class_balanced --num_images 6000 --classifier runs/diagnosis/classifier \
      --accept_precision 0.9 --real_dir data/oct --train_dir data/oct --output_dir runs/gated

  # all combinations of a template, at three guidance scales from the same noise
  python generate_synthetic_dataset.py --model runs/oct --template findings.json \
      --guidance_scale 2 4 7.5 --offline --output_dir runs/grid

Writes images/000000.png and so on, metadata.csv (a dataset folder), manifest.csv (every attempt),
plan.csv (what is done, open, failed), report.html, dataset_card.md, gates.json and options.json.
The result is printed as JSON.
"""

import argparse
import errno
import json
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli, generation_flags
from utils.cli import UserError
from utils.run_folder import get_logger, print_result, to_plain, write_json, write_text

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

    from utils.generation_job import Job
    from utils.generation_progress import Progress
    from utils.generation_tools import Tools
    from utils.image_sampler import ImageSampler
    from utils.work_plan import WorkPlan

GATES_NAME = "gates.json"
SAMPLES_PER_LABEL = 2  # on the page of several guidance scales
LONGEST_WAIT = timedelta(hours=12)  # of a process for the slowest one, at the end of a round
MAX_WAITING = 4  # groups drawn but not yet written
WRITERS = 4  # threads that write PNGs

# Flags that may differ between a run and its continuation: they change no image.
FREE_FLAGS = ("output_dir", "batch_size", "device", "offline", "overwrite")
OUTPUTS = (
    *("images/[0-9]*.png", "[0-9]*.tar", "rejected/[0-9]*.png", ".index/*"),
    *("manifest.csv", "manifest_parts/*.csv", "plan.csv", "metadata.csv", "gates.json"),
    *("dataset_card.md", "model_card.md", "report.html"),
)

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

logger = get_logger("generate")


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR|NAME", help="pipeline folder, or its name on the hub"
    )
    cli.add_runtime_flags(parser, "output_dir")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete what an earlier run wrote to --output_dir (default: continue it)",
    )
    generation_flags.add_all(parser)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    generation_flags.check(parser, args)
    return args


def start(args: argparse.Namespace) -> "PartialState":
    """The state of the processes that ``accelerate launch`` started, or of this one alone."""
    if args.offline:
        cli.go_offline()
    cli.answer_signals()
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    device = cli.resolve_device(args.device)
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or torch.device(device).type == "cpu"
    state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    if on_cpu:
        torch.set_num_threads(1)  # the last bit of a sum depends on it; groups run side by side
    if not state.is_main_process:
        for name in ("generate", "prompts", "dataset", "cache", "thresholds"):
            get_logger(name).setLevel("ERROR")
    return state


def next_round(
    args: argparse.Namespace, job: "Job", state: "PartialState", *, check: bool
) -> "WorkPlan":
    """What is to be drawn next, from all that is recorded; the main process decides.

    Args:
        args: The flags of this set.
        job: What is drawn.
        state: Of the processes.
        check: Whether to look for the recorded pictures on the disk.
    """
    from accelerate.utils import broadcast_object_list

    from utils.generated_set import record_round

    plan = None
    if state.is_main_process:
        plan = record_round(
            args.output_dir,
            job.prompts,
            max_attempts=args.max_attempts,
            unique=args.reject_duplicates,
            keep_rejected=args.keep_rejected,
            check=check,
        )
    return broadcast_object_list([plan])[0]


def batching(
    sampler: "ImageSampler", batch_size: int | None, num_processes: int
) -> tuple[int, int]:
    """Images of a group, and how many groups a process draws at once."""
    from utils.image_sampler import auto_batch_size
    from utils.workers import cores_per_process

    cores = cores_per_process(num_processes)
    batch_size = batch_size or auto_batch_size(sampler, num_workers=cores)
    if sampler.group_size is None:
        return batch_size, 1
    # On a CPU the group is fixed, and a core takes one: a smaller batch uses fewer cores.
    return sampler.group_size, min(cores, -(-batch_size // sampler.group_size))


def draw_round(
    args: argparse.Namespace,
    job: "Job",
    tools: "Tools",
    *,
    sampler: "ImageSampler",
    plan: "WorkPlan",
    process: "PartialState",
    progress: "Progress",
) -> None:
    """The sampling loop: this process's share of a round, drawn, judged, written, recorded."""
    from concurrent.futures import ThreadPoolExecutor

    from utils.manifest import ManifestWriter, part_path
    from utils.sampling import image_seed
    from utils.work_plan import in_groups, share

    mine = share(plan.todo, process=process.process_index, num_processes=process.num_processes)
    size, num_workers = batching(sampler, args.batch_size, process.num_processes)
    groups = in_groups(mine, size)
    wanted = (
        [(job.prompts[i].text, image_seed(args.seed, i, plan.attempt)) for i in group]
        for group in groups
    )
    part = part_path(args.output_dir, attempt=plan.attempt, process=process.process_index)
    with ManifestWriter(part) as manifest, ThreadPoolExecutor(WRITERS) as writers:
        waiting = deque()
        for group, pixels in zip(groups, sampler.stream(wanted, num_workers=num_workers)):
            drawn = {"indices": group, "attempt": plan.attempt, "pixels": pixels}
            waiting.append(writers.submit(finish_group, args, job, tools, **drawn))
            while waiting and (waiting[0].done() or len(waiting) > MAX_WAITING):
                manifest.append(waiting.popleft().result())
                progress.update()
        for written in waiting:
            manifest.append(written.result())


def finish_group(
    args: argparse.Namespace,
    job: "Job",
    tools: "Tools",
    *,
    indices: Sequence[int],
    attempt: int,
    pixels: "Tensor",
) -> list[dict[str, str]]:
    """Judge and write the pictures of a group; returns their lines of the manifest."""
    from utils.generated_image import record_image
    from utils.pictures import check_finite, finish_image

    prompts = [job.prompts[index] for index in indices]
    for index, prompt, picture in zip(indices, prompts, pixels):
        check_finite(picture, index, prompt)
    finished = [finish_image(picture, args.gray) for picture in pixels]
    gate, _ = tools.gate
    verdicts = gate.examine(
        [picture for picture, _ in finished], [prompt.labels for prompt in prompts]
    )
    common = {"model_hash": job.identity["model_hash"], "signer": tools.signer}
    return [
        record_image(
            args,
            picture,
            index=index,
            attempt=attempt,
            prompt=prompt,
            chroma=chroma,
            verdict=verdict,
            **common,
        )
        for index, prompt, (picture, chroma), verdict in zip(indices, prompts, finished, verdicts)
    ]


def open_set(args: argparse.Namespace, job: "Job") -> None:
    """Make the folder ready, new or to be continued."""
    from utils.resumable_run import open_run

    open_run(
        args.output_dir,
        args,
        identity=job.identity,
        free_flags=FREE_FLAGS,
        outputs=OUTPUTS,
        # A run that ended before its first attempt stands in nobody's way.
        anew=args.overwrite or not has_attempts(args.output_dir),
    )


def draw_set(
    args: argparse.Namespace, job: "Job", tools: "Tools", state: "PartialState"
) -> dict[str, object]:
    """Draw one set, round by round, and write its tables; its summary on the main process."""
    from utils.generation_progress import Progress
    from utils.resumable_run import only_writer

    is_main = state.is_main_process
    if is_main:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(args.output_dir) if is_main else nullcontext():
        if is_main:
            open_set(args, job)
        with Progress(args.output_dir, job.prompts, shown=is_main) as progress:
            plan = next_round(args, job, state, check=True)
            if len(plan.todo):
                keep_gates(args, tools, state)
                sampler = tools.sampler(args.guidance_scale)
            while len(plan.todo):
                progress.begin_round(plan)
                steps = {"sampler": sampler, "plan": plan, "process": state, "progress": progress}
                draw_round(args, job, tools, **steps)
                state.wait_for_everyone()
                progress.update(now=True)
                plan = next_round(args, job, state, check=False)
                if is_main:
                    tell_acceptance(args.output_dir)
        if is_main:
            return {**finish_set(args, job), **progress.rates}
    return {}


def has_attempts(folder: Path) -> bool:
    """Whether an earlier run recorded anything there."""
    from utils.manifest import Manifest

    pictures = (path for pattern in OUTPUTS[:2] for path in folder.glob(pattern))
    return any(pictures) or len(Manifest(folder).rows) > 0


def keep_gates(args: argparse.Namespace, tools: "Tools", state: "PartialState") -> None:
    """Load all networks, and write down what the gate hangs on, or check that it is the same.

    Raises:
        UserError: If the set was begun with other thresholds or another detector of copies.
    """
    _, facts = tools.gate
    tools.encoder  # noqa: B018 - loaded here, not in the middle of the work
    path = args.output_dir / GATES_NAME
    if not state.is_main_process:
        return
    if not path.exists():
        write_json(path, facts)
    elif json.loads(path.read_text(encoding="utf-8")) != to_plain(facts):
        raise UserError(
            f"{path}: this set was begun with another gate (the data behind it or the classifier "
            "has changed): name another folder, or start anew with --overwrite"
        )


def tell_acceptance(folder: Path) -> None:
    """Say after each round how hard the labels are to get, while the user can still stop."""
    from utils.acceptance import Acceptance, describe_low
    from utils.manifest import Manifest

    acceptance = Acceptance.count(Manifest(folder).read())
    for label, tally in acceptance.per_label.items():
        logger.info(
            "%s: %d of %d attempts accepted (%.0f %%), %d of %d images failed",
            *(label, tally.accepted, tally.attempts, 100 * tally.rate, tally.failed, tally.asked),
        )
    for sentence in describe_low(acceptance):
        logger.warning("%s", sentence)


def finish_set(args: argparse.Namespace, job: "Job") -> dict[str, object]:
    """Write what makes the folder a data set; returns its numbers.

    Raises:
        UserError: If no image was accepted.
    """
    from utils import generated_set, set_summary
    from utils.acceptance import describe_reasons
    from utils.manifest import Manifest
    from utils.shard_writer import SHARD_PATTERN

    folder, manifest = args.output_dir, Manifest(args.output_dir)
    facts = {"identity": job.identity, "resolution": job.resolution}
    summary, acceptance = set_summary.summarise(args, manifest, **facts)
    if summary["num_failed"]:
        logger.warning(
            "%d of %d images failed in %d attempts each: plan.csv names them",
            *(summary["num_failed"], summary["num_asked"], args.max_attempts),
        )
    if not any(folder.glob(SHARD_PATTERN)):  # else the pictures are in there
        generated_set.remove_strays(folder, manifest)
        set_summary.write_pages(folder, manifest, summary, acceptance)
    if not summary["num_images"]:
        raise UserError(
            f"no image was accepted in {summary['num_attempts']} attempts "
            f"({describe_reasons(acceptance.overall.reasons)}): see {folder / 'report.html'}"
        )
    model_card = job.model_dir / "model_card.md"
    if model_card.is_file():
        write_text(folder / model_card.name, model_card.read_text(encoding="utf-8"))
    generated_set.publish(folder, manifest, kind=args.format, num_images=summary["num_images"])
    return {"output_dir": folder, **summary}


def one_per_guidance(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The flags of each set: one guidance scale, and a folder of its own if there are several.

    Raises:
        UserError: If --output_dir holds a single set, and several are wanted.
    """
    scales, folder = args.guidance_scale, args.output_dir
    if len(scales) > 1 and (folder / "options.json").exists():
        raise UserError(
            f"--output_dir {folder} holds the set of one guidance scale; name another folder"
        )
    folders = [folder / f"guidance_{scale:g}" for scale in scales] if len(scales) > 1 else [folder]
    return [
        argparse.Namespace(**vars(args) | {"guidance_scale": scale, "output_dir": each})
        for scale, each in zip(scales, folders)
    ]


def write_comparison(folder: Path, sets: Sequence[argparse.Namespace]) -> None:
    """The page that sets guidance scales side by side."""
    from utils.acceptance import Acceptance
    from utils.generation_samples import same_seed_samples
    from utils.guidance_page import guidance_page
    from utils.manifest import Manifest

    scales = {f"{one.guidance_scale:g}": one.output_dir for one in sets}
    manifests = {scale: Manifest(path) for scale, path in scales.items()}
    page = guidance_page(
        {scale: Acceptance.count(manifest.read()) for scale, manifest in manifests.items()},
        same_seed_samples(
            {scale: (manifests[scale].read(), path) for scale, path in scales.items()},
            per_label=SAMPLES_PER_LABEL,
        ),
        {scale: path.name for scale, path in scales.items()},
    )
    page.write(folder / "report.html")


def run(args: argparse.Namespace, state: "PartialState") -> dict[str, object]:
    """Prepare, and draw each set; the result on the main process."""
    from utils.generation_job import prepare
    from utils.generation_tools import Tools

    job = prepare(args, state)
    tools = Tools(args, job, state)
    tools.signer  # noqa: B018 - tried before anything is written
    sets = one_per_guidance(args)
    results = [draw_set(one, job, tools, state) for one in sets]
    if len(sets) == 1 or not state.is_main_process:
        return results[0]
    if args.format == "folder":
        write_comparison(args.output_dir, sets)
    return {"sets": {one.output_dir.name: result for one, result in zip(sets, results)}}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, prepare, draw, write."""
    args = parse_args(argv)
    state = start(args)
    try:
        result = run(args, state)
    except OSError as error:
        path = error.filename
        is_output = path is None or Path(path).is_relative_to(args.output_dir)
        if error.errno not in CANNOT_WRITE or not is_output:
            raise
        raise UserError(
            f"--output_dir {args.output_dir} cannot be written: {error}. What is there is whole: "
            "put it right and start the same command again"
        ) from error
    if state.is_main_process:
        print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)

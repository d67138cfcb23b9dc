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
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli, generation_flags
from utils.cli import UserError
from utils.run_folder import get_logger, print_result, write_bytes, write_options

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

    from utils.generation_job import Job
    from utils.generation_progress import Progress
    from utils.generation_tools import DrawingKit, Tools
    from utils.work_plan import WorkPlan

SAMPLES_PER_LABEL = 2  # on the page of several guidance scales
LONGEST_WAIT = timedelta(hours=12)  # of a process for the slowest one, at the end of a round
MAX_WAITING = 4  # groups drawn but not yet written
WRITERS = 4  # threads that write PNGs

# Flags that may differ between a run and its continuation: they change no image.
FREE_FLAGS = ("output_dir", "batch_size", "device", "offline", "overwrite")
PICTURES = ("images/[0-9]*.png", "[0-9]*.tar")
OUTPUTS = (
    *(*PICTURES, "rejected/[0-9]*.png", ".index/*"),
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

    from utils.process_group import join

    loggers = ("generate", "prompts", "dataset", "cache", "gate")
    state = join(args.device, longest_wait=LONGEST_WAIT, main_loggers=loggers)
    if state.device.type == "cpu":
        torch.set_num_threads(1)  # the last bit of a sum depends on it; groups run side by side
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
    from utils.generated_set import record_round
    from utils.process_group import from_main

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
    return from_main(plan)


def draw_round(
    args: argparse.Namespace,
    job: "Job",
    kit: "DrawingKit",
    *,
    plan: "WorkPlan",
    state: "PartialState",
    progress: "Progress",
) -> None:
    """The sampling loop: this process's share of a round, drawn, judged, written, recorded."""
    from concurrent.futures import ThreadPoolExecutor

    from utils.manifest import ManifestWriter, part_path
    from utils.sampling import image_seed
    from utils.work_plan import in_groups, share

    mine = share(plan.todo, process=state.process_index, num_processes=state.num_processes)
    groups = in_groups(mine, kit.group_size)
    wanted = (
        [(job.prompts[i].drawn, image_seed(args.seed, i, plan.attempt)) for i in group]
        for group in groups
    )
    part = part_path(args.output_dir, attempt=plan.attempt, process=state.process_index)
    stream = kit.sampler.stream(wanted, num_workers=kit.num_workers)
    with (
        ManifestWriter(part) as manifest,
        ThreadPoolExecutor(WRITERS) as writers,
        closing(stream),
    ):
        waiting = deque()
        for group, pixels in zip(groups, stream):
            drawn = {"indices": group, "attempt": plan.attempt, "pixels": pixels}
            waiting.append(writers.submit(finish_group, args, job, kit, **drawn))
            while waiting and (waiting[0].done() or len(waiting) > MAX_WAITING):
                manifest.append(waiting.popleft().result())
                progress.update()
        for written in waiting:
            manifest.append(written.result())


def finish_group(
    args: argparse.Namespace,
    job: "Job",
    kit: "DrawingKit",
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
    verdicts = kit.gate.examine(
        [picture for picture, _ in finished], [prompt.labels for prompt in prompts]
    )
    common = {"model_hash": job.identity["model_hash"], "signer": kit.signer}
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


def open_set(args: argparse.Namespace, job: "Job", state: "PartialState") -> None:
    """Make the folder ready, new or to be continued; every process must see the same one.

    Raises:
        UserError: If it holds another run, or this machine sees another folder.
    """
    from utils.process_group import from_main
    from utils.resumable_run import open_run
    from utils.run_folder import sha256_file

    options = args.output_dir / "options.json"
    if state.is_main_process:
        # A run that ended before its first attempt stands in nobody's way.
        is_new = options.exists() and not has_attempts(args.output_dir)
        open_run(
            args.output_dir,
            args,
            identity=job.identity,
            free_flags=FREE_FLAGS,
            outputs=OUTPUTS,
            anew=args.overwrite or is_new,
        )
    wanted = from_main(sha256_file(options) if state.is_main_process else None)
    if not options.is_file() or sha256_file(options) != wanted:
        raise UserError(
            f"--output_dir {args.output_dir}: process {state.process_index} does not find there "
            "what process 0 wrote; all machines need the same folder, on a disk that they share"
        )


def has_attempts(folder: Path) -> bool:
    """Whether an earlier run recorded anything there."""
    from utils.manifest import Manifest

    pictures = (path for pattern in PICTURES for path in folder.glob(pattern))
    return any(pictures) or len(Manifest(folder).rows) > 0


def draw_set(
    args: argparse.Namespace, job: "Job", tools: "Tools", state: "PartialState"
) -> dict[str, object]:
    """Draw one set, round by round, and write its tables; its summary on the main process."""
    from utils.generation_progress import Progress
    from utils.process_group import wait_for_all
    from utils.resumable_run import only_writer

    is_main = state.is_main_process
    if is_main:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    with (
        only_writer(args.output_dir) if is_main else nullcontext(),
        Progress(args.output_dir, job.prompts, shown=is_main) as progress,
    ):
        open_set(args, job, state)
        plan = next_round(args, job, state, check=True)
        if len(plan.todo):
            kit = tools.kit_for(args)
        while len(plan.todo):
            progress.begin_round(plan)
            draw_round(args, job, kit, plan=plan, state=state, progress=progress)
            progress.watch_others(len(plan.todo))
            wait_for_all(state)
            plan = next_round(args, job, state, check=False)
            if is_main:
                tell_acceptance(args.output_dir)
        rates = progress.rates
        return {**finish_set(args, job), **rates} if is_main else {}


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
    """Write what makes the folder a data set, if any image was accepted; returns its numbers."""
    from utils import generated_set, set_summary
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
    if summary["num_images"]:
        model_card = job.model_dir / "model_card.md"
        if model_card.is_file():
            write_bytes(folder / model_card.name, model_card.read_bytes())
        generated_set.publish(folder, manifest, kind=args.format, num_images=summary["num_images"])
    return {"output_dir": folder, **summary}


def one_per_guidance(args: argparse.Namespace, state: "PartialState") -> list[argparse.Namespace]:
    """The flags of each set: one guidance scale, and a folder of its own if there are several.

    Raises:
        UserError: If --output_dir holds something else than sets of several scales.
    """
    scales, folder = args.guidance_scale, args.output_dir
    names = [f"guidance_{scale:g}" for scale in scales]
    if len(scales) == 1:
        return [argparse.Namespace(**vars(args) | {"guidance_scale": scales[0]})]
    if state.is_main_process:
        options = folder / "options.json"
        holds_sets = options.is_file() and '"sets"' in options.read_text(encoding="utf-8")
        if folder.is_dir() and any(folder.iterdir()) and not holds_sets:
            raise UserError(
                f"--output_dir {folder} holds something else than sets of several guidance "
                "scales; name another folder"
            )
        write_options(folder, args, sets=names)
    return [
        argparse.Namespace(**vars(args) | {"guidance_scale": scale, "output_dir": folder / name})
        for scale, name in zip(scales, names)
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


def refuse_empty(results: Sequence[Mapping]) -> None:
    """End with an error where nothing came of a set.

    Raises:
        UserError: With the reasons.
    """
    from utils.acceptance import describe_reasons

    for result in results:
        if not result["num_images"]:
            reasons = describe_reasons(result["acceptance"]["overall"]["reasons"])
            raise UserError(
                f"no image was accepted in {result['num_attempts']} attempts ({reasons}): see "
                f"{result['output_dir'] / 'report.html'}"
            )


def run(args: argparse.Namespace, state: "PartialState") -> dict[str, object]:
    """Prepare, and draw each set; the result on the main process."""
    from utils.generation_job import prepare
    from utils.generation_tools import Tools
    from utils.process_group import leave

    job = prepare(args, state, free_flags=FREE_FLAGS)
    tools = Tools(args, job, state)
    sets = one_per_guidance(args, state)
    results = []
    for one in sets:
        if len(sets) > 1:
            logger.info("guidance scale %g, in %s", one.guidance_scale, one.output_dir)
        results.append(draw_set(one, job, tools, state))
    if state.is_main_process:
        if len(sets) > 1:
            write_comparison(args.output_dir, sets)
        refuse_empty(results)
    leave(state)
    if len(sets) == 1:
        return results[0]
    return {"sets": {one.output_dir.name: result for one, result in zip(sets, results)}}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, prepare, draw, write."""
    args = parse_args(argv)
    state = start(args)
    try:
        result = run(args, state)
    except OSError as error:
        path = Path(error.filename or args.output_dir)
        concerns_output = path.is_relative_to(args.output_dir) or path in args.output_dir.parents
        if error.errno not in CANNOT_WRITE or not concerns_output:
            raise
        raise UserError(
            f"--output_dir {args.output_dir} cannot be written: {error}. What is there is whole: "
            "put it right and start the same command again"
        ) from error
    if state.is_main_process:
        print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)

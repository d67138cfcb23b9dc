"""Put a rating server under load: raters at work, and clients that mean no good.

    python -m benchmarks.rating_load --seconds 60 --clients 200 --output_dir runs/rating_load

Makes a study of simulated scans, serves it by rate_images.py on 127.0.0.1 and drives it from other
processes, phase by phase: raters who look at each image for a few seconds; raters at full speed;
both again while hostile clients send forged tokens, traversals, floods and broken requests as fast
as they get replies. The hostile phase of working raters lasts --seconds, the others a quarter of
it. In the end every answer that was acknowledged is looked up in the database. Prints JSON; exit
status 1 if an answer was lost or the server ended.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from benchmarks.rating_clients import NOT_AWAITED, run_hostile, run_raters
from utils import cli
from utils.rating_links import read_tokens
from utils.rating_store import Store
from utils.run_folder import get_logger, print_result, write_json, write_options

ROOT = Path(__file__).parents[1]
START_LIMIT_S = 30
STOP_LIMIT_S = 30
ROGUE = "rogue"  # a rater whose token the hostile clients use

logger = get_logger("rating_load")


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--seconds",
        type=cli.positive_float,
        default=60.0,
        help="length of the long phase; the other three take a quarter (default: %(default)s)",
    )
    parser.add_argument(
        "--raters", type=cli.positive_int, default=20, help="at once (default: %(default)s)"
    )
    parser.add_argument(
        "--clients", type=cli.positive_int, default=200, help="hostile (default: %(default)s)"
    )
    parser.add_argument(
        "--think_s",
        type=cli.positive_float,
        default=3.0,
        help="mean seconds a rater at work looks at an item (default: %(default)s)",
    )
    parser.add_argument(
        "--num_images", type=cli.positive_int, default=60, help="of each arm (default: %(default)s)"
    )
    parser.add_argument(
        "--resolution", type=cli.resolution, default=512, help="in pixels (default: %(default)s)"
    )
    cli.add_runtime_flags(parser, "output_dir")
    return parser


def make_study(args: argparse.Namespace) -> Path:
    """Simulate two sets of scans, and make a study of them by the scripts."""
    for arm, seed in (("real", 1), ("synthetic", 2)):
        _run(
            "prepare_dataset.py", "simulate", "--output_dir", args.output_dir / arm,
            "--num_images", 2 * args.num_images, "--resolution", args.resolution, "--seed", seed,
        )  # fmt: skip
    names = [f"rater {number}" for number in range(args.raters)]
    _run(
        "rate_images.py", "create", "--real_dir", args.output_dir / "real",
        "--synthetic_dir", args.output_dir / "synthetic", "--num_images", args.num_images,
        "--questions", "turing", "quality", "agreement", "errors", "preference",
        "--raters", *names, ROGUE, "--output_dir", args.output_dir / "study",
    )  # fmt: skip
    return args.output_dir / "study"


def _run(script: str, *flags: object) -> None:
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def served(study_dir: Path, log_path: Path):
    """The server in a process of its own; yields it and its port."""
    flags = ["serve", "--study_dir", str(study_dir), "--port", "0"]
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "rate_images.py"), *flags],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        for _ in range(START_LIMIT_S * 20):
            if found := re.search(r"listening on \S+:(\d+);", log_path.read_text()):
                break
            time.sleep(0.05)
        yield server, int(found[1])
    finally:
        server.terminate()
        server.wait(STOP_LIMIT_S)


def run_phase(
    port: int, tokens: dict[str, str], *, think_s: float, seconds: float, clients: int
) -> tuple[dict, dict]:
    """Drive the server from one process of raters and, if asked for, one of hostile clients.

    Returns:
        Figures, and the comment acknowledged last by token and position.
    """
    context = multiprocessing.get_context("spawn")
    honest = [token for name, token in tokens.items() if name != ROGUE]
    jobs = [(run_raters, (port, honest, think_s, seconds))]
    if clients:
        jobs.append((run_hostile, (port, clients, tokens[ROGUE], seconds)))
    running = []
    for function, arguments in jobs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=function, args=(*arguments, sender))
        process.start()
        running.append((process, receiver))
    (next_ms, put_ms, errors, sent), *attacks = [receiver.recv() for _, receiver in running]
    for process, _ in running:
        process.join()
    figures = {
        "seconds": seconds,
        "items_per_second": len(put_ms) / seconds,
        "next_image_ms": _percentiles(next_ms),
        "put_ms": _percentiles(put_ms),
        "raters_not_ok": _by_status(errors),
    }
    if attacks:
        figures["hostile_per_second"] = sum(attacks[0].values()) / seconds
        figures["hostile_replies"] = _by_status(attacks[0])
    return figures, sent


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {"n": 0}
    marks = {f"p{mark}": round(float(np.percentile(values, mark)), 2) for mark in (50, 95, 99)}
    return {"n": len(values), **marks, "max": round(max(values), 2)}


def _by_status(counts: Counter[int]) -> dict[str, int]:
    words = {0: "none", NOT_AWAITED: "not awaited"}
    return {words.get(status, str(status)): counts[status] for status in sorted(counts)}


def lost_answers(study_dir: Path, tokens: dict[str, str], sent: dict) -> int:
    """How many comments that were acknowledged last are not what the database holds."""
    with Store.open(study_dir) as store:
        rows = store.answers()
    held = {(row.rater, row.position): row.value for row in rows if row.question == "comment"}
    names = {token: name for name, token in tokens.items()}
    return sum(held.get((names[token], place)) != text for (token, place), text in sent.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the phases; returns the exit status."""
    args = build_parser().parse_args(argv)
    write_options(args.output_dir, args)
    study_dir = make_study(args)
    tokens, sent, phases = read_tokens(study_dir), {}, {}
    short = args.seconds / 4
    plan = {
        "raters_at_work": (args.think_s, short, 0),
        "raters_at_full_speed": (0.0, short, 0),
        "raters_at_work_and_hostile": (args.think_s, args.seconds, args.clients),
        "raters_at_full_speed_and_hostile": (0.0, short, args.clients),
    }
    with served(study_dir, args.output_dir / "server.log") as (server, port):
        watched = psutil.Process(server.pid)
        for name, (think_s, seconds, clients) in plan.items():
            before, worked = watched.memory_info().rss, sum(watched.cpu_times()[:2])
            figures, acknowledged = run_phase(
                port, tokens, think_s=think_s, seconds=seconds, clients=clients
            )
            sent |= acknowledged
            figures["memory_mib"] = [rss / 2**20 for rss in (before, watched.memory_info().rss)]
            worked = sum(watched.cpu_times()[:2]) - worked
            figures["server_cpu_share"] = round(worked / seconds, 3)  # of one core
            figures["load_average"] = round(os.getloadavg()[0], 1)  # of the machine, 1 minute
            phases[name] = figures
            logger.info("%s: %s", name, json.dumps(figures))
        survived = server.poll() is None
    lost = lost_answers(study_dir, tokens, sent)
    result = {"phases": phases, "acknowledged": len(sent), "lost": lost, "survived": survived}
    write_json(args.output_dir / "rating_load.json", result)
    print_result(result)
    return 0 if survived and not lost else 1


if __name__ == "__main__":
    cli.main_guard(main)

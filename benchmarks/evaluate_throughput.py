r"""Time evaluate.py against torch-fidelity and pytorch-fid: the same files, the same weights.

    # 1,000 squares cut from simulated scans, on a CPU, in some minutes
    python benchmarks/evaluate_throughput.py

    # squares cut from your own scans, and the FID's real weights
    python benchmarks/evaluate_throughput.py --data_dir data/clinic \
        --weights weights-inception-2015-12-05-6726825d.pth

Two sets of PNG files of --side pixels are compared, one after the other in one process: by
evaluate.py (fid, kid, inception_score, and its page), by evaluate.py again on the features it kept,
by torch-fidelity (the same three metrics), by pytorch-fid (only the distance). At 299 px all
three networks see the same pixels, so their values must agree. Printed as JSON: seconds, ratios,
values and peak memory. Ends with status 1 if the distances differ. Without
--weights the network has random weights, which takes the same time. The two packages are in
requirements-dev.txt.
"""

import argparse
import contextlib
import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # when started by its path, Python looks in benchmarks/ only

from utils import cli  # noqa: E402
from utils.run_folder import get_logger, print_result, versions  # noqa: E402

TOLERANCE = 1e-4  # relative, of the distances
# pytorch-fid's root of the covariances' product is inexact where that is singular: N below 2048.
TOLERANCES = {"torch_fidelity": TOLERANCE, "pytorch_fid": 1e-2}
SEED = 0
INCEPTION_PX = 299  # at which the three resize alike: not at all
SIMULATED_PX = 512
NUM_CALIBRATING = 16  # images that random weights are fitted to

logger = get_logger("throughput")


# Parse


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--data_dir", type=cli.data_source, help="real scans (default: simulated now, 512 px wide)")
    add("--weights", type=cli.existing_file, help="the FID Inception's file (default: random)")
    add(
        "--num_images",
        type=cli.positive_int,
        default=1000,
        help="of both sets together (default: %(default)s)",
    )
    add(
        "--side",
        type=cli.positive_int,
        default=INCEPTION_PX,
        help="of the files (default: %(default)s)",
    )
    add("--batch_size", type=cli.positive_int, default=32, help="default: %(default)s")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse; anything wrong ends here, with exit status 2."""
    return build_parser().parse_args(argv)


# Prepare


def cut_squares(source: str | None, folder: Path, *, count: int, side: int) -> tuple[Path, Path]:
    """Write ``count`` squares, cut from scans side by side, into two folders by turns."""
    from utils.images import save_png

    folders = (folder / "first", folder / "second")
    for each in folders:
        each.mkdir()
    written = 0
    for image in _scans(source, count):
        scale = side / min(image.size)
        fitted = image.resize([max(side, round(length * scale)) for length in image.size])
        for left in range(0, fitted.width - side + 1, side):
            if written < count:
                square = fitted.crop((left, 0, left + side, side)).convert("RGB")
                save_png(square, folders[written % 2] / f"{written:05d}.png")
                written += 1
    if written < count:
        raise cli.UserError(f"--data_dir gives {written} squares; --num_images {count} are asked")
    return folders


def _scans(source: str | None, count: int) -> Iterator:
    if source is not None:
        from utils.dataset import load_dataset

        yield from (record.image() for record in load_dataset(source, check_pixels=False))
        return
    from demo.simulate import simulate

    for index in range(count):
        yield simulate(index, seed=SEED, resolution=SIMULATED_PX).image


def random_weights(path: Path, images: Sequence[Path]) -> Path:
    """Write a weight file of the FID Inception with random weights.

    The statistics of its batch normalisation are those of some images: with others the features
    of all images are nearly the same, and a distance is little more than rounding.
    """
    import numpy as np
    import torch

    from utils.images import read_image
    from utils.inception import FidInception

    torch.manual_seed(SEED)
    network = FidInception().train()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all that it sees
    pixels = np.stack([np.asarray(read_image(path).convert("RGB")) for path in images])
    with torch.no_grad():
        network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    torch.save(network.state_dict(), path)
    return path


# Measure


def run_ours(args: argparse.Namespace, folders: tuple[Path, Path], weights: Path, output: Path):
    """fid, kid and inception score by this project's script."""
    import evaluate

    argv = [f"--real_dir={folders[0]}", f"--synthetic_dir={folders[1]}", "--bootstrap=0"]
    argv += ["--feature_extractor=inception", f"--feature_weights={weights}"]
    argv += [f"--output_dir={output}", f"--device={args.device}", f"--batch_size={args.batch_size}"]
    argv += ["--metrics", "fid", "kid", "inception_score"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate.main(argv)
    overall = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["overall"]
    return {name: entry["value"] for name, entry in overall.items()}


def run_torch_fidelity(args: argparse.Namespace, folders: tuple[Path, Path], weights: Path):
    """The same three by torch-fidelity, with its defaults."""
    from torch_fidelity import calculate_metrics

    count = args.num_images // 2
    found = calculate_metrics(
        input1=str(folders[1]),
        input2=str(folders[0]),
        isc=True,
        fid=True,
        kid=True,
        kid_subset_size=min(1000, count // 2),
        batch_size=args.batch_size,
        cuda=cli.resolve_device(args.device) != "cpu",
        feature_extractor_weights_path=str(weights),
        cache=False,
        verbose=False,
    )
    return {
        "fid": found["frechet_inception_distance"],
        "kid": found["kernel_inception_distance_mean"],
        "inception_score": found["inception_score_mean"],
    }


def run_pytorch_fid(args: argparse.Namespace, folders: tuple[Path, Path], weights: Path):
    """The distance by pytorch-fid, with its defaults."""
    import torch
    from pytorch_fid import fid_score, inception

    def local(*_: object, **__: object) -> dict:
        return torch.load(weights, map_location="cpu", weights_only=True)

    inception.load_state_dict_from_url = local  # it knows no other way to a local file
    value = fid_score.calculate_fid_given_paths(
        list(map(str, folders)),
        batch_size=args.batch_size,
        device=torch.device(cli.resolve_device(args.device)),
        dims=2048,
    )
    return {"fid": float(value)}


def timed(name: str, function: Callable[[], dict]) -> dict:
    """Seconds, values and how far the process's peak memory rose."""
    before = _peak_mib()
    began = time.perf_counter()
    values = function()
    seconds = time.perf_counter() - began
    logger.info("%s: %.1f s, %s", name, seconds, values)
    return {"seconds": seconds, "values": values, "peak_rise_mib": _peak_mib() - before}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, prepare, measure, print."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = cut_squares(args.data_dir, folder, count=args.num_images, side=args.side)
        some = sorted(folders[0].iterdir())[:NUM_CALIBRATING]
        weights = args.weights or random_weights(folder / "weights.pth", some)
        ours = (args, folders, weights, folder / "runs" / "evaluation")
        runs = {
            "ours": timed("evaluate.py", lambda: run_ours(*ours)),
            "ours_cached": timed("evaluate.py, features kept", lambda: run_ours(*ours)),
            "torch_fidelity": timed("torch-fidelity", lambda: run_torch_fidelity(*ours[:3])),
            "pytorch_fid": timed("pytorch-fid", lambda: run_pytorch_fid(*ours[:3])),
        }
    first = runs["ours"]["seconds"]
    ratios = {name: runs[name]["seconds"] / first for name in TOLERANCES}
    ratios["cached"] = first / runs["ours_cached"]["seconds"]
    settings = {"num_images": args.num_images, "side": args.side, "device": args.device}
    print_result({**settings, "runs": runs, "ratios": ratios, "versions": versions()})
    check(runs, side=args.side)


def check(runs: dict[str, dict], *, side: int) -> None:
    """Refuse figures of runs that did not compute the same.

    Raises:
        UserError: If a distance is another one.
    """
    own = runs["ours"]["values"]["fid"]
    if own != runs["ours_cached"]["values"]["fid"]:
        raise cli.UserError("the distance on kept features is another one")
    for name, tolerance in TOLERANCES.items():
        value = runs[name]["values"]["fid"]
        if side == INCEPTION_PX and not abs(own - value) <= tolerance * value:
            raise cli.UserError(f"the distance is {own}, that of {name} {value}")


if __name__ == "__main__":
    cli.main_guard(main)

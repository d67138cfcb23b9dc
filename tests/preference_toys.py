"""Toy pairs and a short training on them, for the tests of learning from preferences."""

import csv
import json
import os
from pathlib import Path

from safetensors.torch import load_file

import train_text_to_image


def write_pairs(path: Path, toy_dataset: Path, *, num_pairs=4, **columns) -> Path:
    """Pairs of the toy data: image 2 k is preferred to 2 k + 1; further columns by name."""
    folder = Path(os.path.relpath(toy_dataset, path.parent))
    rows = [
        {
            "text": f"finding {number}",
            "preferred": folder / "images" / f"{2 * number:03d}.png",
            "rejected": folder / "images" / f"{2 * number + 1:03d}.png",
            **{name: cells[number] for name, cells in columns.items()},
        }
        for number in range(num_pairs)
    ]
    write_rows(path, rows)
    return path


def write_rows(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def train(pipeline: Path, output_dir: Path, *flags, capsys, status: int = 0) -> dict | None:
    """Run the script in this process; later flags win. Its result."""
    argv = [
        f"--pretrained_model_name_or_path={pipeline}",
        f"--output_dir={output_dir}",
        *("--resolution=64", "--center_crop", "--train_batch_size=2", "--max_train_steps=2"),
        *("--lr_warmup_steps=0", "--report_to=none", "--offline", "--mixed_precision=no"),
        "--seed=0",
        *map(str, flags),
    ]
    assert train_text_to_image.main(argv) == status
    return json.loads(capsys.readouterr().out)


def log_of(output_dir: Path) -> list[dict]:
    with (output_dir / "train_log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(output_dir: Path, name: str) -> list[float]:
    return [float(row[name]) for row in log_of(output_dir)]


def weights_of(output_dir: Path, part: str = "unet") -> dict:
    return load_file(output_dir / part / "diffusion_pytorch_model.safetensors")


def same_weights(one: Path, other: Path, part: str = "unet") -> bool:
    one, other = weights_of(one, part), weights_of(other, part)
    assert one.keys() == other.keys()
    return all(bool((one[name] == other[name]).all()) for name in one)

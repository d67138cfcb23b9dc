"""Data sets whose files differ blatantly, studies of them, and a server in a process of its own."""

import csv
import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, PngImagePlugin

import rate_images

ROOT = Path(__file__).parents[1]
LABELS = ("normal", "drusen")
START_SECONDS = 30
ALL_QUESTIONS = ("turing", "quality", "agreement", "diagnosis", "errors", "preference")


def write_real_set(folder: Path, count: int) -> Path:
    """Smooth 80 x 80 scans as JPEG in colour with a comment."""
    rng = np.random.default_rng(1)
    ramp = np.linspace(0, 160, 80)

    def save(path: Path) -> None:
        gray = (ramp[:, None] * rng.uniform(0.5, 1) + ramp[None] * rng.uniform(0, 0.5)).clip(0, 255)
        image = Image.fromarray(gray.astype(np.uint8)).convert("RGB")
        image.save(path, quality=70, comment=b"device 7")

    return _write_set(folder, count, ".jpg", save)


def write_synthetic_set(folder: Path, count: int, *, seed: int = 2) -> Path:
    """Noise of 64 x 64 as gray PNG with a mark of its maker."""
    rng = np.random.default_rng(seed)
    mark = PngImagePlugin.PngInfo()
    mark.add_text("synthetic", "true")

    def save(path: Path) -> None:
        pixels = rng.integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(path, pnginfo=mark)

    return _write_set(folder, count, ".png", save)


def _write_set(folder: Path, count: int, suffix: str, save) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        name = f"images/{number:04d}{suffix}"
        save(folder / name)
        label = LABELS[number % len(LABELS)]
        rows.append({"file_name": name, "text": f"{label}, kind {number // 4}", "label": label})
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def create_study(folder: Path, real: Path, synthetic: Path, *flags: str) -> Path:
    """Run ``create``; later flags win."""
    usual = ["--num_images", "4", "--resolution", "64", "--num_workers", "0"]
    usual += ["--raters", "Dr A", "Dr B", "--questions", *ALL_QUESTIONS]
    argv = ["create", "--real_dir", str(real), "--synthetic_dir", str(synthetic)]
    assert rate_images.main([*argv, *usual, *flags, "--output_dir", str(folder)]) == 0
    return folder


def tokens(study_dir: Path) -> dict[str, str]:
    """Token of each rater."""
    return json.loads((study_dir / "tokens.json").read_text(encoding="utf-8"))


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def answers_to(item: dict) -> dict:
    """Some answer to each of an item's questions, as the page sends them."""
    usual = {
        "turing": "real",
        "quality": 4,
        "agreement": 2,
        "diagnosis": "normal",
        "errors": ["omission"],
        "preference": "left",
    }
    return {question: usual[question] for question in item["questions"]}


@contextmanager
def running_server(study_dir: Path, log_path: Path, *flags: str, setting: str = ""):
    """Start ``serve`` on a free port; yields the process and its address.

    ``setting`` is a statement that the process begins with.
    """
    argv = ["serve", "--study_dir", str(study_dir), "--port", "0", *flags]
    code = f"import sys, rate_images\n{setting}\nsys.exit(rate_images.main({argv!r}))"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=log
        )
    try:
        yield process, _address(process, log_path)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _address(process: subprocess.Popen, log_path: Path) -> str:
    for _ in range(START_SECONDS * 50):
        if found := re.search(r"listening on http://[\d.]+:(\d+);", log_path.read_text()):
            break
        assert process.poll() is None, log_path.read_text()
        time.sleep(0.02)
    url = f"http://127.0.0.1:{found[1]}"
    while True:  # the socket listens before the application does
        try:
            httpx.get(url)
            return url
        except httpx.TransportError:
            time.sleep(0.02)

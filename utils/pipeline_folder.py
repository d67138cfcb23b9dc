"""A Stable Diffusion pipeline's folder before anything of it is loaded: where, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

from utils.cli import UserError
from utils.sampling import vae_factor


def find_pipeline(model: str, *, offline: bool) -> Path:
    """Folder of the pipeline that ``--model`` names; one from the hub is downloaded first.

    Raises:
        UserError: If there is no such folder, and no such model on the hub or in its cache.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from diffusers import DiffusionPipeline

        from utils.diffusion import silence_libraries

        silence_libraries()
        try:
            without = {"safety_checker": None, "feature_extractor": None}
            path = DiffusionPipeline.download(model, local_files_only=offline, **without)
            folder = Path(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--model {model}: no folder of this name, and not to be had from the hub"
                f"{' cache (--offline)' if offline else ''}: {error}"
            ) from error
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"--model {model}: no pipeline folder, it has no model_index.json "
            "(a checkpoint of a training run is none; take the run's folder)"
        )
    return folder


def read_config(folder: Path, part: str, name: str = "config.json") -> dict:
    """Configuration of a pipeline's part, such as ``unet``.

    Raises:
        UserError: If it is missing or not JSON.
    """
    path = folder / part / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{path}: missing or damaged ({error}): not a whole pipeline") from error


def settle_resolution(folder: Path, wanted: int | None) -> int:
    """Side in pixels of the images to draw.

    Args:
        folder: Of the pipeline.
        wanted: ``--resolution``; None for what the model was made for.

    Raises:
        UserError: If the pipeline cannot draw it, or does not tell its own.
    """
    factor = vae_factor(read_config(folder, "vae"))
    own = read_config(folder, "unet").get("sample_size")
    if wanted is None and not isinstance(own, int):
        raise UserError(f"{folder / 'unet'}: does not tell its sample_size; give --resolution")
    if wanted is not None and wanted % factor:
        raise UserError(f"--resolution {wanted}: must be a multiple of {factor}")
    return wanted or own * factor

"""A reward: what an average doctor would say of an image beside its text, on the scale of 1 to 5.

A folder with ``config.json`` and ``model.safetensors``, learnt from an export of rate_images.py
(`utils.reward_training`). It is a linear model over features (`utils.reward_design`) with ordinal
answers (`utils.ordinal_model`). Shapes: N images, Q questions.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.special import expit

from utils.cli import UserError
from utils.dataset import Dataset
from utils.json_file import read_json
from utils.network_folder import CONFIG_NAME, WEIGHTS_NAME, check_files
from utils.ordinal_model import Latent
from utils.rating_table import SCALE
from utils.reward_design import Design
from utils.reward_features import Inputs, RewardNetworks, load_networks, reward_inputs
from utils.reward_fit import Fit
from utils.run_folder import write_bytes, write_json

FORMAT = 1
LEVELS = np.array(SCALE, np.float64)


@dataclass(frozen=True)
class RewardConfig:
    """What the weights need to be understood.

    Attributes:
        questions: Of the scale, those that were learnt; none if comparisons alone were.
        raters: By whom; leniency is in their order.
        networks: See ``RewardNetworks.facts``.
        l2: Strength of the penalty.
        num_images: Judged ones.
        num_ratings: Learnt from, repeats left out.
        num_comparisons: Learnt from.
        seed: Of the folds.
        format: Version of this folder's layout.
    """

    questions: tuple[str, ...]
    raters: tuple[str, ...]
    networks: dict[str, object]
    l2: float
    num_images: int
    num_ratings: int
    num_comparisons: int
    seed: int
    format: int = FORMAT


class RewardModel:
    """A fitted reward with the networks that it looks with."""

    def __init__(self, config: RewardConfig, fit: Fit, networks: RewardNetworks):
        """Take over a fit."""
        self.config, self.fit, self.networks = config, fit, networks

    def score(
        self, dataset: Dataset, *, cache_dir: Path, state, batch_size: int = 64
    ) -> np.ndarray:
        """Expected rating of images with their texts by an average rater.

        Args:
            dataset: N images; their texts count, and their labels where a text names nothing.
            cache_dir: Where image features are kept, see `utils.feature_cache`.
            state: ``PartialState``; all processes call this and share the work.
            batch_size: Images at once on a GPU.

        Returns:
            (N,) float64 in [1, 5]: the mean over the questions.
        """
        options = {"cache_dir": cache_dir, "state": state, "batch_size": batch_size}
        return self.rate(reward_inputs(dataset, self.networks, **options))

    def rate(self, inputs: Inputs) -> np.ndarray:
        """The same of inputs of N images, (N,)."""
        return expected_ratings(self.fit, inputs)

    def save(self, folder: Path | str) -> None:
        """Write the folder, the configuration last."""
        folder = Path(folder)
        (folder / CONFIG_NAME).unlink(missing_ok=True)
        write_bytes(folder / WEIGHTS_NAME, self._bytes())
        write_json(folder / CONFIG_NAME, asdict(self.config))

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: str = "cpu",
        offline: bool = True,
        networks: RewardNetworks | None = None,
    ) -> RewardModel:
        """Read a reward's folder and the networks that it names.

        Args:
            folder: Where `save` wrote.
            device: Where the networks run.
            offline: Whether downloads are forbidden.
            networks: In place of those at the recorded places; must be the same ones.

        Raises:
            FileNotFoundError: If a file is missing.
            UserError: If the files are broken, or a network is not the one it was learnt with.
        """
        folder = Path(folder)
        check_files(folder, what="reward model")
        config = _read_config(folder / CONFIG_NAME)
        facts = config.networks
        if networks is None:
            names = [each["name"] for each in facts["extractors"]]
            weights = {each["name"]: each["weights"] for each in facts["extractors"]}
            networks = load_networks(
                names,
                weights=weights,
                rules=facts["rules"],
                resize_mode=facts["resize_mode"],
                device=device,
                offline=offline,
            )
        _check_same(folder, facts, networks.facts)
        return cls(config, _read_fit(folder / WEIGHTS_NAME, config), networks)

    @property
    def sha256(self) -> str:
        """SHA-256 of the weight file, the same before and after saving."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def _bytes(self) -> bytes:
        arrays = asdict(self.fit.design) | asdict(self.fit.latent)
        tensors = {name: np.ascontiguousarray(value) for name, value in sorted(arrays.items())}
        return save(tensors)


def expected_ratings(fit: Fit, inputs: Inputs) -> np.ndarray:
    """Expected rating, the mean over the questions, (N,) in [1, 5].

    Of comparisons alone, which have no scale: ``1 + 4 sigma(r)``, by the chance to beat the average
    of the judged images.
    """
    columns = fit.design(inputs)
    if not len(fit.latent.thresholds):
        return LEVELS[0] + (LEVELS[-1] - LEVELS[0]) * expit(fit.latent.common(columns))
    return (fit.latent.level_probs(columns) @ LEVELS).mean(axis=1)


def _read_config(path: Path) -> RewardConfig:
    found = read_json(path)
    names = [field.name for field in fields(RewardConfig)]
    if not isinstance(found, dict) or found.get("format") != FORMAT or set(found) != set(names):
        raise UserError(f"{path}: not the configuration of a reward model of format {FORMAT}")
    lists = {name: tuple(found[name]) for name in ("questions", "raters")}
    return RewardConfig(**found | lists)


def _check_same(folder: Path, wanted: dict, found: dict) -> None:
    """Refuse networks or rules other than those that the reward was learnt with."""
    for name in ("findings", "resize_mode"):
        if wanted[name] != found[name]:
            raise UserError(f"{folder}: learnt with other {name}: {wanted[name]}")
    hashes = [[each["sha256"] for each in facts["extractors"]] for facts in (wanted, found)]
    if hashes[0] != hashes[1]:
        names = ", ".join(each["name"] for each in found["extractors"])
        raise UserError(
            f"{folder}: learnt with other weights of the feature networks than {names}; "
            "put the old ones back or learn it anew"
        )


def _read_fit(path: Path, config: RewardConfig) -> Fit:
    try:
        arrays = load(path.read_bytes())
        design = Design(**{field.name: arrays[field.name] for field in fields(Design)})
        latent = Latent(**{field.name: arrays[field.name] for field in fields(Latent)})
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path}: not the weights of a reward model: {error}") from error
    return Fit(design, latent, config.l2)

"""What trains the runs of a sweep, as the sweep sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from utils.gray_images import GrayImages
from utils.sweep_plan import RunKey

Progress = Callable[[dict[str, float]], object]


class Saved(Protocol):
    """A trained model, such as a classifier."""

    def save(self, folder: Path) -> None:
        """Write it to a folder, ``config.json`` last."""
        ...


@dataclass(frozen=True)
class Trained:
    """A model, what it was trained on and how, and one row of history an epoch."""

    model: Saved
    facts: dict[str, object]
    history: list[dict[str, float]]


class Trainer(Protocol):
    """Trains the runs of a sweep."""

    def prepare(self, key: RunKey, test: GrayImages) -> None:
        """Do what all runs need once; all processes call it together, before the first run.

        Args:
            key: Any run.
            test: The images that every run predicts.
        """
        ...

    def __call__(
        self, key: RunKey, *, pretrained: Path | None, progress: Progress | None = None
    ) -> Trained:
        """The model of a run; ``pretrained`` is the folder of the one it starts from."""
        ...

    def predict(self, key: RunKey, model: Any, test: GrayImages) -> Any:
        """What a run's model says of the N images to test on, in their order."""
        ...

    def num_steps(self, key: RunKey) -> int:
        """Steps of a run, at most."""
        ...

    def cost(self, key: RunKey) -> float:
        """Images that pass through the network forwards and backwards, at most."""
        ...

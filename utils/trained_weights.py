"""What is trained and its average, however accelerate has wrapped it or split it over processes.

A checkpoint holds what is trained (``unet``, ``text_encoder`` or ``lora``) and its average
(``unet_ema``, ...) in diffusers' format, so that each loads in a plain pipeline; accelerate adds
optimizer, schedule and random states, and of a split model its parts.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.training_utils import EMAModel

from utils.cli import UserError
from utils.run_folder import write_json
from utils.sharded_weights import blank_copy, split_average, whole_model
from utils.trained_model import TrainedModel, load_weights, save_weights, trained_parameters

EMA_SUFFIX = "_ema"


def prepare(accelerator, model: TrainedModel, ema: EMAModel | None, optimizer, schedule):
    """Let accelerate wrap or split everything, and save and load it in diffusers' format.

    Args:
        accelerator: Tells how the processes work together.
        model: What is trained.
        ema: Its average, or None.
        optimizer: Of what is trained.
        schedule: Of the learning rate.

    Returns:
        Model, optimizer and schedule as accelerate prepared them, and the `Weights`.
    """
    if accelerator.is_fsdp2:
        weights = SplitWeights(accelerator, ema, blank_copy(model))
    else:
        weights = Weights(accelerator, ema)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    weights.attach(model)

    def save(models: list, accelerates_own: list, folder: str) -> None:
        accelerates_own.clear()  # or accelerate would write the model a second time
        weights.save(Path(folder))

    def load(models: list, folder: str) -> None:
        models.clear()  # what is left, accelerate would load itself
        weights.load(Path(folder))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    return model, optimizer, schedule, weights


class Weights:
    """Where every process holds all of it: one process, DDP, ZeRO up to stage 2.

    Call its methods on every process.
    """

    def __init__(self, accelerator, ema: EMAModel | None) -> None:
        """Take note of the average, if there is one."""
        self._accelerator = accelerator
        self._ema = ema
        self._model = None

    def attach(self, model) -> None:
        """Take note of the model as accelerate prepared it."""
        self._model = model

    @contextmanager
    def averaged(self) -> Iterator[TrainedModel]:
        """Give the model with its averaged weights, if it has any, and give it its own back."""
        model = self._accelerator.unwrap_model(self._model)
        with averaged_weights(self._ema, model):
            yield model

    def finished(self) -> TrainedModel | None:
        """The model with its averaged weights, if it has any, for good; on the main process."""
        model = self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)
        if self._ema is not None:
            self._ema.copy_to(trained_parameters(model))
        return model

    def save(self, folder: Path) -> None:
        """Write what is trained and its average."""
        if not self._accelerator.is_main_process:
            return
        model = self._accelerator.unwrap_model(self._model)
        save_weights(model, folder)
        if self._ema is not None:
            with averaged_weights(self._ema, model):
                _save_average(self._ema, model, folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            UserError: If it is not there, or is of another kind of training.
        """
        model = self._accelerator.unwrap_model(self._model)
        if self._ema is not None:
            device = self._ema.shadow_params[0].device
            _load_average(self._ema, model, folder)
            self._ema.to(device)
        load_weights(model, folder)


class SplitWeights(Weights):
    """Where each process holds a part (FSDP2). accelerate writes and reads the parts itself."""

    def __init__(self, accelerator, ema: EMAModel | None, blank: TrainedModel) -> None:
        """Take note of the average and of the `blank_copy` of the model."""
        super().__init__(accelerator, ema)
        self._blank = blank

    def attach(self, model) -> None:
        """Take note of the prepared model and split the average as it is."""
        super().attach(model)
        if self._ema is not None:
            split_average(self._ema, model, self._ema.shadow_params)

    @contextmanager
    def averaged(self) -> Iterator[TrainedModel]:
        """Give a plain copy with the averaged weights, or its own if there are none."""
        # Each process draws and measures its own share, so each needs a model of its own.
        device = self._accelerator.device
        yield whole_model(self._model, self._blank, self._ema, device=device)

    def finished(self) -> TrainedModel | None:
        """A plain copy as `averaged` gives it, on the main process and its CPU; else None."""
        return self._on_main(self._ema)

    def save(self, folder: Path) -> None:
        """Write what is trained and its average, whole."""
        model = self._on_main()
        if model is not None:
            save_weights(model, folder)
        if self._ema is not None:
            model = self._on_main(self._ema)
            if model is not None:
                _save_average(self._ema, model, folder)

    def load(self, folder: Path) -> None:
        """Read the average that `save` wrote; accelerate has read the weights."""
        if self._ema is not None:
            model = whole_model(self._model, self._blank, device="cpu")
            _load_average(self._ema, model, folder)
            split_average(self._ema, self._model, self._ema.shadow_params)

    def _on_main(self, ema: EMAModel | None = None) -> TrainedModel | None:
        keep = self._accelerator.is_main_process
        return whole_model(self._model, self._blank, ema, device="cpu", keep=keep)


@contextmanager
def averaged_weights(ema: EMAModel | None, model: TrainedModel) -> Iterator[None]:
    """Let a model work with its averaged weights, if it has any, and give it its own back."""
    if ema is None:
        yield
        return
    ema.store(trained_parameters(model))
    ema.copy_to(trained_parameters(model))
    try:
        yield
    finally:
        ema.restore(list(trained_parameters(model)))


def _counters_path(model: TrainedModel, folder: Path) -> Path:
    first, *_ = model.folders()
    return folder / f"{first}{EMA_SUFFIX}" / "config.json"


def _save_average(ema: EMAModel, averaged: TrainedModel, folder: Path) -> None:
    save_weights(averaged, folder, EMA_SUFFIX)
    counters = ema.state_dict()
    del counters["shadow_params"]
    path = _counters_path(averaged, folder)
    # Beside the U-Net's own entries, where EMAModel.from_pretrained looks for them.
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, config | counters)


def _load_average(ema: EMAModel, model: TrainedModel, folder: Path) -> None:
    """Read the average by way of a model, which has its weights afterwards."""
    path = _counters_path(model, folder)
    if not path.is_file():
        raise UserError(
            f"{path.parent} is missing: that run had no --use_ema; leave it out here too"
        )
    counters = json.loads(path.read_text(encoding="utf-8"))
    decay = ema.decay
    load_weights(model, folder, EMA_SUFFIX)
    weights = [parameter.detach() for parameter in trained_parameters(model)]
    ema.load_state_dict(counters | {"shadow_params": weights})
    ema.decay = decay  # the flag of the resumed run counts

import pytest
import torch
from diffusers import StableDiffusionPipeline

from utils.dataset import load_dataset
from utils.denoising_probe import DenoisingProbe


@pytest.fixture(scope="module")
def probe(toy_dataset):
    return DenoisingProbe(load_dataset(toy_dataset).select(range(6)), 64, "center_crop", 3, "cpu")


@pytest.fixture(scope="module")
def denoised(probe, tiny_pipeline):
    return probe.ask(tiny_pipeline, offline=True)


def test_a_model_is_at_no_distance_from_itself(probe, denoised, tiny_pipeline):
    again = probe.ask(tiny_pipeline, offline=True)
    assert torch.equal(again.predictions, denoised.predictions)
    assert denoised.distance(again) == 0


def test_the_distance_is_the_mean_square_of_what_was_changed(
    probe, denoised, tiny_pipeline, tmp_path
):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    with torch.no_grad():
        pipeline.unet.conv_out.bias += 0.25  # every prediction is moved by it
    pipeline.save_pretrained(tmp_path / "moved")
    moved = probe.ask(tmp_path / "moved", offline=True)
    assert moved.distance(denoised) == pytest.approx(0.0625, rel=1e-4)


def test_an_untrained_model_has_the_loss_of_predicting_about_nothing(denoised):
    # The noise has variance 1; every image is asked about at four timesteps.
    assert denoised.predictions.shape == (24, 4, 8, 8)
    assert denoised.loss == pytest.approx(1 + float(denoised.predictions.square().mean()), rel=0.1)

import json
import math
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from utils.cli import UserError
from utils.diffusion import (
    diffusion_loss,
    image_errors,
    load_pipeline,
    load_pipeline_parts,
    min_snr_weights,
    save_pipeline,
    signal_to_noise,
    training_target,
)


def scheduler_with(alphas_cumprod, prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    scheduler.alphas_cumprod = torch.tensor(alphas_cumprod)
    return scheduler


# a = 0.9, 0.5, 0.1 gives SNR 9, 1, 1/9
ALPHAS = [0.9, 0.5, 0.1]


def test_snr_is_signal_power_over_noise_power():
    snr = signal_to_noise(scheduler_with([*ALPHAS, 0.0], "epsilon"))
    assert snr.tolist() == pytest.approx([9.0, 1.0, 1 / 9, 0.0])


def test_min_snr_weight_of_epsilon_is_the_capped_snr_over_the_snr():
    weights = min_snr_weights(scheduler_with(ALPHAS, "epsilon"), 5.0)
    assert weights.tolist() == pytest.approx([5 / 9, 1.0, 1.0])


def test_min_snr_weight_of_v_prediction_is_the_capped_snr_over_snr_plus_one():
    weights = min_snr_weights(scheduler_with(ALPHAS, "v_prediction"), 5.0)
    assert weights.tolist() == pytest.approx([5 / 10, 1 / 2, (1 / 9) / (10 / 9)])


def test_min_snr_trains_the_pure_noise_of_a_zero_terminal_snr_schedule():
    weights = min_snr_weights(scheduler_with([*ALPHAS, 0.0], "v_prediction"), 5.0)
    assert weights.tolist() == pytest.approx([5 / 10, 1.0, 1.0, 1.0])


def test_min_snr_stays_finite_at_zero_snr_with_epsilon():
    weights = min_snr_weights(scheduler_with([*ALPHAS, 0.0], "epsilon"), 5.0)
    assert weights[-1] == 1.0


def test_the_loss_is_the_weighted_mean_over_images():
    target = torch.tensor([[[[1.0, 3.0]]], [[[2.0, 2.0]]]])
    errors = image_errors(torch.zeros(2, 1, 1, 2), target)
    assert errors.tolist() == [5, 4]
    assert diffusion_loss(errors).item() == pytest.approx(4.5)
    weights = torch.tensor([2.0, 0.5])
    assert diffusion_loss(errors, weights).item() == pytest.approx((10 + 2) / 2)


def test_the_error_of_half_precision_predictions_is_float32():
    big = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)  # 300^2 overflows float16
    assert image_errors(big, torch.zeros_like(big)).item() == pytest.approx(90000.0)


def test_the_target_of_epsilon_is_the_noise():
    latents, noise = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    schedule = scheduler_with(ALPHAS, "epsilon")
    assert training_target(schedule, latents, noise, torch.tensor([0])).item() == 2.0


def test_the_target_of_v_prediction_turns_from_image_to_noise():
    latents, noise = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    schedule = scheduler_with(ALPHAS, "v_prediction")
    velocity = training_target(schedule, latents, noise, torch.tensor([2])).item()
    assert velocity == pytest.approx(math.sqrt(0.1) * 2.0 - math.sqrt(0.9) * 1.0)


def test_zero_terminal_snr_ends_in_pure_noise_and_is_sampled_from_there(tiny_pipeline):
    parts = load_pipeline_parts(
        tiny_pipeline, prediction_type="v_prediction", zero_terminal_snr=True
    )
    assert signal_to_noise(parts.noise_scheduler)[-1] == 0.0
    config = parts.scheduler.config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert config.rescale_betas_zero_snr


def test_zero_terminal_snr_refuses_epsilon(tiny_pipeline):
    with pytest.raises(UserError, match="--prediction_type v_prediction"):
        load_pipeline_parts(tiny_pipeline, zero_terminal_snr=True)


def test_without_changes_the_pipelines_sampler_stays_as_it_is(tiny_pipeline):
    parts = load_pipeline_parts(tiny_pipeline)
    stored = json.loads((tiny_pipeline / "scheduler" / "scheduler_config.json").read_text())
    assert type(parts.scheduler).__name__ == stored["_class_name"]
    assert parts.noise_scheduler.config.beta_end == stored["beta_end"]
    assert parts.noise_scheduler.config.beta_schedule == stored["beta_schedule"]


def test_half_precision_files_are_trained_in_float32(tiny_pipeline, tmp_path):
    load_pipeline(tiny_pipeline, dtype=torch.float16).save_pretrained(tmp_path)
    parts = load_pipeline_parts(tmp_path)
    types = {p.dtype for m in (parts.unet, parts.vae, parts.text_encoder) for p in m.parameters()}
    assert types == {torch.float32}


def test_only_the_unet_is_trained(tiny_pipeline):
    parts = load_pipeline_parts(tiny_pipeline)
    assert all(p.requires_grad for p in parts.unet.parameters())
    assert not any(p.requires_grad for m in (parts.vae, parts.text_encoder) for p in m.parameters())


def test_a_safety_checker_is_dropped_even_if_its_files_are_gone(tiny_pipeline, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["requires_safety_checker"] = True
    (folder / "model_index.json").write_text(json.dumps(index))
    parts = load_pipeline_parts(folder)
    save_pipeline(parts, parts.unet, tmp_path / "saved")
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "saved").safety_checker is None


def test_channels_last_weights_are_saved_in_their_own_order(tiny_pipeline, tmp_path):
    parts = load_pipeline_parts(tiny_pipeline)
    parts.unet.to(memory_format=torch.channels_last)
    save_pipeline(parts, parts.unet, tmp_path)
    again = load_pipeline_parts(tmp_path)
    pairs = zip(parts.unet.parameters(), again.unet.parameters())
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("damage", ["gone", "truncated", "width"])
def test_a_pipeline_that_cannot_be_loaded_is_named(tiny_pipeline, tmp_path, damage):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "gone":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        shutil.rmtree(folder / "text_encoder")
        _write_wider_text_encoder(tiny_pipeline, folder / "text_encoder")
    with pytest.raises(UserError, match="broken"):
        load_pipeline(folder)


def _write_wider_text_encoder(pipeline, folder):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig.from_pretrained(pipeline / "text_encoder")
    config.hidden_size = 64
    CLIPTextModel(config).save_pretrained(folder)

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.training_memory import count_saved, gib


def tiny_unet():
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def saved(batch_size):
    with torch.device("meta"):
        unet, latents = tiny_unet(), torch.empty(batch_size, 4, 8, 8)
        return count_saved(unet, latents, torch.empty(batch_size, 77, 32))


def test_what_a_linear_layer_and_attention_keep_is_counted_once():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 5), torch.nn.Linear(5, 5)

        def forward(self, latents, timesteps, text):
            hidden = self.second(self.first(latents))
            return torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)

    latents = torch.empty(7, 2, 3, device="meta")
    counted = count_saved(Model().to("meta"), latents, None).everything
    # input of each layer, then query = key = value, and attention's output
    assert counted == 7 * 2 * (3 + 5 + 5 + 5)


def test_what_is_kept_grows_with_the_batch_and_checkpointing_keeps_less():
    one, two = saved(1), saved(2)
    assert two.everything == pytest.approx(2 * one.everything, rel=0.01)
    assert one.checkpointed < 0.6 * one.everything


def test_the_formula():
    billion = 10**9
    assert gib(billion, 0) == pytest.approx((4 + 4 + 8 + 4 + 2) * billion / 2**30)
    assert gib(0, billion) == pytest.approx(2 * billion / 2**30)
    zero2 = gib(billion, 0, engine="zero2", num_gpus=4)
    assert zero2 == pytest.approx((4 + 4 + 2 + 12 / 4) * billion / 2**30)
    fsdp = gib(billion, 0, engine="fsdp", num_gpus=4)
    assert fsdp == pytest.approx(20 / 4 * billion / 2**30)

import pytest
import torch
from diffusers import UNet2DConditionModel

from utils.precision import has_fast_bf16
from utils.unet_speed import Float32Attention, prepare_unet


@pytest.fixture
def unet(tiny_pipeline):
    return UNet2DConditionModel.from_pretrained(tiny_pipeline / "unet").train()


def predict(unet, mask=None):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 77, 32, generator=generator)
    steps = torch.tensor([3, 700])
    return unet(latents, steps, text, encoder_attention_mask=mask).sample


def prepare(unet, *, precision="no", compile_mode="no"):
    prepare_unet(unet, device_type="cpu", precision=precision, compile_mode=compile_mode)


def test_float32_attention_is_the_same_attention(unet):
    mask = torch.ones(2, 77)
    mask[:, 40:] = 0
    before, masked_before = predict(unet), predict(unet, mask)
    prepare(unet, precision="bf16")
    assert all(type(each) is Float32Attention for each in unet.attn_processors.values())
    torch.testing.assert_close(predict(unet), before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(predict(unet, mask), masked_before, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(masked_before, before, rtol=1e-5, atol=1e-6)


def test_float32_attention_rounds_no_more_than_bf16(unet):
    exact = predict(unet)
    with torch.autocast("cpu", torch.bfloat16):
        plain = predict(unet)
        prepare(unet, precision="bf16")
        ours = predict(unet)
    assert (ours - exact).norm() <= 1.1 * (plain - exact).norm()


def test_attention_stays_as_it_is_in_float32(unet):
    prepare(unet)
    assert not any(type(each) is Float32Attention for each in unet.attn_processors.values())


@pytest.mark.parametrize("mode", ["regional", "whole"])
def test_compiling_keeps_the_names_of_the_weights(unet, mode):
    names = set(unet.state_dict())
    prepare(unet, compile_mode=mode)
    assert any(module._compiled_call_impl is not None for module in unet.modules())
    assert set(unet.state_dict()) == names


def test_fast_bf16_is_what_the_processor_says(monkeypatch):
    for flag in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flag=flag: {flag: True})
        assert has_fast_bf16("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not has_fast_bf16("cpu")
    assert not has_fast_bf16("mps")

"""The small encoder: its tokens know their place, and transformers takes it."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from utils.conv_encoder import ConvEncoderConfig, ConvEncoderModel


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ConvEncoderModel(ConvEncoderConfig(image_size=40)).eval()


@torch.inference_mode()
def test_a_token_stands_for_16_px_and_a_border_counts(encoder):
    tokens = encoder(torch.zeros(2, 3, 40, 40)).last_hidden_state
    assert tokens.shape == (2, 9, 128)


@torch.inference_mode()
def test_equal_patches_differ_by_their_place(encoder):
    tokens = encoder(torch.zeros(1, 3, 40, 40)).last_hidden_state[0]
    assert (tokens[0] - tokens[4]).norm() > 1


def test_another_side_is_refused(encoder):
    with pytest.raises(ValueError, match="this takes 40"):
        encoder(torch.zeros(1, 3, 48, 48))


@torch.inference_mode()
def test_transformers_loads_what_it_saved(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 128
    again = AutoModel.from_pretrained(tmp_path).eval()
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(again(image).last_hidden_state, encoder(image).last_hidden_state)


@torch.inference_mode()
def test_only_the_first_channel_is_read(encoder):
    gray = torch.rand(1, 1, 40, 40)
    coloured = torch.cat([gray, torch.rand(1, 2, 40, 40)], dim=1)
    same = encoder(gray.expand(-1, 3, -1, -1)).last_hidden_state
    assert torch.equal(encoder(coloured).last_hidden_state, same)

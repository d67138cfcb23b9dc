"""Cross-attention as maps of words: the right rows, the right words, the right place."""

import numpy as np
import pytest
import torch
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from utils.attention_maps import attention_rows, overlay, peak, span_map, to_grid, word_maps
from utils.captioner_networks import CaptionerSpec, build_network
from utils.report_tokenizer import train_tokenizer

ENGLISH = "Large drusen left."
CHINESE = "黄斑水肿，OCT左侧。"
CORPUS = [ENGLISH] * 4 + ["水"] * 2
SIDE_PX, WIDTH = 64, 32
IMAGE = torch.linspace(-1, 1, 3 * SIDE_PX**2).reshape(1, 3, SIDE_PX, SIDE_PX)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS)


def gpt2(tokenizer, **changes):
    options = {"n_positions": 32, "n_embd": WIDTH, "n_layer": 2, "n_head": 2} | changes
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(
        vocab_size=len(tokenizer), add_cross_attention=True, is_decoder=True, **ids, **options
    )
    return GPT2LMHeadModel(config)


def vit(**changes):
    options = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes = {"hidden_size": WIDTH, "image_size": SIDE_PX, "patch_size": 16}
    return ViTModel(ViTConfig(**(sizes | options | changes)), add_pooling_layer=False)


def make_network(kind, tokenizer):
    torch.manual_seed(0)
    if kind == "swin":
        return build_network(CaptionerSpec(SIDE_PX, max_tokens=24), CORPUS, seed=0)[0]
    if kind == "vit":
        return VisionEncoderDecoderModel(encoder=vit(), decoder=gpt2(tokenizer)).eval()
    small = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "encoder_hidden_size": WIDTH, "is_decoder": True}
    config = BlipConfig(
        vision_config=small | {"image_size": SIDE_PX, "patch_size": 16},
        text_config=small | text | {"max_position_embeddings": 24, "bos_token_id": 1},
    )
    return BlipForConditionalGeneration(config).eval()


def decoder_of(network):
    return network.text_decoder if hasattr(network, "text_decoder") else network.decoder


@pytest.mark.parametrize(("kind", "num_tokens"), [("vit", 17), ("swin", 16), ("blip", 17)])
def test_rows_are_shares_of_all_tokens_and_maps_those_of_the_patches(kind, num_tokens, tokenizer):
    network = make_network(kind, tokenizer)
    ids = [tokenizer.bos_token_id, 5, 6]
    rows = attention_rows(network, IMAGE, ids)
    assert rows.shape == (3, num_tokens) and rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)
    for found in word_maps(network, tokenizer, IMAGE, ENGLISH):
        assert found.map.shape == (4, 4)
        expected = 1 if kind == "swin" else 16 / 17  # a new network reads all tokens alike
        assert found.map.sum() == pytest.approx(expected, abs=0.02)


def test_rows_are_those_of_the_last_layer(tokenizer):
    network = make_network("vit", tokenizer)
    rows = attention_rows(network, IMAGE, [1, 5, 6])
    network.set_attn_implementation("eager")
    with torch.no_grad():
        ids = torch.tensor([[1, 5, 6]])
        layers = network(IMAGE, decoder_input_ids=ids, output_attentions=True).cross_attentions
    first, last = (layer[0].mean(dim=0).numpy() for layer in layers)
    np.testing.assert_allclose(rows, last, atol=1e-7)
    assert abs(rows - first).max() > 1e-5


@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_the_kernel_of_attention_is_as_it_was_afterwards(before, tokenizer):
    network = make_network("vit", tokenizer)
    network.set_attn_implementation(before)
    attention_rows(network, IMAGE, [1, 5])
    with pytest.raises(IndexError):
        attention_rows(network, IMAGE, [10**6])
    assert decoder_of(network).config._attn_implementation == before
    assert network.encoder.config._attn_implementation == before


def test_words_are_joined_from_their_tokens_without_marks_between(tokenizer):
    network = make_network("vit", tokenizer)
    found = word_maps(network, tokenizer, IMAGE, ENGLISH)
    assert [(w.word, w.start, w.end) for w in found] == [
        ("Large", 0, 5),
        ("drusen", 6, 12),
        ("left", 13, 17),
    ]


def test_chinese_characters_are_words_whatever_the_number_of_their_bytes(tokenizer):
    network = make_network("vit", tokenizer)
    found = word_maps(network, tokenizer, IMAGE, CHINESE)
    assert [w.word for w in found] == ["黄", "斑", "水", "肿", "OCT", "左", "侧"]
    assert all(CHINESE[w.start : w.end] == w.word for w in found)
    ids = tokenizer(CHINESE)["input_ids"]
    rows = attention_rows(network, IMAGE, [tokenizer.bos_token_id, *ids])
    assert len(tokenizer("黄")["input_ids"]) == 3  # its bytes; 水 is one token
    np.testing.assert_allclose(found[0].map.ravel(), rows[:3].mean(axis=0)[1:], atol=1e-6)
    np.testing.assert_allclose(found[2].map.ravel(), rows[6][1:], atol=1e-6)


def test_words_beyond_the_decoders_last_place_have_no_map(tokenizer):
    network = make_network("vit", tokenizer)
    assert len(word_maps(network, tokenizer, IMAGE, "drusen " * 40)) < 32
    assert word_maps(network, tokenizer, IMAGE, "") == []


def plant(tokenizer, *, cue, patch, other):
    """A network that reads ``patch`` when ``cue`` is the last word so far, else ``other``."""
    encoder, decoder = vit(num_hidden_layers=0), gpt2(tokenizer, n_layer=1, n_head=1)
    network = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    (cue_id,) = tokenizer(cue)["input_ids"]
    with torch.no_grad():
        for parameter in (*encoder.embeddings.parameters(), *decoder.transformer.wpe.parameters()):
            parameter.zero_()
        encoder.embeddings.position_embeddings[0, 1 + patch, 0] = 9.0
        encoder.embeddings.position_embeddings[0, 1 + other, 1] = 9.0
        words, block = decoder.transformer.wte.weight, decoder.transformer.h[0]
        words.zero_()
        words[:, 1] = 9.0
        words[cue_id] = torch.eye(WIDTH)[0] * 9
        for weight in (block.attn.c_proj.weight, block.attn.c_proj.bias):
            weight.zero_()
        cross = block.crossattention
        for layer in (cross.q_attn, cross.c_attn):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[:2, :2] = torch.eye(2)
    return network


def test_a_planted_look_is_found_at_its_patch_and_at_the_word_that_is_being_written(tokenizer):
    network = plant(tokenizer, cue="Large", patch=6, other=9)
    found = {w.word: w.map for w in word_maps(network, tokenizer, IMAGE, ENGLISH)}
    peaks = {word: np.unravel_index(one.argmax(), one.shape) for word, one in found.items()}
    assert peaks == {"Large": (2, 1), "drusen": (1, 2), "left": (2, 1)}
    assert found["drusen"][1, 2] > 0.9


def test_the_grid_leaves_out_class_and_register_tokens():
    row = np.arange(201.0)
    assert to_grid(row[:197])[0, 0] == 1 and to_grid(row[:197]).shape == (14, 14)
    assert to_grid(row)[0, 0] == 5 and to_grid(row)[-1, -1] == 200
    assert to_grid(row[:196])[0, 0] == 0


def test_a_part_of_a_text_has_the_mean_of_its_words(tokenizer):
    maps = word_maps(make_network("vit", tokenizer), tokenizer, IMAGE, ENGLISH)
    np.testing.assert_allclose(span_map(maps, 0, 8), (maps[0].map + maps[1].map) / 2)
    assert span_map(maps, 17, 18) is None


def test_the_overlay_colours_what_is_read_and_leaves_the_rest_gray():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 0.02
    pixels = np.asarray(overlay(np.full((60, 80), 100, np.uint8), heat)).astype(int)
    assert pixels.shape == (60, 80, 3)
    assert pixels[5, 75, 0] - pixels[5, 75, 2] > 30
    assert (pixels[40, 10] == 100).all()


def test_a_nearly_even_map_stays_nearly_gray_and_an_even_one_gray():
    scan = np.full((64, 64), 100, np.uint8)
    heat = np.ones((4, 4), np.float32)
    assert (np.asarray(overlay(scan, heat)) == 100).all() and peak(heat) == 1
    colours = []
    for times in (1.2, 2.0, 4.0, 8.0):
        heat[1, 1] = 15 * times / (16 - times)
        assert peak(heat) == pytest.approx(times)
        pixels = np.asarray(overlay(scan, heat)).astype(int)
        colours.append((pixels[..., 0] - pixels[..., 2]).max())
    assert colours[0] < 20 < colours[1] < colours[2]
    assert colours[2] == pytest.approx(colours[3], abs=8)

"""Captions in chunks: token ids, embeddings, and what a run trained on them leaves behind."""

import csv
import json

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from PIL import Image

import train_text_to_image
from utils.diffusion import load_pipeline, load_pipeline_parts, save_pipeline
from utils.text_encoding import (
    MAX_CAPTION_CHUNKS,
    embed_text,
    encode_text,
    max_tokens,
    name_padding,
    num_caption_chunks,
    set_num_caption_chunks,
    settle_num_caption_chunks,
    token_lengths,
    tokenize,
)
from utils.validation import draw_prompts

# A letter is a token of the tiny pipeline: these two differ in their 91st token only.
LONG = "a " * 90 + "b"
OTHER_END = "a " * 90 + "c"


@pytest.fixture
def parts(tiny_pipeline):
    return load_pipeline_parts(tiny_pipeline)


# Token ids


def test_one_chunk_is_what_stable_diffusion_reads(parts):
    captions = ["drusen", "", "d" * 200]
    plain = parts.tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    ids = tokenize(parts.tokenizer, captions)
    assert ids.shape == (3, 1, 77)
    assert torch.equal(ids[:, 0], plain)
    with torch.no_grad():
        expected = parts.text_encoder(plain)[0]
    assert torch.equal(encode_text(parts.text_encoder, ids), expected)


@pytest.mark.parametrize("num_chunks", [2, 3, MAX_CAPTION_CHUNKS])
def test_chunks_hold_the_captions_tokens_in_order(parts, num_chunks):
    tokenizer = parts.tokenizer
    caption = "".join(chr(ord("a") + place % 26) for place in range(170))  # 75 + 75 + 20
    ids = tokenize(tokenizer, ["short", caption], num_chunks)
    assert ids.shape == (2, num_chunks, 77)
    assert (ids[:, :, 0] == tokenizer.bos_token_id).all()
    words = [chunk[1 : 1 + 75].tolist() for chunk in ids[1]]
    joined = [token for chunk in words for token in chunk if token != tokenizer.eos_token_id]
    whole = tokenizer(caption, truncation=False).input_ids[1:-1]
    assert joined == whole[: 75 * num_chunks]


def test_chunks_that_a_caption_does_not_fill_are_those_of_the_empty_caption(parts):
    ids = tokenize(parts.tokenizer, ["x" * 150, "drusen", ""], 4)
    empty = tokenize(parts.tokenizer, [""])[0, 0]
    assert [int((chunks == empty).all(dim=-1).sum()) for chunks in ids] == [2, 3, 4]


def test_the_first_chunk_does_not_depend_on_their_number(parts):
    one, four = (tokenize(parts.tokenizer, ["drusen", LONG], number) for number in (1, 4))
    assert torch.equal(one[:, 0], four[:, 0])


def test_lengths_and_limits_count_one_start_and_one_end(parts):
    assert token_lengths(parts.tokenizer, ["drusen", "d" * 200]) == [6 + 2, 200 + 2]
    assert [max_tokens(parts.tokenizer, chunks) for chunks in (1, 2, 4)] == [77, 152, 302]


# Embeddings


def test_a_caption_that_differs_beyond_the_first_chunk_is_told_apart_by_two(parts):
    for num_chunks, same in ((1, True), (2, False)):
        ids = tokenize(parts.tokenizer, [LONG, OTHER_END], num_chunks)
        embeddings = encode_text(parts.text_encoder, ids)
        assert embeddings.shape == (2, num_chunks * 77, 32)
        assert torch.equal(embeddings[0], embeddings[1]) is same


def test_each_chunk_is_encoded_on_its_own(parts):
    embeddings = encode_text(parts.text_encoder, tokenize(parts.tokenizer, [LONG], 3))[0]
    alone = [
        encode_text(parts.text_encoder, tokenize(parts.tokenizer, [text]))[0]
        for text in ("a " * 75, "a " * 15 + "b", "")
    ]
    torch.testing.assert_close(embeddings, torch.cat(alone), rtol=0, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_neighbours(parts):
    together = encode_text(
        parts.text_encoder, tokenize(parts.tokenizer, ["scar", f"{LONG} {LONG}"], 3)
    )
    alone = encode_text(parts.text_encoder, tokenize(parts.tokenizer, ["scar"], 3))
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-5)


def test_only_embed_text_has_gradients(parts):
    parts.text_encoder.requires_grad_(True)
    ids = tokenize(parts.tokenizer, ["drusen"], 2)
    embed_text(parts.text_encoder, ids).sum().backward()
    assert parts.text_encoder.embeddings.position_embedding.weight.grad.abs().max() > 0
    assert not encode_text(parts.text_encoder, ids).requires_grad


def test_a_wrapped_text_encoder_gives_the_same(parts):
    wrapped = torch.nn.Module()
    wrapped.module = parts.text_encoder
    wrapped.forward = parts.text_encoder.forward
    ids = tokenize(parts.tokenizer, ["drusen"], 2)
    assert torch.equal(encode_text(wrapped, ids), encode_text(parts.text_encoder, ids))


def test_padding_is_masked_as_plain_diffusers_masks_it(tiny_pipeline):
    pipeline = load_pipeline(tiny_pipeline)
    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    ids = tokenize(tokenizer, ["drusen"])
    unmasked = encode_text(text_encoder, ids)
    text_encoder.config.use_attention_mask = True
    text_encoder.config.pad_token_id, text_encoder.config.eos_token_id = 1, 2  # as published
    name_padding(tokenizer, text_encoder)
    masked = encode_text(text_encoder, ids)
    assert torch.equal(masked, pipeline.encode_prompt("drusen", "cpu", 1, False)[0])
    # CLIP looks back only: padding is seen by padding.
    assert torch.allclose(masked[:, :8], unmasked[:, :8], atol=1e-5)
    assert not torch.allclose(masked[:, 9:], unmasked[:, 9:], atol=1e-3)


# What a model was trained on


@pytest.mark.parametrize(
    ("before", "long_captions", "longest", "expected"),
    [
        (1, None, 200, 1),
        (1, "truncate", 200, 1),
        (1, "chunk", 75, 1),
        (1, "chunk", 76, 2),
        (1, "chunk", 150, 2),
        (1, "chunk", 151, 3),
        (1, "chunk", 3000, MAX_CAPTION_CHUNKS),
        (3, "chunk", 10, 3),  # what the U-Net knows stays
        (3, None, 10, 3),
        (2, None, 200, 3),
        (3, "truncate", 200, 1),
    ],
)
def test_the_number_of_chunks_is_settled_for_the_model(
    parts, before, long_captions, longest, expected
):
    set_num_caption_chunks(parts.text_encoder, before)
    chosen = settle_num_caption_chunks(
        parts.tokenizer,
        parts.text_encoder,
        ["drusen", "d" * longest],
        long_captions=long_captions,
    )
    assert chosen == num_caption_chunks(parts.text_encoder) == expected


def test_the_number_of_chunks_survives_saving_and_one_leaves_no_trace(parts, tmp_path):
    set_num_caption_chunks(parts.text_encoder, 3)
    save_pipeline(parts, parts.unet, tmp_path / "three")
    again = load_pipeline_parts(tmp_path / "three")
    assert num_caption_chunks(again.text_encoder) == 3
    set_num_caption_chunks(again.text_encoder, 1)
    save_pipeline(again, again.unet, tmp_path / "one")
    config = json.loads((tmp_path / "one" / "text_encoder" / "config.json").read_text())
    assert "num_caption_chunks" not in config


# Trained and drawn


@pytest.fixture
def train_on_long_captions(toy_dataset, tiny_pipeline, tmp_path, capsys):
    """Two steps on four scans whose captions differ in their 91st token only."""
    table = tmp_path / "reports.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        for index in range(4):
            image = toy_dataset / "images" / f"{index:03d}.png"
            writer.writerow([image, "a " * 90 + "bcde"[index]])

    def train(name, *flags, base=tiny_pipeline):
        output_dir = tmp_path / name
        argv = [
            f"--pretrained_model_name_or_path={base}",
            f"--train_data_dir={table}",
            f"--output_dir={output_dir}",
            *("--resolution=64", "--center_crop", "--train_batch_size=2", "--max_train_steps=2"),
            *(
                "--lr_warmup_steps=0",
                "--report_to=none",
                "--offline",
                "--mixed_precision=no",
                "--seed=0",
                *flags,
            ),
        ]
        assert train_text_to_image.main(argv) == 0
        return output_dir, capsys.readouterr().err

    return train


def losses_of(output_dir):
    with (output_dir / "train_log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_a_model_trained_in_chunks_says_so_and_plain_diffusers_draws_with_it(
    train_on_long_captions,
):
    prompts = ("--validation_prompts", LONG)
    out, told = train_on_long_captions("out", "--long_captions=chunk", *prompts)
    assert "cut" not in told
    config = json.loads((out / "text_encoder" / "config.json").read_text())
    assert config["num_caption_chunks"] == 2
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    image = pipeline(LONG, num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert image.std() > 0


@pytest.mark.parametrize("num_chunks", [1, 2])
def test_validation_pictures_are_drawn_with_all_chunks(parts, tmp_path, num_chunks):
    set_num_caption_chunks(parts.text_encoder, num_chunks)
    pictures = []
    for prompt in (LONG, OTHER_END):
        [path] = draw_prompts(
            Accelerator(cpu=True),
            parts,
            parts.unet,
            [prompt],
            folder=tmp_path / prompt[-1],
            resolution=64,
            seed=0,
        )
        with Image.open(path) as image:
            pictures.append(image.tobytes())
    assert (pictures[0] == pictures[1]) is (num_chunks == 1)


def test_the_loss_sees_what_stands_beyond_the_first_chunk(train_on_long_captions):
    cut, told = train_on_long_captions("cut")
    assert "4 of 4 captions have more than the 77 tokens" in told
    assert "--long_captions chunk" in told
    chunks, _ = train_on_long_captions("chunks", "--long_captions=chunk")
    again, _ = train_on_long_captions("again", "--long_captions=chunk", "--no-cache_latents")
    assert losses_of(chunks) != pytest.approx(losses_of(cut), abs=1e-6)
    assert losses_of(chunks) == pytest.approx(losses_of(again), abs=1e-5)


def test_further_training_keeps_the_chunks_unless_told_otherwise(train_on_long_captions):
    first, _ = train_on_long_captions("first", "--long_captions=chunk")
    kept, _ = train_on_long_captions("kept", base=first)
    cut, _ = train_on_long_captions("cut", "--long_captions=truncate", base=first)
    chunks = [num_caption_chunks(load_pipeline(folder).text_encoder) for folder in (kept, cut)]
    assert chunks == [2, 1]

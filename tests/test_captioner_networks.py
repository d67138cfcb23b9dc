"""Captioner networks: every supported part trains and writes; the folder is transformers' own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from utils import captioner_losses
from utils import captioner_networks as networks
from utils.backbones import IMAGENET_MEAN
from utils.captioner import Captioner, Decoding
from utils.captioner_encoders import fit_resolution, load_encoder
from utils.captioner_networks import (
    CaptionerSpec,
    InputSettings,
    build_network,
    load_network,
    save_network,
)
from utils.cli import UserError
from utils.mae_model import encoder_state
from utils.report_tokenizer import encode_reports
from utils.run_folder import hash_folder
from utils.vit import Trunk

SIDE = 32
TEXTS = ["normal retina", "two drusen, up to 63 µm", "no fluid", "黄斑水肿"]
SMALL = CaptionerSpec(SIDE, max_tokens=40, offline=True)
VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 32,
    "image_size": 48,
    "patch_size": 8,
}
TOWER = {"vision_config": VIT, "text_config": {"hidden_size": 8, "num_attention_heads": 1}}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 42,
}

pytestmark = pytest.mark.filterwarnings("ignore")


def make(config: str, model: str, sizes: dict, folder: Path) -> Path:
    """A model of transformers with random weights, saved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = getattr(transformers, model)(getattr(transformers, config)(**sizes))
        for weight in network.parameters():  # biases and tables start at zero, which hides mistakes
            weight.data += 0.1 * torch.randn_like(weight)
    network.save_pretrained(folder)
    return folder


ENCODERS = {
    "vit": ("ViTConfig", "ViTForImageClassification", VIT),
    "deit": ("DeiTConfig", "DeiTModel", VIT),
    "dinov2": ("Dinov2Config", "Dinov2Model", VIT),
    "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", VIT),
    "beit": ("BeitConfig", "BeitModel", VIT | {"use_relative_position_bias": True}),
    "clip": ("CLIPConfig", "CLIPModel", TOWER),
    "siglip": ("SiglipConfig", "SiglipModel", TOWER),
    "vit_mae": ("ViTMAEConfig", "ViTMAEForPreTraining", VIT | {"decoder_hidden_size": 16}),
    "swin": (
        "SwinConfig",
        "SwinModel",
        {"image_size": 48, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 3},
    ),
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, Path]:
    """A folder of every supported kind of encoder."""
    root = tmp_path_factory.mktemp("encoders")
    return {name: make(*spec, root / name) for name, spec in ENCODERS.items()}


def word_piece(folder: Path) -> int:
    """BERT's kind of tokenizer, saved; the number of its tokens."""
    words = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789,.µ"})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    vocabulary += [f"##{word}" for word in words] + ["retina", "drusen", "fluid", "normal"]
    tokenizer = transformers.BertTokenizer({word: i for i, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def gpt2_tokens(folder: Path) -> int:
    """GPT-2's kind of tokenizer, saved: one special token that starts and ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: i for i, char in enumerate([*alphabet, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end
    ).save_pretrained(folder)
    return len(vocabulary)


GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40, "bos_token_id": 256}


@pytest.fixture(scope="module")
def decoders(tmp_path_factory) -> dict[str, Path]:
    """A folder of a GPT-2, a BERT and a RoBERTa without cross-attention, with tokenizers."""
    root = tmp_path_factory.mktemp("decoders")
    sizes = GPT2 | {"eos_token_id": 256, "vocab_size": gpt2_tokens(root / "gpt2")}
    made = {"gpt2": make("GPT2Config", "GPT2LMHeadModel", sizes, root / "gpt2")}
    for name, model in (("bert", "Bert"), ("roberta", "Roberta")):
        sizes = BERT | {"vocab_size": word_piece(root / name)}
        made[name] = make(f"{model}Config", f"{model}ForMaskedLM", sizes, root / name)
    return made


def batch(tokenizer, texts=TEXTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Reports as (N, L) numbers of tokens and mask."""
    encoded, _ = encode_reports(tokenizer, texts, max_tokens=40)
    rows = [torch.tensor(ids) for ids in encoded]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    return ids, pad([torch.ones_like(row) for row in rows], batch_first=True)


def images(side: int = SIDE) -> torch.Tensor:
    return torch.randn(len(TEXTS), 3, side, side, generator=torch.Generator().manual_seed(0))


def loss_of(network, tokenizer) -> torch.Tensor:
    ids, mask = batch(tokenizer)
    return captioner_losses.report_loss(network, images(), ids, mask)


@torch.no_grad()  # with a gradient, PyTorch takes another kernel, of another rounding, for Swin
def loss_without_gradient(network, tokenizer) -> float:
    return loss_of(network, tokenizer).item()


def check_use(network, tokenizer, folder: Path) -> None:
    """Train one step, save, load, write with two beams."""
    before = loss_without_gradient(network, tokenizer)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    loss_of(network.train(), tokenizer).backward()
    assert all(weight.grad is not None for weight in weights), "weights without gradient"
    torch.optim.SGD(weights, lr=3e-2).step()
    after = loss_without_gradient(network.eval(), tokenizer)
    assert after < before
    save_network(network, tokenizer, InputSettings(SIDE), folder / "first")
    loaded, again, settings = load_network(folder / "first", flag="--model")
    save_network(loaded, again, settings, folder / "second")
    assert hash_folder(folder / "second") == hash_folder(folder / "first")
    assert settings == InputSettings(SIDE)
    assert loss_without_gradient(loaded, again) == after
    written = loaded.generate(pixel_values=images(), num_beams=2, max_new_tokens=5)
    assert written.shape[0] == len(TEXTS) and written.shape[1] <= 6
    assert (written[:, 0] == again.bos_token_id).all()


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_learns_writes_and_comes_back(kind, encoders, tmp_path):
    spec = replace(SMALL, encoder=str(encoders[kind]))
    network, tokenizer, _ = build_network(spec, TEXTS, seed=0)
    assert network.encoder(images()).last_hidden_state.ndim == 3
    check_use(network, tokenizer, tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "roberta"])
def test_a_decoder_learns_writes_and_comes_back(kind, decoders, tmp_path):
    spec = replace(SMALL, decoder=str(decoders[kind]))
    network, tokenizer, _ = build_network(spec, TEXTS, seed=0)
    source = transformers.AutoModelForCausalLM.from_pretrained(decoders[kind]).state_dict()
    held = network.decoder.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in source.items())
    check_use(network, tokenizer, tmp_path)


# Whole models


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    """A BLIP whose first token is one beyond its tokenizer, as in the published ones."""
    folder = tmp_path_factory.mktemp("blip")
    num_tokens = word_piece(folder)
    text = BERT | {"vocab_size": num_tokens + 2, "bos_token_id": num_tokens, "sep_token_id": 3}
    text |= {"encoder_hidden_size": 64, "pad_token_id": 0}
    sizes = {"vision_config": VIT, "text_config": text}
    return make("BlipConfig", "BlipForConditionalGeneration", sizes, folder)


def test_a_blip_learns_writes_and_comes_back(blip, tmp_path):
    network, tokenizer, settings = build_network(replace(SMALL, model=str(blip)), [], seed=0)
    assert tokenizer.bos_token_id == network.config.text_config.bos_token_id
    assert tokenizer.eos_token == "[SEP]"
    assert network.config.vision_config.image_size == SIDE
    assert network.vision_model.embeddings.position_embedding.shape[1] == 1 + (SIDE // 8) ** 2
    assert settings.mean == networks.encoders.CLIP_MEAN
    check_use(network, tokenizer, tmp_path)


def test_a_whole_encoder_decoder_learns_writes_and_comes_back(encoders, decoders, tmp_path):
    source, tokenizer, _ = build_network(
        replace(SMALL, encoder=str(encoders["vit"]), resolution=48, decoder=str(decoders["gpt2"])),
        TEXTS,
        seed=0,
    )
    source.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    spec = replace(SMALL, model=str(tmp_path / "whole"))
    network, tokenizer, _ = build_network(spec, [], seed=1)
    assert network.config.encoder.image_size == SIDE
    check_use(network, tokenizer, tmp_path / "saved")


# Encoders


RESIZED = {
    "vit": "ViTModel",
    "deit": "DeiTModel",
    "dinov2": "Dinov2Model",
    "registers": "Dinov2WithRegistersModel",
    "beit": "BeitModel",
    "clip": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "swin": "SwinModel",
}


@pytest.mark.parametrize("kind", RESIZED)
@pytest.mark.parametrize("side", [32, 48])
def test_tokens_are_those_that_transformers_interpolates(kind, side, encoders):
    source = getattr(transformers, RESIZED[kind]).from_pretrained(encoders[kind])
    fitted, _ = load_encoder(str(encoders[kind]), resolution=side, offline=True)
    options = {} if kind in ("dinov2", "registers") else {"interpolate_pos_encoding": True}
    options = {} if kind == "beit" else options  # it interpolates anyway, and with this twice
    with torch.no_grad():
        expected = source.eval()(images(side), **options).last_hidden_state
        found = fitted.eval()(images(side)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_a_blip_writes_reports_with_their_confidence(blip):
    network, tokenizer, settings = build_network(replace(SMALL, model=str(blip)), [], seed=0)
    captioner = Captioner(network, tokenizer, settings, resize_mode="center_crop")
    gray = (torch.rand(3, settings.resolution, settings.resolution) * 255).byte()
    for report in captioner.write_batch(gray, Decoding(num_beams=2, max_new_tokens=5)):
        assert len(tokenizer(report.text)["input_ids"]) <= 8
        assert -20 < report.confidence < 0


def test_blips_positions_are_interpolated(blip):
    source = transformers.BlipForConditionalGeneration.from_pretrained(blip).vision_model
    with torch.no_grad():
        expected = source(images(), interpolate_pos_encoding=True).last_hidden_state
        found = fit_resolution(source, SIDE).eval()(images()).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_a_masked_autoencoder_gives_the_same_tokens_by_folder_and_by_file(encoders, tmp_path):
    mae = transformers.ViTMAEForPreTraining.from_pretrained(encoders["vit_mae"])
    mae.vit.config.layer_norm_eps = 1e-6
    mae.save_pretrained(tmp_path / "mae")
    save_file(encoder_state(mae.state_dict()), tmp_path / "encoder.safetensors")
    trunk = Trunk(load_file(tmp_path / "encoder.safetensors"), source="file")
    with torch.no_grad():
        expected = trunk.tokens(images(48))
        for source in ("mae", "encoder.safetensors"):
            encoder, settings = load_encoder(str(tmp_path / source), resolution=48, offline=True)
            found = encoder.eval()(images(48)).last_hidden_state
            assert settings.mean == IMAGENET_MEAN
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_mean_and_deviation_are_the_folders(encoders, tmp_path):
    shutil.copytree(encoders["vit"], tmp_path, dirs_exist_ok=True)
    given = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    _, settings = load_encoder(str(tmp_path), resolution=SIDE, offline=True)
    assert settings == InputSettings(SIDE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_only_what_the_loss_depends_on_is_trained(encoders):
    network, _, _ = build_network(replace(SMALL, encoder=str(encoders["vit"])), TEXTS, seed=0)
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert frozen == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}


def test_widths_that_differ_get_a_projection(encoders):
    network, _, _ = build_network(replace(SMALL, encoder=str(encoders["vit"])), TEXTS, seed=0)
    width = network.encoder.config.hidden_size
    assert width != 128 and network.enc_to_dec_proj.weight.shape == (128, width)


# The loss


@pytest.fixture(scope="module")
def small():
    """A small network with its tokenizer and settings."""
    return build_network(SMALL, TEXTS, seed=0)


def test_the_loss_is_that_of_transformers(small):
    network, tokenizer, _ = small
    ids, mask = batch(tokenizer)
    labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    expected = network(images(), labels=labels).loss
    torch.testing.assert_close(captioner_losses.report_loss(network, images(), ids, mask), expected)


def test_label_smoothing_is_that_of_pytorch(small):
    network, tokenizer, _ = small
    ids, mask = batch(tokenizer)
    labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    logits = network(images(), labels=labels).logits.transpose(1, 2)
    found = captioner_losses.report_loss(network, images(), ids, mask, label_smoothing=0.1)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize("kind", ["small", "bert", "blip"])
def test_padding_changes_no_tokens_loss(kind, decoders, blip):
    specs = {"small": SMALL, "blip": replace(SMALL, model=str(blip))}
    specs["bert"] = replace(SMALL, decoder=str(decoders["bert"]))
    network, tokenizer, _ = build_network(specs[kind], TEXTS, seed=0)
    together = captioner_losses.token_losses(network, images(), *batch(tokenizer))
    for number, text in enumerate(TEXTS):
        image = images()[number : number + 1]
        alone = captioner_losses.token_losses(network, image, *batch(tokenizer, [text]))[0]
        torch.testing.assert_close(together[number, : len(alone)], alone, rtol=0, atol=1e-5)
        assert not together[number, len(alone) :].any()


@pytest.mark.parametrize("kind", ["small", "blip"])
def test_a_wrapped_network_has_the_same_loss(kind, blip):
    spec = SMALL if kind == "small" else replace(SMALL, model=str(blip))
    network, tokenizer, _ = build_network(spec, TEXTS, seed=0)
    assert torch.equal(
        loss_of(torch.nn.DataParallel(network), tokenizer), loss_of(network, tokenizer)
    )


def test_a_token_does_not_see_those_after_it(decoders):
    network, tokenizer, _ = build_network(
        replace(SMALL, decoder=str(decoders["bert"])), TEXTS, seed=0
    )
    ids, mask = batch(tokenizer, ["normal retina", "normal fluid"])
    pixels = images()[:1].expand(2, -1, -1, -1)
    losses = captioner_losses.token_losses(network, pixels, ids, mask)
    torch.testing.assert_close(losses[0, 0], losses[1, 0], rtol=0, atol=1e-6)
    assert abs(losses[0, 2] - losses[1, 2]) > 1e-6


# Seeds and folders


def test_new_weights_depend_on_the_seed_alone(decoders, tmp_path):
    spec = replace(SMALL, decoder=str(decoders["gpt2"]))
    hashes = []
    for number, seed in enumerate((5, 5, 6)):
        torch.manual_seed(number)
        before = torch.random.get_rng_state()
        network, tokenizer, settings = build_network(spec, TEXTS, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        save_network(network, tokenizer, settings, tmp_path / str(number))
        hashes.append(hash_folder(tmp_path / str(number)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_where_a_part_lay_changes_no_byte(encoders, decoders, tmp_path):
    for number in range(2):
        places = [tmp_path / f"{name}-{number}" for name in ("encoder", "decoder")]
        for source, place in zip((encoders["clip"], decoders["bert"]), places, strict=True):
            shutil.copytree(source, place)
        spec = replace(SMALL, encoder=str(places[0]), decoder=str(places[1]))
        save_network(*build_network(spec, [], seed=0), tmp_path / f"saved-{number}")
    assert hash_folder(tmp_path / "saved-0") == hash_folder(tmp_path / "saved-1")


def test_transformers_alone_loads_the_folder(small, tmp_path):
    network, tokenizer, settings = small
    save_network(network, tokenizer, settings, tmp_path)
    loaded = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids, _ = batch(tokenizer)
    with torch.no_grad():
        expected = network(images(), decoder_input_ids=ids).logits
        assert torch.equal(loaded(images(), decoder_input_ids=ids).logits, expected)
    assert words.decode(ids[3], skip_special_tokens=True) == TEXTS[3]
    assert torch.equal(loaded.generate(images()), network.generate(images()))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    gray = np.full((50, 70, 3), 51, np.uint8)
    pixels = processor(gray, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, torch.full((1, 3, SIDE, SIDE), (0.2 - 0.5) / 0.5))


# What is refused


def refused(spec: CaptionerSpec) -> str:
    with pytest.raises(UserError) as caught:
        build_network(spec, TEXTS, seed=0)
    return str(caught.value)


def folder_of(model_type: str, folder: Path, **more: object) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **more}))
    return str(folder)


def test_models_of_other_types_are_refused_with_what_is_supported(tmp_path):
    other = folder_of("t5", tmp_path)
    assert "'t5'; supported are beit" in refused(replace(SMALL, encoder=other))
    assert "'t5'; supported are bert" in refused(replace(SMALL, decoder=other))
    assert "'t5'; supported are blip" in refused(replace(SMALL, model=other))
    parts = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "t5"}}
    whole = folder_of("vision-encoder-decoder", tmp_path, **parts)
    assert "a text decoder of type 't5'" in refused(replace(SMALL, model=whole))


def test_a_folder_that_does_not_say_its_resolution_is_refused(small, tmp_path):
    save_network(*small, tmp_path)
    path = tmp_path / "preprocessor_config.json"
    for size in (224, {"shortest_edge": 224}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"size": size}))
        with pytest.raises(UserError, match=r"no size\.height"):
            load_network(tmp_path, flag="--model")


def test_a_name_that_was_not_downloaded_is_refused_offline():
    assert "--encoder some/encoder: no such folder" in refused(
        replace(SMALL, encoder="some/encoder")
    )


def test_pickled_weights_are_refused(decoders, tmp_path):
    shutil.copytree(decoders["gpt2"], tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert "it must hold config.json and model.safetensors" in refused(
        replace(SMALL, decoder=str(tmp_path))
    ).replace("It", "it")


def test_a_decoder_without_its_tokenizer_is_refused(decoders, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(decoders["gpt2"] / name, tmp_path)
    assert "tokenizer" in refused(replace(SMALL, decoder=str(tmp_path)))
    word_piece(tmp_path)
    assert "another model's" in refused(replace(SMALL, decoder=str(tmp_path)))


@pytest.mark.parametrize(("kind", "longest"), [("gpt2", 40), ("bert", 42), ("roberta", 40)])
def test_reports_longer_than_the_positions_are_refused(kind, longest, decoders):
    spec = replace(SMALL, decoder=str(decoders[kind]))
    build_network(replace(spec, max_tokens=longest), TEXTS, seed=0)
    message = refused(replace(spec, max_tokens=longest + 1))
    assert f"--max_tokens {longest + 1}: the decoder reads {longest}" in message


@pytest.mark.parametrize(("kind", "side"), [("vit", 36), ("dinov2", 36), ("swin", 8)])
def test_a_resolution_that_the_encoder_does_not_take_is_refused(kind, side, encoders):
    spec = replace(SMALL, encoder=str(encoders[kind]), resolution=side)
    assert f"--resolution {side}: " in refused(spec)


def test_a_fine_tuned_file_is_refused(encoders, tmp_path):
    mae = transformers.ViTMAEForPreTraining.from_pretrained(encoders["vit_mae"])
    state = encoder_state(mae.state_dict())
    tuned = {
        name.replace("norm.", "fc_norm.", name.startswith("norm.")): t for name, t in state.items()
    }
    save_file(tuned, tmp_path / "tuned.safetensors")
    message = refused(replace(SMALL, encoder=str(tmp_path / "tuned.safetensors")))
    assert "fine-tuned as a classifier" in message

"""Vision transformers as classifier backbones: names, weights, layer decay, drop path."""

import argparse
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from utils.backbone_names import VitSizes, is_backbone, vit_sizes
from utils.backbone_weights import full_name, load_backbone_weights
from utils.backbones import build_network
from utils.classifier import Classifier, ClassifierConfig
from utils.classifier_optim import Precision, parameter_groups
from utils.classifier_training import Examples, TrainingOptions, train_classifier
from utils.cli import UserError
from utils.gray_images import GrayImages
from utils.vit import resize_positions, set_drop_path

WIDTH, DEPTH, PATCH = 64, 3, 8
NAME = f"vit-{WIDTH}-{DEPTH}-{PATCH}"


def build(seed=0, *, name=NAME, resolution=32):
    return build_network(name, num_labels=3, resolution=resolution, seed=seed)


@dataclass(frozen=True)
class Scan:
    """What GrayImages needs of a record."""

    picture: Image.Image
    where: str = "toy"

    def image(self):
        return self.picture


def toy_images(count=7, seed=1):
    """Noise whose brighter third tells the label: the index modulo three."""
    pixels = np.random.default_rng(seed).integers(60, 160, (count, 32, 36), dtype=np.uint8)
    for index in range(count):
        pixels[index, 10 * (index % 3) : 10 * (index % 3) + 12] += 60
    return [Image.fromarray(one) for one in pixels]


def toy_examples(count, seed):
    scans = [Scan(image) for image in toy_images(count, seed)]
    images = GrayImages(scans, resolution=32, resize_mode="stretch")
    return Examples(images, np.eye(3, dtype=bool)[np.arange(count) % 3])


def config(backbone):
    return ClassifierConfig(backbone, ("a", "b", "c"), False, 32, "stretch", 0.4, 0.2, "abc")


def mae_state(*, side=32, norm="norm", width=WIDTH):
    """Tensors as MAE and RETFound name them, decoder and mask token among them."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (side // PATCH) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        f"{norm}.weight": (width,),
        f"{norm}.bias": (width,),
        "mask_token": (1, 1, 32),
        "decoder_pos_embed": (1, 17, 32),
        "decoder_embed.weight": (32, width),
        "decoder_blocks.0.norm1.weight": (32,),
    }
    for i in range(DEPTH):
        sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        shapes |= {f"blocks.{i}.{part}.weight": shape for part, shape in sizes.items()}
        shapes |= {f"blocks.{i}.{part}.bias": shape[:1] for part, shape in sizes.items()}
        shapes |= {f"blocks.{i}.{n}.{k}": (width,) for n in ("norm1", "norm2") for k in PARTS}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


PARTS = ("weight", "bias")


def forward_of_mae(state, images, norm_of_mean=(None, None)):
    """The published formulas: pre-norm blocks, mean of the patch tokens, then its norm."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    for i in range(DEPTH):
        p = {k.split(".", 2)[2]: v for k, v in state.items() if k.startswith(f"blocks.{i}.")}
        y = F.layer_norm(x, (WIDTH,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        qkv = F.linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"])
        q, k, v = qkv.chunk(3, dim=-1)
        heads = (q @ k.transpose(1, 2) / WIDTH**0.5).softmax(dim=-1) @ v  # one head of 64
        x = x + F.linear(heads, p["attn.proj.weight"], p["attn.proj.bias"])
        y = F.layer_norm(x, (WIDTH,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + F.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    return F.layer_norm(x[:, 1:].mean(dim=1), (WIDTH,), *norm_of_mean, 1e-6)


def imagenet(gray):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (gray.expand(-1, 3, -1, -1) - mean[:, None, None]) / std[:, None, None]


def test_a_name_carries_the_sizes_and_has_heads_as_published():
    assert vit_sizes("vit-1024-24-16") == VitSizes(1024, 24, 16)
    heads = {width: VitSizes(width, 1, 16).num_heads for width in (192, 384, 768, 1024, 1280)}
    assert heads == {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # ViT-Ti, S, B, L and H
    assert VitSizes(192, 6, 8).name == "vit-192-6-8"
    assert is_backbone("vit") and is_backbone("vit_b_16") and is_backbone("small")
    assert not is_backbone("vit-192-6") and not is_backbone("resnet19")


@pytest.mark.parametrize("name", ["vit-100-2-8", "vit-0-2-8", "vit-64-0-8", "vit-64-2-0"])
def test_a_name_of_sizes_that_make_no_network_is_told(name):
    with pytest.raises(UserError, match="multiple of 64"):
        vit_sizes(name)


def test_a_resolution_that_patches_do_not_fill_is_told():
    with pytest.raises(UserError, match="vit-64-3-8 cannot take 36 px images"):
        build(resolution=36)


@pytest.mark.parametrize("norm", ["norm", "fc_norm"])
def test_a_file_as_retfounds_gives_the_published_features(tmp_path, norm):
    state = mae_state(norm=norm)
    flags = argparse.Namespace(input_size=224, norm_pix_loss=True)
    torch.save({"model": state, "args": flags, "epoch": 3}, tmp_path / "retfound.pth")
    source = str(tmp_path / "retfound.pth")
    assert full_name("vit", source) == NAME
    network = build().eval()
    told = load_backbone_weights(network, NAME, source, offline=True)
    assert told.startswith("retfound.pth (sha256 ")
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    norms = [state[f"fc_norm.{k}"] for k in PARTS] if norm == "fc_norm" else (None, None)
    with torch.inference_mode():
        found, wanted = network.features(images), forward_of_mae(state, imagenet(images), norms)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


def test_a_random_network_starts_with_transformers_sine_positions():
    from transformers.models.vit_mae.modeling_vit_mae import (
        build_2d_sinusoidal_position_embedding as build_positions,
    )

    found = build().backbone.state_dict()["network.encoder.pos_embedding"]
    torch.testing.assert_close(found[0], build_positions(4, 4, WIDTH, cls_token=True))


def test_position_embeddings_are_interpolated_as_transformers_does():
    from transformers import ViTMAEConfig
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

    state = mae_state()
    sizes = {"hidden_size": WIDTH, "image_size": 32, "patch_size": PATCH}
    embeddings = ViTMAEEmbeddings(ViTMAEConfig(**sizes))
    embeddings.position_embeddings.data = state["pos_embed"]
    with torch.inference_mode():
        wanted = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 49, WIDTH), 56, 56)
    torch.testing.assert_close(resize_positions(state["pos_embed"], 7), wanted)
    assert torch.equal(resize_positions(state["pos_embed"], 4), state["pos_embed"])


def test_weights_of_another_image_size_fill_a_backbone(tmp_path):
    state = mae_state(side=32)
    save_file(state, tmp_path / "mae.safetensors")
    network = build(resolution=56)
    load_backbone_weights(network, NAME, str(tmp_path / "mae.safetensors"), offline=True)
    held = network.backbone.state_dict()
    wanted = resize_positions(state["pos_embed"], 7)
    assert torch.equal(held["network.encoder.pos_embedding"], wanted)
    key = "network.encoder.layers.encoder_layer_2.mlp.3.weight"
    assert torch.equal(held[key], state["blocks.2.mlp.fc2.weight"])


def test_a_trained_classifiers_file_is_a_start_too(tmp_path):
    source, target = build(seed=1), build(seed=2)
    Classifier(config(NAME), source).save(tmp_path / "c")
    weights = str(tmp_path / "c" / "model.safetensors")
    assert full_name("vit", weights) == NAME
    load_backbone_weights(target, NAME, weights, offline=True)
    pairs = zip(source.backbone.state_dict().values(), target.backbone.state_dict().values())
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vit-64-2-8", {}, "of another network, vit-64-3-8, not vit-64-2-8"),
        ("vit-128-3-8", {}, "vit-64-3-8, not vit-128-3-8"),
        (NAME, {"blocks.1.mlp.fc1.bias": torch.zeros(9)}, r"wrong shape: .*\(9,\), not \(256,\)"),
        (NAME, {"blocks.1.ls1.gamma": torch.zeros(64)}, r"not known: .*ls1\.gamma"),
        (NAME, {"pos_embed": torch.zeros(1, 19, 64)}, "19 positions"),
        (NAME, {"pos_embed": None}, "no vision transformer here"),
        (NAME, {"blocks.1.norm2.bias": None}, r"missing: .*encoder_layer_1\.ln_2\.bias"),
    ],
)
def test_a_file_of_another_network_is_refused(tmp_path, name, change, message):
    state = {k: v for k, v in (mae_state() | change).items() if v is not None}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=message):
        source = str(tmp_path / "other.safetensors")
        load_backbone_weights(build(name=name), name, source, offline=True)


def test_vit_without_sizes_needs_weights():
    for source in ("none", "IMAGENET1K_V1"):
        with pytest.raises(UserError, match="takes its sizes from --backbone_weights"):
            full_name("vit", source)
    with pytest.raises(UserError, match="no published weights"):
        load_backbone_weights(build(), NAME, "IMAGENET1K_V1", offline=True)
    assert full_name("resnet18", "none") == "resnet18"


def layer_of_mae(name, num_layers):
    """The rule of MAE's and BEiT's fine-tuning, on their own names of the parameters."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else num_layers


def test_layer_decay_is_that_of_mae(tmp_path):
    from utils.vit import own_layout

    network = build()
    rates = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(network, 0.05, layer_decay=0.65)
        for p in group["params"]
    }
    own = dict(network.named_parameters())
    published = [n for n in mae_state(norm="fc_norm") if not n.startswith(("decoder_", "mask_"))]
    own_names = [f"backbone.{n}" for n in own_layout({n: torch.zeros(1) for n in published})]
    pairs = [*zip(published, own_names), ("head.weight", "head.weight"), ("head.bias", "head.bias")]
    assert sorted(n for _, n in pairs) == sorted(own)
    for theirs, ours in pairs:
        scale, decay = rates[id(own[ours])]
        assert scale == pytest.approx(0.65 ** (DEPTH + 1 - layer_of_mae(theirs, DEPTH + 1)))
        plain = own[ours].ndim == 1 or theirs in ("cls_token", "pos_embed")
        assert decay == (0.0 if plain else 0.05)


def test_without_layer_decay_every_rate_is_the_same_and_others_refuse_it():
    assert {group["lr_scale"] for group in parameter_groups(build(), 0.05)} == {1.0}
    small = build(name="small")
    with pytest.raises(UserError, match="--layer_decay: only vision transformers"):
        parameter_groups(small, 0.05, layer_decay=0.65)
    with pytest.raises(UserError, match="--drop_path: only vision transformers"):
        set_drop_path(small, 0.2)


def test_a_step_moves_a_lower_layer_less():
    network = build()
    optimizer = torch.optim.SGD(parameter_groups(network, 0.0, layer_decay=0.5))
    loss = sum(p.sum() for p in network.parameters())
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        size = sum(p.numel() for p in network.parameters()) ** 0.5
    Precision("cpu", "no").descend(loss, optimizer, network, rate=1e-2)
    moved = {n: float((before[n] - p).detach().mean()) for n, p in network.named_parameters()}
    step = 1e-2 * 5 / size  # the gradient of ones, its norm cut at five
    assert moved["head.bias"] == pytest.approx(step, rel=0.02)
    assert moved["backbone.network.class_token"] == pytest.approx(step / 16, rel=0.02)


def test_drop_path_skips_deep_blocks_in_training_and_none_in_evaluation():
    plain, dropping = build(), build()
    set_drop_path(dropping, 1.0 - 1e-9)
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(dropping.eval().features(images), plain.eval().features(images))
    seen = []
    blocks = dropping.backbone.network.encoder.layers
    for block in (blocks[0], blocks[-1]):
        block.register_forward_hook(lambda _, args, out: seen.append(torch.equal(args[0], out)))
    dropping.train()(images)
    assert seen == [False, True]


def test_a_trained_vit_is_the_same_for_the_same_seed_and_after_loading(tmp_path):
    options = TrainingOptions(max_epochs=2, batch_size=8, seed=3, label_smoothing=0.1)
    options = replace(options, layer_decay=0.65, learning_rate=1e-3)
    trained = []
    for chance, rate in ((1, 0.2), (2, 0.2), (2, 0.0)):
        torch.manual_seed(chance)  # drop path must not depend on what others drew
        result = train_classifier(
            build(seed=3),
            toy_examples(24, 0),
            toy_examples(9, 1),
            multi_label=False,
            options=replace(options, drop_path=rate),
            device="cpu",
        )
        trained.append(Classifier(config(NAME), result.network))
    assert trained[0].sha256 == trained[1].sha256 != trained[2].sha256
    trained[0].save(tmp_path / "c")
    loaded = Classifier.load(tmp_path / "c")
    assert loaded.predict(toy_images()).tobytes() == trained[0].predict(toy_images()).tobytes()
    assert (
        loaded.features(toy_images()[:1]).tobytes() == loaded.features(toy_images())[:1].tobytes()
    )
    assert np.ptp(loaded.predict(toy_images()), axis=0).max() > 0

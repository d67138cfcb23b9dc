"""CLIP, DINOv2 and vision transformers: the numbers of the library that made the weights."""

import argparse

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from utils import features
from utils.cli import UserError

SIDE = 28
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 7,
    "projection_dim": 16,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "projection_dim": 16,
}


def scans(count, side=SIDE, mode="L"):
    rng = np.random.default_rng(side)
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.3] * 3,
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    sizes = {key: value for key, value in VISION.items() if key != "projection_dim"}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


def test_clip_agrees_with_transformers_own_processor_and_model(clip_folder):
    images = [image.convert("RGB") for image in scans(3)]
    model = transformers.CLIPModel.from_pretrained(clip_folder)
    inputs = transformers.AutoImageProcessor.from_pretrained(clip_folder)(
        images=images, return_tensors="pt"
    )
    with torch.inference_mode():
        embedded = model.get_image_features(**inputs).pooler_output
    extractor = features.load_extractor("clip", weights=clip_folder)
    found = features.extract(extractor, scans(3))
    assert found.pool == pytest.approx(functional.normalize(embedded).numpy(), abs=1e-6)
    assert np.linalg.norm(found.pool, axis=1) == pytest.approx(1)
    assert found.logits is None
    assert (extractor.dim, extractor.input_px, extractor.num_logits) == (16, SIDE, 0)


def test_dinov2_is_the_class_token_of_transformers_and_has_imagenets_range(dino_folder):
    processor = transformers.BitImageProcessor(
        size={"height": 224, "width": 224},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=Image.Resampling.BICUBIC,
    )
    images = [image.convert("RGB") for image in scans(2, 224)]
    model = transformers.Dinov2Model.from_pretrained(dino_folder)
    with torch.inference_mode():
        wanted = model(**processor(images=images, return_tensors="pt")).pooler_output.numpy()
    extractor = features.load_extractor("dinov2", weights=dino_folder)
    assert extractor.input_px == 224
    assert features.extract(extractor, scans(2, 224)).pool == pytest.approx(wanted, abs=1e-5)


def test_a_small_image_is_enlarged_bicubic_and_gray_stays_one_channel(clip_folder):
    extractor = features.load_extractor("clip", weights=clip_folder)
    (small,) = scans(1, 20)
    enlarged = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    assert extractor.prepare(small)[:, :, 0].tobytes() == enlarged.tobytes()
    assert extractor.prepare(scans(1, 40, "RGB")[0]).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_batch_size_and_order_change_no_bit(name, clip_folder, dino_folder):
    folder = {"clip": clip_folder, "dinov2": dino_folder}[name]
    extractor = features.load_extractor(name, weights=folder)
    images = scans(11)
    first = features.extract(extractor, images, batch_size=1).pool
    assert features.extract(extractor, images, batch_size=64).pool.tobytes() == first.tobytes()
    backwards = features.extract(extractor, images[::-1], batch_size=5).pool
    assert backwards[::-1].tobytes() == first.tobytes()


def test_another_model_an_incomplete_one_and_a_name_offline_are_refused(
    clip_folder, dino_folder, tmp_path
):
    with pytest.raises(UserError, match="model type is 'dinov2'; give openai/clip"):
        features.load_extractor("clip", weights=dino_folder)
    with pytest.raises(UserError, match="model type is 'clip'; give facebook/dinov2"):
        features.load_extractor("dinov2", weights=clip_folder)
    with pytest.raises(UserError, match="nobody/nothing: no such folder"):
        features.load_extractor("clip", weights="nobody/nothing")
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):
        features.load_extractor("clip", weights=tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="save_pretrained"):
        features.load_extractor("clip", weights=tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="these weights lack"):
        features.load_extractor("clip", weights=tmp_path)


class Attention(nn.Module):
    """One layer as MAE and timm name its parts, written out."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 48), "fc2": nn.Linear(48, width)})

    def forward(self, x):
        count, tokens, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).view(count, tokens, 3, width // 64, 64)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        seen = (query @ key.transpose(2, 3) / 8).softmax(dim=-1) @ value
        x = x + self.attn["proj"](seen.transpose(1, 2).reshape(x.shape))
        hidden = self.mlp["fc1"](self.norm2(x))
        return x + self.mlp["fc2"](hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)


class MaeEncoder(nn.Module):
    """A tiny encoder in MAE's layout: 32 px, patches of 8, two heads."""

    def __init__(self, norm, width=128):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 8, 8)})
        self.blocks = nn.ModuleList([Attention(width) for _ in range(3)])
        self.add_module(norm, nn.LayerNorm(width, eps=1e-6))
        for parameter in self.get_submodule(norm).parameters():
            nn.init.normal_(parameter)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        if hasattr(self, "norm"):
            return self.norm(x)[:, 1:].mean(dim=1)
        return self.fc_norm(x[:, 1:].mean(dim=1))


@pytest.mark.parametrize("norm", ["norm", "fc_norm"])
def test_vit_agrees_with_the_formulas_of_mae(tmp_path, norm):
    torch.manual_seed(0)
    reference = MaeEncoder(norm)
    state = reference.state_dict()
    state |= {"decoder_embed.weight": torch.zeros(2, 2), "mask_token": torch.zeros(1, 1, 2)}
    state["decoder_blocks.0.norm1.weight"] = torch.zeros(2)
    state["head.weight"] = torch.zeros(2, 128)
    flags = argparse.Namespace(input_size=224, norm_pix_loss=True, blr=1e-3)
    torch.save({"model": state, "args": flags, "epoch": 3}, tmp_path / "mae.pth")
    save_file(dict(state), tmp_path / "mae.safetensors")
    images = scans(3, 32)
    pixels = torch.from_numpy(np.stack([np.asarray(i.convert("RGB")) for i in images]))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        wanted = reference(((pixels / 255 - mean) / std).permute(0, 3, 1, 2)).numpy()
    for path in (tmp_path / "mae.pth", tmp_path / "mae.safetensors"):
        extractor = features.load_extractor("vit", weights=path)
        found = features.extract(extractor, images)
        assert found.pool == pytest.approx(wanted, abs=2e-5)
        assert (extractor.dim, extractor.input_px, found.logits) == (128, 32, None)


def test_a_vit_file_with_code_or_of_another_network_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    state = MaeEncoder("norm").state_dict()
    torch.save({"model": state, "args": argparse.Namespace(trap=Trap())}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match=r"trap\.pth: not a readable file"):
        features.load_extractor("vit", weights=tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()
    for change, message in (
        ({"pos_embed": torch.zeros(1, 18, 128)}, "18 positions"),
        ({"blocks.1.ls1.gamma": torch.zeros(128)}, "ls1.gamma"),
        ({"blocks.1.mlp.fc1.bias": torch.zeros(47)}, "mlp.0.bias do not fit, 1 in all"),
    ):
        save_file(state | change, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match=message):
            features.load_extractor("vit", weights=tmp_path / "other.safetensors")
    del state["pos_embed"]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no vision transformer here"):
        features.load_extractor("vit", weights=tmp_path / "other.safetensors")

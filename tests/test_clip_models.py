"""Image-text models: the embeddings of the library that made the weights, whatever the batch."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional

from utils import features
from utils.cli import UserError
from utils.clip_models import load_image_text_model

SIDE = 32
TEXTS = [
    "drusen",
    "a retina with cysts and fluid",
    "normal",
    "fluid",
    "x " * 60,
    "",
    "no cysts",
] * 2
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "and",
    "cysts",
    "drusen",
    "fluid",
    "no",
    "normal",
    "of",
    "retina",
    "with",
]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def scans(count):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)) for _ in range(count)]


def normalised(images, mean, std):
    pixels = torch.from_numpy(np.stack([np.asarray(i.convert("RGB")) for i in images]))
    return ((pixels / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory, tiny_clip):
    folder = tmp_path_factory.mktemp("siglip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tiny_clip)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    transformers.SiglipModel(
        transformers.SiglipConfig(
            vision_config=TOWER | {"image_size": SIDE, "patch_size": 8},
            text_config=TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 20},
        )
    ).save_pretrained(folder)
    return folder


def timm_layout(width, *, depth=2, side=SIDE, patch=8):
    """Tensors of a vision transformer, and the same network written with torch's own layers."""
    trunk = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, (side // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": torch.randn(width, 3, patch, patch) / 10,
        "patch_embed.proj.bias": torch.randn(width),
        "norm.weight": torch.randn(width),
        "norm.bias": torch.randn(width),
    }
    layers = []
    for index in range(depth):
        layer = torch.nn.TransformerEncoderLayer(
            width,
            width // 64,
            2 * width,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        layers.append(layer.eval())
        names = {
            "norm1": layer.norm1,
            "norm2": layer.norm2,
            "attn.proj": layer.self_attn.out_proj,
            "mlp.fc1": layer.linear1,
            "mlp.fc2": layer.linear2,
        }
        for name, part in names.items():
            trunk[f"blocks.{index}.{name}.weight"] = part.weight.data
            trunk[f"blocks.{index}.{name}.bias"] = part.bias.data
        trunk[f"blocks.{index}.attn.qkv.weight"] = layer.self_attn.in_proj_weight.data
        trunk[f"blocks.{index}.attn.qkv.bias"] = layer.self_attn.in_proj_bias.data
    return trunk, layers


@pytest.fixture(scope="module")
def biomed(tmp_path_factory):
    """A folder in BiomedCLIP's layout, and its parts."""
    folder = tmp_path_factory.mktemp("biomed")
    torch.manual_seed(0)
    trunk, layers = timm_layout(128)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=96,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    heads = {
        "visual.head.proj.weight": torch.randn(24, 128),
        "text.proj.0.weight": torch.randn(44, 64),
        "text.proj.2.weight": torch.randn(24, 44),
        "logit_scale": torch.tensor(4.6),
    }
    state = {f"visual.trunk.{name}": tensor for name, tensor in trunk.items()}
    state |= {f"text.transformer.{name}": tensor for name, tensor in bert.state_dict().items()}
    state["text.transformer.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(state | heads, folder / "open_clip_pytorch_model.bin")
    vision = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear"}
    text = {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "mlp"}
    settings = {
        "model_cfg": {"vision_cfg": vision, "text_cfg": text | {"context_length": 24}},
        "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder, trunk, layers, bert, heads


def agrees(found, wanted, *, atol=2e-6):
    assert found == pytest.approx(functional.normalize(wanted, dim=1).numpy(), abs=atol)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    assert found.std(axis=0).max() > 1e-3  # the embeddings differ, so agreement says something


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_clip_and_siglip_agree_with_transformers(kind, tiny_clip, siglip_folder):
    folder = {"clip": tiny_clip, "siglip": siglip_folder}[kind]
    ours = load_image_text_model(str(folder))
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(folder)(
        TEXTS,
        padding="max_length",
        truncation=True,
        max_length=77 if kind == "clip" else 20,
        return_tensors="pt",
    )
    seen = tokens if kind == "clip" else {"input_ids": tokens["input_ids"]}
    mean, std = (
        ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
        if kind == "clip"
        else ([0.5] * 3, [0.5] * 3)
    )
    with torch.inference_mode():
        texts = reference.get_text_features(**seen).pooler_output
        images = reference.get_image_features(normalised(scans(3), mean, std)).pooler_output
    agrees(ours.embed_texts(TEXTS), texts)
    agrees(features.extract(ours, scans(3)).pool, images)
    assert ours.dim == texts.shape[1]


def test_biomedclip_agrees_with_its_formulas(biomed):
    folder, trunk, layers, bert, heads = biomed
    ours = load_image_text_model(str(folder))
    tokens = transformers.BertTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
    )
    with torch.inference_mode():
        first = bert(**tokens).last_hidden_state[:, 0] @ heads["text.proj.0.weight"].T
        texts = functional.gelu(first) @ heads["text.proj.2.weight"].T
        x = functional.conv2d(
            normalised(scans(3), [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]),
            trunk["patch_embed.proj.weight"],
            trunk["patch_embed.proj.bias"],
            stride=8,
        )
        x = torch.cat([trunk["cls_token"].expand(3, -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + trunk["pos_embed"]
        for layer in layers:
            x = layer(x)
        x = functional.layer_norm(x, (128,), trunk["norm.weight"], trunk["norm.bias"], eps=1e-6)
        images = x[:, 0] @ heads["visual.head.proj.weight"].T
    agrees(ours.embed_texts(TEXTS), texts)
    agrees(features.extract(ours, scans(3)).pool, images)
    assert (ours.dim, ours.input_px) == (24, SIDE)


@pytest.mark.parametrize("kind", ["clip", "biomed"])
def test_a_texts_embedding_is_its_own_to_the_last_bit(kind, tiny_clip, biomed):
    ours = load_image_text_model(str(tiny_clip if kind == "clip" else biomed[0]))
    together = ours.embed_texts(TEXTS)
    alone = np.concatenate([ours.embed_texts([text], batch_size=1) for text in TEXTS])
    assert together.tobytes() == alone.tobytes()
    assert ours.embed_texts([]).shape == (0, ours.dim)


def test_what_is_no_image_text_model_is_refused(tiny_clip, biomed, tmp_path):
    with pytest.raises(UserError, match="nobody/nothing: no such folder"):
        load_image_text_model("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(UserError, match="model type is 'bert'"):
        load_image_text_model(str(tmp_path))
    half = tmp_path / "half"
    shutil.copytree(tiny_clip, half, ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    with pytest.raises(UserError, match="tokenizer"):
        load_image_text_model(str(half))
    other = tmp_path / "other"
    shutil.copytree(biomed[0], other)
    settings = (other / "open_clip_config.json").read_text(encoding="utf-8")
    (other / "open_clip_config.json").write_text(
        settings.replace('"mlp"', '"linear"'), encoding="utf-8"
    )
    with pytest.raises(UserError, match="hf_proj_type 'linear'"):
        load_image_text_model(str(other))
    (other / "open_clip_config.json").write_text(settings, encoding="utf-8")
    (other / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"none of open_clip_model\.safetensors"):
        load_image_text_model(str(other))

"""Backbones and the weights they start from."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from utils.backbone_names import TORCHVISION_BACKBONES
from utils.backbone_weights import load_backbone_weights
from utils.backbones import build_network
from utils.cli import UserError


def small(seed=0, num_labels=3):
    return build_network("small", num_labels=num_labels, resolution=32, seed=seed)


def contiguous(state):
    return {key: value.contiguous() for key, value in state.items()}


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_the_known_names_are_torchvisions_classification_models():
    models = pytest.importorskip("torchvision").models
    assert sorted(TORCHVISION_BACKBONES) == models.list_models(module=models)


def test_random_weights_depend_on_the_seed_alone_and_leave_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = small(seed=1).state_dict()
    assert torch.equal(torch.rand(1), expected)
    assert same(first, small(seed=1).state_dict())
    assert not same(first, small(seed=2).state_dict())


def test_the_small_backbone_has_under_a_million_parameters():
    assert 300_000 < sum(p.numel() for p in small().parameters()) < 1_000_000


@pytest.mark.parametrize(
    ("name", "feature_dim"), [("small", 256), ("resnet18", 512), ("squeezenet1_1", 512)]
)
def test_features_times_head_are_the_logits_of_a_gray_image(name, feature_dim):
    network = build_network(name, num_labels=4, resolution=64, seed=0).eval()
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        features = network.features(images)
        assert features.shape == (2, feature_dim)
        torch.testing.assert_close(network.head(features), network(images))


def test_a_vision_transformer_takes_the_resolution_asked_for():
    network = build_network("vit_b_32", num_labels=2, resolution=64, seed=0).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 64, 64)).shape == (1, 2)


def test_a_resolution_that_a_network_cannot_take_is_told():
    with pytest.raises(UserError, match="vit_b_32 cannot take 72 px"):
        build_network("vit_b_32", num_labels=2, resolution=72, seed=0)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(UserError, match="'resnet19' is neither"):
        build_network("resnet19", num_labels=2, resolution=32, seed=0)


def test_weights_of_a_saved_network_fill_the_backbone_and_leave_the_head(tmp_path):
    source, target = small(seed=1), small(seed=2, num_labels=5)
    head = target.head.weight.clone()
    save_file(contiguous(source.state_dict()), tmp_path / "model.safetensors")
    told = load_backbone_weights(target, "small", str(tmp_path / "model.safetensors"), offline=True)
    assert same(source.backbone.state_dict(), target.backbone.state_dict())
    assert torch.equal(target.head.weight, head)
    assert "model.safetensors" in told and "sha256" in told


def test_weights_of_a_data_parallel_checkpoint_with_another_head_are_taken(tmp_path):
    from torchvision import models

    source = models.resnet18(weights=None, num_classes=7)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    target = build_network("resnet18", num_labels=2, resolution=64, seed=0)
    load_backbone_weights(target, "resnet18", str(tmp_path / "checkpoint.pth"), offline=True)
    assert torch.equal(target.backbone.conv1.weight, source.conv1.weight)


def test_old_names_of_densenet_are_understood(tmp_path):
    from torchvision import models

    source = models.densenet121(weights=None).state_dict()
    old = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for key, value in source.items()
    }
    assert set(old) != set(source)
    torch.save(old, tmp_path / "densenet121.pth")
    target = build_network("densenet121", num_labels=2, resolution=64, seed=0)
    load_backbone_weights(target, "densenet121", str(tmp_path / "densenet121.pth"), offline=True)
    key = "features.denseblock1.denselayer1.conv2.weight"
    assert torch.equal(target.backbone.state_dict()[key], source[key])


def test_weights_of_another_network_are_refused_with_the_tensor_named(tmp_path):
    state = small().state_dict()
    state["backbone.layers.0.weight"] = torch.zeros(24, 3, 5, 5)
    del state["backbone.layers.1.bias"]
    save_file(contiguous(state), tmp_path / "other.safetensors")
    with pytest.raises(UserError) as error:
        load_backbone_weights(small(), "small", str(tmp_path / "other.safetensors"), offline=True)
    assert "layers.0.weight is (24, 3, 5, 5), not (24, 1, 5, 5)" in str(error.value)
    assert "missing: layers.1.bias" in str(error.value)


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def test_pickled_code_in_a_weight_file_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("bomb.pth", "bomb.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(), protocol=2))
        with pytest.raises(UserError, match=name):
            load_backbone_weights(small(), "small", str(tmp_path / name), offline=True)
    torch.save({"state_dict": Bomb()}, tmp_path / "zipped.pth")
    with pytest.raises(UserError, match=r"zipped\.pth"):
        load_backbone_weights(small(), "small", str(tmp_path / "zipped.pth"), offline=True)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_weight_file_and_an_unknown_weight_name_are_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_backbone_weights(small(), "small", str(tmp_path / "no.pth"), offline=True)
    with pytest.raises(UserError, match="no published weights"):
        load_backbone_weights(small(), "small", "IMAGENET1K_V1", offline=True)
    network = build_network("resnet18", num_labels=2, resolution=64, seed=0)
    with pytest.raises(UserError, match="torchvision has IMAGENET1K_V1"):
        load_backbone_weights(network, "resnet18", "IMAGENET9K", offline=True)


def test_offline_names_the_missing_file_instead_of_downloading(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = build_network("resnet18", num_labels=2, resolution=64, seed=0)
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth is missing; fetch https://"):
        load_backbone_weights(network, "resnet18", "IMAGENET1K_V1", offline=True)


def test_published_weights_already_on_disk_are_used_offline(tmp_path, monkeypatch):
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = models.resnet18(weights=None)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(source.state_dict(), cache / "resnet18-f37072fd.pth")
    network = build_network("resnet18", num_labels=2, resolution=64, seed=0)
    load_backbone_weights(network, "resnet18", "IMAGENET1K_V1", offline=True)
    assert torch.equal(network.backbone.conv1.weight, source.conv1.weight)

"""The linear probe: the right minimum, the right strength, a head that can be used."""

import warnings

import numpy as np
import pytest
import torch

from utils import linear_probe
from utils.backbones import build_network
from utils.classifier import Classifier, ClassifierConfig
from utils.linear_probe import fit_linear_probe

COUNTS = (60, 25, 2)  # the last weighs ten at most


def blobs(counts=COUNTS, *, dim=8, seed=0, spread=1.5):
    """Overlapping Gaussian classes, features of very different scales and one that is constant."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (len(counts), dim))
    labels = np.repeat(np.arange(len(counts)), counts)
    features = centres[labels] + spread * rng.normal(size=(len(labels), dim))
    features = features * np.logspace(-2, 3, dim) + 7
    flat = np.full(len(labels), 0.1, np.float32)
    flat[::2] = np.nextafter(flat[::2], 1)  # constant but for the rounding
    features = np.column_stack([features.astype(np.float32), flat])
    return features, np.eye(len(counts), dtype=bool)[labels]


def several(features, seed=0):
    """Two labels that occur together or not, (N, 2) bool."""
    rng = np.random.default_rng(seed)
    first = features[:, 2] - features[:, 2].mean() + rng.normal(size=len(features)) > 0
    return np.column_stack([first, rng.random(len(features)) < 0.2])


def fit(train, val=None, **options):
    options = {"multi_label": False, "class_balance": "loss"} | options
    return fit_linear_probe(*train, *(val or train), **options)


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def logits_of(probe, features):
    return features.astype(np.float64) @ probe.weight.T + probe.bias


def standardised(features):
    std = features.std(axis=0, dtype=np.float64)
    return (features - features.mean(axis=0, dtype=np.float64)) / np.where(std > 1e-6, std, 1)


def reference(features, labels, *, sample_weight, l2):
    """scikit-learn's probabilities at the same strength."""
    from sklearn.linear_model import LogisticRegression

    strength = 1 / (l2 * sample_weight.sum())
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    scaled = standardised(features)
    return model.fit(scaled, labels, sample_weight=sample_weight).predict_proba(scaled)


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
@pytest.mark.parametrize("class_balance", ["loss", "none"])
def test_the_minimum_is_that_of_scikit_learn(monkeypatch, class_balance, l2):
    monkeypatch.setattr(linear_probe, "STRENGTHS", (l2,))
    features, targets = blobs()
    labels = targets.argmax(axis=1)
    probe = fit((features, targets), class_balance=class_balance)
    weights = np.minimum(len(labels) / (3 * np.array(COUNTS)), 10)[labels]  # rarity, up to tenfold
    if class_balance == "none":
        weights = np.ones(len(labels))
    wanted = reference(features, labels, sample_weight=weights, l2=l2)
    assert probe.l2 == l2
    np.testing.assert_allclose(softmax(logits_of(probe, features)), wanted, atol=1e-4)


def test_the_minimum_of_each_label_is_that_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(linear_probe, "STRENGTHS", (1e-2,))
    features, _ = blobs()
    targets = several(features)
    probe = fit((features, targets), multi_label=True)
    for k in range(2):
        positives = targets[:, k].sum()
        weights = np.where(targets[:, k], (len(targets) - positives) / positives, 1.0)
        # Here the loss is a mean over images, not over their weights.
        l2 = 1e-2 * len(targets) / weights.sum()
        wanted = reference(features, targets[:, k], sample_weight=weights, l2=l2)[:, 1]
        found = 1 / (1 + np.exp(-logits_of(probe, features)[:, k]))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_strength_is_the_one_with_the_lowest_validation_loss(monkeypatch):
    train, val = blobs((10, 10, 10), seed=1), blobs((200, 200, 200), seed=2)
    chosen = fit(train, val)
    losses = {}
    for l2 in linear_probe.STRENGTHS:
        monkeypatch.setattr(linear_probe, "STRENGTHS", (l2,))
        losses[l2] = fit(train, val).val_loss
    assert chosen.l2 == min(losses, key=losses.get)
    assert chosen.l2 not in (max(losses), min(losses))  # the range is wide enough
    assert chosen.val_loss == pytest.approx(min(losses.values()), abs=1e-6)
    probs = softmax(logits_of(chosen, val[0]))[val[1]]
    assert chosen.val_loss == pytest.approx(float(-np.log(probs).mean()), rel=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_few_images_of_many_features_and_a_label_with_one_are_fitted(multi_label):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, val = blobs((4, 3, 1), dim=50, seed=3), blobs((30, 30, 30), dim=50, seed=4)
        probe = fit(train, val, multi_label=multi_label)
    assert np.isfinite(probe.weight).all() and np.isfinite(probe.bias).all()
    assert np.abs(probe.weight[:, -1]).max() < 1e-6  # the constant feature
    right = logits_of(probe, val[0]).argmax(axis=1) == val[1].argmax(axis=1)
    assert right.mean() > 0.5


def test_the_same_images_give_the_same_bytes():
    one, other = (fit(blobs(), blobs(seed=5)) for _ in range(2))
    assert one.weight.tobytes() == other.weight.tobytes()
    assert one.bias.tobytes() == other.bias.tobytes()


def test_a_probed_network_is_a_classifier_with_the_probes_probabilities(tmp_path):
    network = build_network("small", num_labels=3, resolution=32, seed=0)
    config = ClassifierConfig("small", ("a", "b", "c"), False, 32, "stretch", 0.5, 0.25, "abc")
    rng = np.random.default_rng(0)
    gray = [rng.integers(0, 60 + 60 * (n % 3), (32, 32)).astype(np.uint8) for n in range(18)]
    targets = np.eye(3, dtype=bool)[np.arange(18) % 3]
    features = Classifier(config, network).predict_gray(gray)[1]
    probe = fit((features, targets))
    probe.fill(network)
    Classifier(config, network).save(tmp_path)
    probs, _ = Classifier.load(tmp_path).predict_gray(gray)
    np.testing.assert_allclose(probs, softmax(logits_of(probe, features)), atol=1e-5)
    assert (probs.argmax(axis=1) == np.arange(18) % 3).all()
    assert network.head.weight.dtype == torch.float32

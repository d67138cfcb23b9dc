"""Logistic regression on frozen features, the linear probe of self-supervised learning.

Zhang et al. 2016 (https://arxiv.org/abs/1603.08511), as He et al. 2022 measure a masked
autoencoder. Shapes: N images, D features, L labels; all arithmetic in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_expit, log_softmax

from utils.backbones import Network
from utils.classifier_loss import class_weights

# Tried from strong to weak, each from the solution before. Standardised features make one range fit
# all networks: the strongest all but switches them off, the weakest fits few images without error.
STRENGTHS = tuple(10 ** (step / 2) for step in range(4, -9, -1))
_MAX_ITERATIONS = 2000
_GRADIENT_TOLERANCE = 1e-7
_ROUNDING = float(np.finfo(np.float32).eps)  # a feature that varies by less is constant

Loss = Callable[[np.ndarray], tuple[float, np.ndarray]]  # logits (N, L) -> loss, its gradient


@dataclass(frozen=True)
class Probe:
    """A linear layer on features as they are, the standardisation folded in.

    Attributes:
        weight: (L, D) float64.
        bias: (L,) float64.
        l2: Strength of the penalty, chosen among ``STRENGTHS``.
        val_loss: Loss of the validation images at that strength, without the penalty.
    """

    weight: np.ndarray
    bias: np.ndarray
    l2: float
    val_loss: float

    def fill(self, network: Network) -> None:
        """Make this a network's head."""
        with torch.no_grad():
            network.head.weight.copy_(torch.from_numpy(self.weight))
            network.head.bias.copy_(torch.from_numpy(self.bias))


def fit_linear_probe(
    train_features: np.ndarray,
    train_targets: np.ndarray,
    val_features: np.ndarray,
    val_targets: np.ndarray,
    *,
    multi_label: bool,
    class_balance: str,
) -> Probe:
    """The probe whose strength of penalty has the lowest validation loss; the stronger if equal.

    Minimises ``loss + l2 / 2 |W|^2`` over features that have mean 0 and variance 1 in training; the
    loss is a mean over the images, weighted as a classifier's training weighs them (see
    ``class_weights``), the bias is not penalised.

    Args:
        train_features: (N, D).
        train_targets: (N, L) bool, every column with a True.
        val_features: (M, D), of other patients.
        val_targets: (M, L) bool.
        multi_label: Independent (sigmoid) labels instead of exclusive ones (softmax).
        class_balance: ``loss`` or ``none``.
    """
    mean, std = (f(train_features, axis=0, dtype=np.float64) for f in (np.mean, np.std))
    scale = np.where(std > _ROUNDING * np.abs(mean), std, 1)
    train, val = ((f.astype(np.float64) - mean) / scale for f in (train_features, val_features))
    weights = np.ones(train_targets.shape[1])
    if class_balance == "loss":
        weights = class_weights(train_targets, multi_label=multi_label).numpy().astype(np.float64)
    make_loss = _binary_loss if multi_label else _softmax_loss
    loss, val_loss = (make_loss(targets, weights) for targets in (train_targets, val_targets))
    solution = np.zeros((train_targets.shape[1], train.shape[1] + 1))  # the last column is the bias
    fits = []
    for l2 in STRENGTHS:
        solution = _minimise(train, loss, l2, start=solution)
        fits.append((val_loss(_logits(val, solution))[0], l2, solution))
    lowest, l2, best = min(fits, key=lambda fit: fit[0])
    weight = best[:, :-1] / scale
    return Probe(weight, best[:, -1] - weight @ mean, l2, float(lowest))


def _logits(features: np.ndarray, solution: np.ndarray) -> np.ndarray:
    return features @ solution[:, :-1].T + solution[:, -1]


def _minimise(features: np.ndarray, loss: Loss, l2: float, *, start: np.ndarray) -> np.ndarray:
    """Weights and bias (L, D + 1) at the minimum, by L-BFGS from ``start``."""

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        solution = flat.reshape(start.shape)
        value, slope = loss(_logits(features, solution))
        gradient = np.column_stack([slope.T @ features, slope.sum(axis=0)])
        gradient[:, :-1] += l2 * solution[:, :-1]
        return value + l2 / 2 * float((solution[:, :-1] ** 2).sum()), gradient.ravel()

    options = {"maxiter": _MAX_ITERATIONS, "gtol": _GRADIENT_TOLERANCE, "ftol": 0.0}
    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape)


def _softmax_loss(targets: np.ndarray, weights: np.ndarray) -> Loss:
    """Cross-entropy, weighted by class, as a mean over the weights of the images."""
    shares = targets * weights
    shares = shares / shares.sum()

    def loss(logits: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(logits, axis=1)
        slope = np.exp(logs) * shares.sum(axis=1, keepdims=True) - shares
        return -float((shares * logs).sum()), slope

    return loss


def _binary_loss(targets: np.ndarray, weights: np.ndarray) -> Loss:
    """Binary cross-entropy, positives weighted by label, as a mean over images and sum of labels.

    The sum, not the mean: so the penalty is each label's own, whatever their number.
    """
    count = len(targets)
    positive, negative = targets * weights / count, ~targets / count

    def loss(logits: np.ndarray) -> tuple[float, np.ndarray]:
        value = positive * log_expit(logits) + negative * log_expit(-logits)
        slope = negative * np.exp(log_expit(logits)) - positive * np.exp(log_expit(-logits))
        return -float(value.sum()), slope

    return loss

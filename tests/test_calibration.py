"""Temperature: it is found again, never makes validation images less likely, and stays sane."""

import numpy as np
import pytest

from utils.calibration import fit_temperature, negative_log_likelihood


def simulate(seed, *, count, temperature, multi_label=False, num_labels=4):
    """Logits that are too large by the temperature, and targets drawn from the true ones."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, num_labels))
    if multi_label:
        targets = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    else:
        noisy = logits + rng.gumbel(size=logits.shape)  # the largest is a draw from the softmax
        targets = np.eye(num_labels, dtype=bool)[noisy.argmax(axis=1)]
    return logits * temperature, targets


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found_again(multi_label, temperature):
    logits, targets = simulate(0, count=4000, temperature=temperature, multi_label=multi_label)
    found = fit_temperature(logits, targets, multi_label=multi_label)
    assert found == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_likelihood_of_the_validation_images_never_falls(multi_label):
    for seed in range(40):
        count = [0, 1, 2, 5, 30][seed % 5]
        logits, targets = simulate(
            seed, count=count, temperature=10 ** (seed / 20 - 1), multi_label=multi_label
        )
        found = fit_temperature(logits, targets, multi_label=multi_label)
        before = negative_log_likelihood(logits, targets, multi_label)
        assert negative_log_likelihood(logits / found, targets, multi_label) <= before + 1e-12


def test_it_is_the_minimum_of_the_penalised_likelihood():
    logits, targets = simulate(1, count=25, temperature=4.0)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 20_001))
    loss = [
        negative_log_likelihood(logits / t, targets, multi_label=False) + np.log(t) ** 2 / 2
        for t in grid
    ]
    found = fit_temperature(logits, targets, multi_label=False)
    assert found == pytest.approx(grid[np.argmin(loss)], rel=1e-3)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_perfectly_separated_images_do_not_drive_it_to_zero(count):
    logits = 3.0 * np.eye(2)[np.arange(count) % 2]
    targets = logits > 0
    assert 0.4 < fit_temperature(logits, targets, multi_label=False) < 1


def test_confident_errors_do_not_drive_it_to_infinity():
    logits = 50.0 * np.eye(2)[np.arange(20) % 2]
    assert fit_temperature(logits, logits == 0, multi_label=False) == pytest.approx(20)


def test_without_images_nothing_changes():
    assert fit_temperature(np.zeros((0, 3)), np.zeros((0, 3), bool), multi_label=False) == 1


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="differ"):
        fit_temperature(np.zeros((3, 2)), np.zeros((2, 2), bool), multi_label=False)
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(np.full((1, 2), np.inf), np.eye(2, dtype=bool)[:1], multi_label=False)

import math

import pytest
import torch

from utils.preference_loss import dpo_loss, implicit_accuracy, preference_margin
from utils.training_objective import Objective


def errors(*numbers, grad=False):
    return torch.tensor(numbers, dtype=torch.float32, requires_grad=grad)


ZERO = errors(0.5, 0.5)


def test_the_loss_equals_a_case_computed_by_hand():
    # Pair 1: e_w falls from 0.50 to 0.49, e_l rises from 0.40 to 0.42: margin 0.02 + 0.01 = 0.03,
    # beta / 2 = 50, inside 1.5: -log sigmoid = log(1 + exp(-1.5)) = 0.2014133.
    # Pair 2: e_w rises from 0.30 to 0.31, e_l stays: margin -0.01, inside -0.5: 0.9740770.
    loss = dpo_loss(
        preferred=errors(0.49, 0.31),
        rejected=errors(0.42, 0.70),
        reference_preferred=errors(0.50, 0.30),
        reference_rejected=errors(0.40, 0.70),
        beta=100,
    )
    assert loss.item() == pytest.approx((0.2014133 + 0.9740770) / 2, abs=1e-5)


def test_weights_multiply_each_pairs_loss():
    same = {"preferred": errors(0.49, 0.31), "rejected": errors(0.42, 0.70)}
    same |= {"reference_preferred": errors(0.50, 0.30), "reference_rejected": errors(0.40, 0.70)}
    loss = dpo_loss(**same, beta=100, weights=errors(0.5, 1.5))
    assert loss.item() == pytest.approx((0.5 * 0.2014133 + 1.5 * 0.9740770) / 2, abs=1e-5)
    assert torch.equal(dpo_loss(**same, beta=100, weights=errors(1, 1)), dpo_loss(**same, beta=100))


def test_at_the_reference_the_loss_is_log_2_and_its_gradient_a_quarter_of_beta():
    # d/de_w of -log sigmoid(z), z = beta / 2 (margin): -(1 - sigmoid(0)) * -beta / 2 = beta / 4
    preferred, rejected = errors(0.5, grad=True), errors(0.5, grad=True)
    reference = {"reference_preferred": errors(0.5), "reference_rejected": errors(0.5)}
    loss = dpo_loss(preferred=preferred, rejected=rejected, **reference, beta=2000)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert preferred.grad.item() == pytest.approx(500)
    assert rejected.grad.item() == pytest.approx(-500)


def test_the_gradient_is_that_of_finite_differences():
    def loss(preferred, rejected):
        pair = {"preferred": preferred, "rejected": rejected}
        reference = {"reference_preferred": ZERO.double(), "reference_rejected": ZERO.double()}
        return dpo_loss(**pair, **reference, beta=30.0, weights=torch.tensor([0.25, 1.75]).double())

    places = [torch.tensor([0.45, 0.7]), torch.tensor([0.6, 0.4])]
    places = [place.double().requires_grad_() for place in places]
    assert torch.autograd.gradcheck(loss, places)


def test_with_beta_0_the_loss_is_log_2_everywhere_and_has_no_gradient():
    preferred, rejected = errors(0.1, 3.0, grad=True), errors(7.0, 0.2, grad=True)
    reference = {"reference_preferred": ZERO, "reference_rejected": ZERO}
    loss = dpo_loss(preferred=preferred, rejected=rejected, **reference, beta=0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert preferred.grad.tolist() == rejected.grad.tolist() == [0, 0]


def test_the_loss_falls_to_log_2_with_beta():
    pair = {"preferred": errors(0.9), "rejected": errors(0.1)}
    reference = {"reference_preferred": errors(0.5), "reference_rejected": errors(0.5)}
    losses = [dpo_loss(**pair, **reference, beta=beta).item() for beta in (10, 1, 0.1, 0.001)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(math.log(2), abs=1e-3)


def test_swapping_preferred_and_rejected_mirrors_margin_loss_and_accuracy():
    one, other = errors(0.4, 0.6, 0.7), errors(0.55, 0.5, 0.2)
    ref_one, ref_other = errors(0.5, 0.5, 0.5), errors(0.45, 0.5, 0.6)
    straight = {"preferred": one, "rejected": other}
    straight |= {"reference_preferred": ref_one, "reference_rejected": ref_other}
    swapped = {"preferred": other, "rejected": one}
    swapped |= {"reference_preferred": ref_other, "reference_rejected": ref_one}
    margin = preference_margin(**straight)
    assert torch.equal(preference_margin(**swapped), -margin)
    assert implicit_accuracy(-margin) == pytest.approx(1 - implicit_accuracy(margin).item())
    # -log sigmoid(z) - -log sigmoid(-z) = -z
    difference = dpo_loss(**straight, beta=8) - dpo_loss(**swapped, beta=8)
    assert difference.item() == pytest.approx(-4 * margin.mean().item(), abs=1e-6)


def test_no_margin_at_all_counts_half_in_the_accuracy():
    assert implicit_accuracy(errors(0.1, -0.2, 0.0, 0.3)).item() == pytest.approx(0.625)


def test_extreme_margins_stay_finite():
    pair = {"preferred": errors(0.0, 900.0, grad=True), "rejected": errors(900.0, 0.0)}
    reference = {"reference_preferred": ZERO, "reference_rejected": ZERO}
    loss = dpo_loss(**pair, **reference, beta=5000)
    loss.backward()
    assert loss.isfinite()
    assert pair["preferred"].grad.isfinite().all()


def test_the_objective_adds_the_weighted_denoising_loss_of_the_images_to_that_of_the_pairs():
    snr_weights = torch.tensor([2.0, 0.5])
    objective = Objective(2, 2, snr_weights=snr_weights, beta=100, denoising_weight=0.3)
    loss, told = objective(
        errors(1.0, 2.0, 0.49, 0.31, 0.42, 0.70),  # images, preferred, rejected
        weights=errors(0.5, 1.5, 0.5, 1.5, 0.5, 1.5),
        timesteps=torch.tensor([0, 1, 0, 0, 0, 0]),
        reference=errors(0.50, 0.30, 0.40, 0.70),
    )
    denoising = (0.5 * 2.0 * 1.0 + 1.5 * 0.5 * 2.0) / 2
    preferences = (0.5 * 0.2014133 + 1.5 * 0.9740770) / 2
    assert told["denoising_loss"].item() == pytest.approx(denoising)
    assert told["dpo_loss"].item() == pytest.approx(preferences, abs=1e-5)
    assert told["implicit_accuracy"].item() == 0.5
    assert loss.item() == pytest.approx(0.3 * denoising + preferences, abs=1e-5)
    assert tuple(told) == objective.columns

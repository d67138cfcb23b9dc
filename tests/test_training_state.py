import torch
from diffusers.training_utils import EMAModel

from utils.training_state import Average


def test_the_average_is_that_of_diffusers():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]
    ours, theirs = (kind(weights, decay=0.9) for kind in (Average, EMAModel))
    for _ in range(30):
        with torch.no_grad():
            for weight in weights:
                weight += torch.randn_like(weight)
        ours.step(weights)
        theirs.step(weights)
    assert not torch.allclose(ours.shadow_params[0], weights[0])
    for one, other in zip(ours.shadow_params, theirs.shadow_params, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert {**mine, "shadow_params": None} == {**other, "shadow_params": None}


def test_the_first_average_is_the_weights_themselves():
    weights = [torch.nn.Parameter(torch.randn(5))]
    average = Average(weights, decay=0.9999)
    with torch.no_grad():
        weights[0].fill_(0.3)
    average.step(weights)
    assert torch.equal(average.shadow_params[0], weights[0])

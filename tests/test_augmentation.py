"""Augmentation: each change does what its name says, and the same seed gives the same bytes."""

import pytest
import torch

from utils import augmentation


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(count=6, side=64, seed=0):
    return torch.rand((count, 1, side, side), generator=seeded(seed))


def test_augmented_images_keep_shape_range_and_the_argument():
    images = random_images()
    before = images.clone()
    result = augmentation.augment(images, seeded())
    assert result.shape == images.shape and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1
    assert torch.equal(images, before)
    assert (result - images).abs().amax(dim=(1, 2, 3)).min() > 0.01  # every image has changed


def test_same_seed_same_bytes_and_another_seed_another_image():
    images = random_images()
    first = augmentation.augment(images, seeded(1), flip=True)
    assert torch.equal(first, augmentation.augment(images, seeded(1), flip=True))
    assert not torch.equal(first, augmentation.augment(images, seeded(2), flip=True))


def test_an_image_is_not_mirrored_unless_asked_to_be():
    ramp = torch.linspace(0, 1, 64).expand(40, 1, 64, 64).contiguous()

    def rising(images):  # brightness grows to the right
        return images[..., 40:].mean(dim=(1, 2, 3)) > images[..., :24].mean(dim=(1, 2, 3))

    assert rising(augmentation.augment(ramp, seeded())).all()
    flipped = rising(augmentation.augment(ramp, seeded(), flip=True))
    assert 8 < int(flipped.sum()) < 32


@pytest.mark.parametrize("sigma", [0.7, 1.5, 2.0])
def test_blurred_point_has_the_variance_of_its_gaussian(sigma):
    image = torch.zeros(1, 1, 41, 41)
    image[..., 20, 20] = 1
    blurred = augmentation.gaussian_blur(image, torch.tensor([sigma]))[0, 0]
    offsets = torch.arange(41.0) - 20
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    for axis in (0, 1):
        variance = (blurred.sum(dim=axis) * offsets**2).sum()
        assert variance == pytest.approx(sigma**2, rel=0.05)


def test_each_image_has_its_own_blur():
    images = random_images(2)
    together = augmentation.gaussian_blur(images, torch.tensor([0.5, 2.0]))
    alone = augmentation.gaussian_blur(images[1:], torch.tensor([2.0]))
    torch.testing.assert_close(together[1:], alone)
    assert together[0].var() > 4 * together[1].var()


def test_blur_grows_with_the_resolution():
    image = torch.zeros(1, 1, 256, 256)
    image[..., 128, 128] = 1
    peaks = []
    for side in (128, 256):
        window = image[..., 128 - side // 2 : 128 + side // 2, 128 - side // 2 : 128 + side // 2]
        peaks.append(float(augmentation.blur(window, seeded(0)).max()))
    assert peaks[0] > 2 * peaks[1]


def test_texture_smoothing_keeps_a_step_and_flattens_noise():
    step = torch.zeros(1, 1, 64, 64)
    step[..., 32:, :] = 0.8
    noisy = (step + 0.05 * torch.randn(step.shape, generator=seeded())).clamp(0, 1)
    kept, flattened = [], []
    for seed in range(6):
        result = augmentation.smooth_texture(noisy, seeded(seed))
        kept.append(result[..., 33:35, :].mean() - result[..., 29:31, :].mean())
        flattened.append(result[..., 45:60, 5:60].std() / noisy[..., 45:60, 5:60].std())
    assert min(kept) > 0.7  # of 0.8
    assert sum(flattened) / 6 < 0.6


def test_low_pass_removes_the_finest_stripes_and_keeps_a_flat_image():
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64).contiguous()
    contrasts = [float(augmentation.low_pass(stripes, seeded(seed)).std()) for seed in range(8)]
    assert min(contrasts) < 0.1 < max(contrasts) <= float(stripes.std())
    flat = torch.full((1, 1, 64, 64), 0.3)
    torch.testing.assert_close(augmentation.low_pass(flat, seeded()), flat)


def test_noise_spares_about_a_quarter_of_the_images_and_is_bounded():
    flat = torch.full((200, 1, 32, 32), 0.5)
    spread = augmentation.add_noise(flat, seeded()).std(dim=(1, 2, 3))
    untouched = int((spread < 1e-6).sum())
    assert 25 < untouched < 80
    limit = (0.5**2 * augmentation.MAX_SPECKLE**2 + augmentation.MAX_NOISE**2) ** 0.5
    assert spread.max() < 1.15 * limit


def test_moving_shifts_by_at_most_the_stated_share():
    image = torch.zeros(300, 1, 64, 64)
    image[..., 30:34, 30:34] = 1
    moved = augmentation.move(image, seeded())
    weight = moved.sum(dim=(1, 2, 3))
    columns = (moved.sum(dim=(1, 2)) * torch.arange(64)).sum(dim=1) / weight
    shift = (columns - 31.5).abs()
    limit = augmentation.MAX_SHIFT * 64 * augmentation.SCALE_RANGE[1] * 1.2
    assert 1 < shift.max() <= limit


def test_grading_changes_no_shape_of_the_histogram_order():
    ramp = torch.linspace(0, 1, 32 * 32).reshape(1, 1, 32, 32).repeat(50, 1, 1, 1)
    graded = augmentation.regrade(ramp, seeded()).flatten(1)
    assert (graded.diff(dim=1) >= -1e-6).all()
    assert graded.mean(dim=1).std() > 0.02

"""Training on unlabeled images: targets, loss, views, and what it does to a training."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_classifier import Scan, config, quick, toy_examples, toy_image

from utils.arm_flags import UNLABELED_METHODS as METHODS
from utils.augmentation import augment, cut_holes, move, strong_view, weak_view
from utils.backbones import build_network
from utils.classifier import Classifier, to_unit
from utils.classifier_training import Examples, train_classifier
from utils.fixmatch import (
    Unlabeled,
    UnlabeledStream,
    aligned,
    masked_loss,
    pseudo_labels,
    ramped_weight,
)
from utils.gray_images import GrayImages


def logits_of(probs):
    return torch.tensor(probs).log()


def train(options, *, unlabeled=None, images=None, multi_label=False, seen=None):
    """A training on few toy images; ``seen`` collects what the network is given in training."""
    network = build_network("small", num_labels=3, resolution=32, seed=options.seed)
    if seen is not None:
        network.register_forward_pre_hook(
            lambda module, args: seen.append(args[0]) if module is network else None  # not the EMA
        )
    return train_classifier(
        network,
        images or toy_examples(9, 0),
        toy_examples(9, 1),
        multi_label=multi_label,
        options=options,
        device="cpu",
        unlabeled=unlabeled,
    )


def test_a_confident_weak_view_becomes_the_hard_label_of_its_image():
    weak = logits_of([[0.96, 0.03, 0.01], [0.10, 0.80, 0.10], [0.02, 0.02, 0.96]])
    targets, mask = pseudo_labels(weak.softmax(1), threshold=0.95, multi_label=False)
    assert targets.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [True] * 3]


def test_each_of_several_labels_is_confident_by_itself():
    probs = torch.tensor([[0.97, 0.50, 0.04], [0.94, 0.05, 0.95]], dtype=torch.float64)
    targets, mask = pseudo_labels(probs, threshold=0.9499, multi_label=True)
    assert mask.tolist() == [[True, False, True], [False, True, True]]
    assert targets[mask].tolist() == [1, 0, 0, 1]


def test_the_threshold_itself_is_enough():
    probs = torch.full((1, 2), 0.5)
    for multi_label in (False, True):
        assert pseudo_labels(probs, threshold=0.5, multi_label=multi_label)[1].all()


def test_alignment_asks_more_of_a_label_that_is_predicted_too_often():
    probs = torch.tensor([[0.5, 0.5], [0.8, 0.2]])
    mix, seen = torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2])
    drawn = aligned(probs, mix=mix, seen=seen)
    torch.testing.assert_close(drawn, torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
    torch.testing.assert_close(aligned(probs, mix=mix, seen=mix), probs)


def test_the_expected_mix_changes_what_is_learned_of_exclusive_labels_only():
    images = toy_examples(30, 2).images
    options = quick(max_epochs=1, steps_per_epoch=3)

    def weights(mix):
        given = Unlabeled(images, threshold=0.4, ratio=2, mix=mix)
        return Classifier(config(), train(options, unlabeled=given).network).sha256

    uneven = np.array([0.05, 0.05, 0.9])
    assert weights(uneven) == weights(uneven) != weights(None)
    stream = UnlabeledStream(
        Unlabeled(images, mix=uneven),
        multi_label=True,
        options=options,
        device="cpu",
    )
    assert stream.mix is None


def test_no_gradient_goes_through_the_weak_views():
    weak = torch.randn(4, 3, requires_grad=True)
    strong = torch.randn(4, 3, requires_grad=True)
    targets, mask = pseudo_labels(weak.softmax(1), threshold=0.0, multi_label=False)
    masked_loss(strong, targets, mask, multi_label=False).backward()
    assert weak.grad is None and strong.grad.abs().sum() > 0


def test_the_loss_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    weak, strong = (rng.normal(0, 3, (50, 4)) for _ in range(2))
    total, counted = 0.0, 0
    for q, p in zip(weak, strong):  # equation 4, one image after the other
        q, p = (np.exp(x) / np.exp(x).sum() for x in (q, p))
        if q.max() >= 0.8:
            total, counted = total - math.log(p[q.argmax()]), counted + 1
    assert 10 < counted < 40
    targets, mask = pseudo_labels(torch.tensor(weak).softmax(1), threshold=0.8, multi_label=False)
    loss = masked_loss(torch.tensor(strong), targets, mask, multi_label=False)
    assert float(loss) == pytest.approx(total / 50, rel=1e-5)


def test_the_loss_of_several_labels_by_hand():
    strong = torch.tensor([[0.8, 0.5, 0.3], [0.5, 0.1, 0.5]]).logit()
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    loss = masked_loss(strong, targets, mask, multi_label=True)
    assert float(loss) == pytest.approx(-math.log(0.8 * 0.7 * 0.9) / 6, rel=1e-5)


def test_lees_weight_waits_rises_and_stays():
    assert [ramped_weight(done) for done in (0, 0.1, 0.35, 0.6, 1)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )


def test_a_weak_view_only_moves_and_half_as_far_as_a_standard_one():
    ramp = torch.linspace(0, 1, 64).repeat(200, 1, 64, 1)  # bright to the right
    weak = weak_view(ramp, torch.Generator().manual_seed(0))
    standard = move(ramp, torch.Generator().manual_seed(0))
    far = [(view - ramp)[..., 16:-16, 16:-16].abs().mean() for view in (weak, standard)]
    assert 0.4 < far[0] / far[1] < 0.6
    assert (weak[..., 60] > weak[..., 4]).all()  # never mirrored unless asked


@pytest.mark.parametrize("view", [weak_view, strong_view])
def test_a_view_never_turns_the_retina_upside_down_and_mirrors_only_if_asked(view):
    corner = torch.full((64, 1, 64, 64), 0.2)
    corner[..., :32, 32:] = 0.9  # top right
    for flip in (False, True):
        seen = view(corner, torch.Generator().manual_seed(1), flip=flip)
        top, bottom = seen[..., :28, :].mean((1, 2, 3)), seen[..., 36:, :].mean((1, 2, 3))
        left, right = seen[..., :28].mean((1, 2, 3)), seen[..., 36:].mean((1, 2, 3))
        assert (top > bottom).all()
        assert bool((left > right).any()) == flip


def test_holes_are_small_dark_and_differ_from_image_to_image():
    bright = torch.full((200, 1, 40, 40), 0.8)
    bright[..., 20:, :] = 0.1
    seen = cut_holes(bright, torch.Generator().manual_seed(0))
    changed = (seen != bright).float().mean((1, 2, 3))
    assert 0.01 < changed.mean() < 0.1 and changed.max() < 2 * 0.35**2
    assert seen[seen != bright].mean() < 0.25
    assert len(changed.unique()) > 50
    columns = (seen != bright).float().mean((1, 2)) @ torch.arange(40.0) / changed / 40
    assert columns.min() < 10 and columns.max() > 30  # their centres


def stream_of(method="fixmatch", *, seed=3, **changes):
    """The stream of a training on copies of one image."""
    scan = Scan(toy_image(0, np.random.default_rng(0), size=(32, 32)))
    images = GrayImages([scan] * 20, resolution=32, resize_mode="stretch")
    unlabeled = Unlabeled(images, method=method, ratio=2, **changes)
    options = quick(seed=seed)
    return UnlabeledStream(unlabeled, multi_label=False, options=options, device="cpu")


@pytest.mark.parametrize(("method", "view"), [("fixmatch", strong_view), ("pseudo_label", augment)])
def test_each_method_has_its_views(method, view):
    stream, generator = stream_of(method), torch.Generator()
    generator.set_state(stream.noise.get_state())
    weak, other = stream.views()
    (pixels, *_) = stream.unlabeled.images
    images = to_unit(torch.from_numpy(pixels)[None]).repeat(16, 1, 1, 1)
    assert torch.equal(weak, weak_view(images, generator))
    assert torch.equal(other, view(images, generator))


def test_the_seed_decides_the_views():
    views = [stream_of(seed=seed).views() for seed in (3, 3, 4)]
    assert torch.equal(views[0][1], views[1][1]) and not torch.equal(views[0][1], views[2][1])


def test_the_facts_of_an_epoch_are_its_own():
    stream = stream_of(threshold=0.9, weight=2.0)
    sure, unsure = torch.tensor([[9.0, 0, 0]]), torch.zeros(1, 3)
    weak, strong = torch.cat([sure, unsure]), torch.cat([unsure, unsure])
    loss = stream.loss(weak=weak, strong=strong, done=0.0)
    facts = stream.epoch_facts()
    assert facts["pseudo_share"] == 0.5
    assert facts["unlabeled_loss"] == pytest.approx(math.log(3) / 2)
    assert float(loss) == pytest.approx(math.log(3))
    stream.loss(weak=unsure, strong=unsure, done=1.0)
    assert stream.epoch_facts() == {"pseudo_share": 0.0, "unlabeled_loss": 0.0}


def test_only_the_loss_on_pseudo_labels_of_the_simple_form_is_ramped_up():
    views = {"weak": torch.tensor([[9.0, 0, 0]]), "strong": torch.zeros(1, 3)}
    for method, shares in (("fixmatch", [1, 1]), ("pseudo_label", [0, 0.5])):
        stream = stream_of(method)
        found = [float(stream.loss(**views, done=done)) for done in (0.0, 0.35)]
        whole = float(stream.loss(**views, done=1.0))
        assert found == pytest.approx([share * whole for share in shares])


@pytest.mark.parametrize("method", METHODS)
def test_the_labelled_stream_is_the_same_with_and_without_unlabeled_images(method):
    options, seen = quick(max_epochs=1, steps_per_epoch=3), {}
    for unlabeled in (None, Unlabeled(toy_examples(30, 2).images, method=method, ratio=2)):
        images = seen[unlabeled is None] = []
        train(options, unlabeled=unlabeled, seen=images)
    assert [len(images) for images in seen[True]] == [8, 8, 8]
    assert [len(images) for images in seen[False]] == [16, 8 + 16] * 3  # weak, then the others
    for alone, beside in zip(seen[True], seen[False][1::2]):
        assert torch.equal(alone, beside[:8])


def test_few_labelled_images_have_as_many_unlabeled_ones_beside_them():
    seen = []
    options = quick(max_train_steps=1, batch_size=16)
    train(options, unlabeled=Unlabeled(toy_examples(60, 2).images, ratio=3), seen=seen)
    assert [len(images) for images in seen] == [48, 9 + 48]


@pytest.mark.parametrize(("method", "precision"), [(METHODS[0], "bf16"), (METHODS[1], "no")])
def test_same_seed_same_bytes(method, precision):
    unlabeled = Unlabeled(toy_examples(30, 2).images, method=method, threshold=0.4, ratio=2)
    short = {"max_epochs": 1, "steps_per_epoch": 3, "mixed_precision": precision}
    hashes = [
        Classifier(
            config(),
            train(quick(**short, seed=seed), unlabeled=given).network,
        )
        for seed, given in ((3, unlabeled), (3, unlabeled), (4, unlabeled), (3, None))
    ]
    hashes = [found.sha256 for found in hashes]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_the_history_tells_how_many_pseudo_labels_counted():
    images = toy_examples(30, 2).images
    for threshold, share in ((0.0, 1.0), (1.1, 0.0)):
        options = quick(max_epochs=1, steps_per_epoch=3)
        result = train(options, unlabeled=Unlabeled(images, threshold=threshold, ratio=1))
        assert [row["pseudo_share"] for row in result.history] == [share]
        assert (result.history[0]["unlabeled_loss"] > 0) == (share > 0)
    assert "pseudo_share" not in train(quick(max_epochs=1, steps_per_epoch=3)).history[0]


def test_of_several_labels_every_question_counts():
    labelled, more = (toy_examples(count, 0, multi_label=True) for count in (9, 30))
    options = quick(max_epochs=1, steps_per_epoch=3)
    for threshold, share in ((0.5, 1.0), (1.1, 0.0)):
        unlabeled = Unlabeled(more.images, threshold=threshold, ratio=1)
        result = train(options, unlabeled=unlabeled, images=labelled, multi_label=True)
        assert result.history[0]["pseudo_share"] == share
        assert (result.history[0]["unlabeled_loss"] > 0) == (share > 0)


def turned_examples(count, seed, *, degrees):
    """Half-bright images of three kinds, 120 degrees apart, each turned on by up to ``degrees``."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(count) % 3
    y, x = np.mgrid[:32, :32] - 15.5
    scans = []
    for kind in kinds:
        angle = np.radians(120 * kind + rng.uniform(*degrees))
        pixels = rng.normal(90, 15, (32, 32)) + 70 * (x * np.cos(angle) + y * np.sin(angle) > 0)
        scans.append(Scan(Image.fromarray(pixels.clip(0, 255).astype(np.uint8))))
    images = GrayImages(scans, resolution=32, resize_mode="stretch")
    return Examples(images, np.eye(3, dtype=bool)[kinds])


def test_unlabeled_images_lead_from_known_ones_to_those_that_labels_alone_get_wrong():
    labelled = turned_examples(24, 20, degrees=(0, 8))
    far = turned_examples(60, 9, degrees=(60, 70))  # as near to the next kind as to their own
    every = turned_examples(120, 5, degrees=(0, 70)).images  # with a gap before the next kind
    options = quick(max_epochs=1, steps_per_epoch=100, seed=0, ema_decay=0.95)
    right = []
    for unlabeled in (None, Unlabeled(every)):
        network = train(options, images=labelled, unlabeled=unlabeled).network
        probs, _ = Classifier(config(), network).predict_gray(far.images)
        right.append((probs.argmax(axis=1) == far.targets.argmax(axis=1)).mean())
    assert right[0] < 0.8 and right[1] > 0.95

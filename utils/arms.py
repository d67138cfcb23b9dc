"""What a diagnosis classifier can be trained on: the arms of a comparison.

``->`` is pre-training, then fine-tuning; ``+`` is a mixture.
"""

REAL = "real"
SYNTHETIC = "synthetic"
MIXED = "real+synthetic"
PRETRAINED = "synthetic->real"
UNLABELED = "real+unlabeled"
ALL = "real+unlabeled+synthetic"
ARMS = (REAL, SYNTHETIC, MIXED, PRETRAINED, UNLABELED, ALL)


def uses_real(arm: str) -> bool:
    """Whether the arm learns from labelled real images."""
    return arm != SYNTHETIC


def uses_synthetic(arm: str) -> bool:
    """Whether the arm learns from synthetic images."""
    return SYNTHETIC in arm


def uses_unlabeled(arm: str) -> bool:
    """Whether the arm learns from images whose labels are hidden or unknown."""
    return "unlabeled" in arm

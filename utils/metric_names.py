"""What metrics are called on pages, in the order of pages."""

from __future__ import annotations

TITLES = {
    "fid": "Fréchet distance",
    "kid": "Kernel distance (KID)",
    "cmmd": "CMMD",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "inception_score": "Inception score",
    "inception_score_on_classifier": "Inception score over diagnoses",
    "ms_ssim": "MS-SSIM within a prompt",
    "agreement": "Agreement with the label",
    "cas": "Trained on synthetic, tested on real (CAS)",
    "copies": "Copies of training images",
}
DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "real": "near the real set"}
RETRIEVAL = {
    "image_to_image": "image → image",
    "image_to_text": "image → text",
    "text_to_image": "text → image",
}
RETRIEVAL_SCORES = {
    "recall_at_1": "Recall@1",
    "recall_at_5": "Recall@5",
    "recall_at_10": "Recall@10",
    "median_rank": "Median rank",
}
PAGE_TEXT = {
    "fid": "Read it beside its floor, the distance between two halves of the real set: at the "
    "floor a synthetic set is as close as real images are to each other. Fewer images make every "
    "Fréchet distance larger, and the floor is over half the images: the line 'at equal N' "
    "compares both at the same number.",
    "kid": "Unbiased: its mean does not depend on the number of images, so it is the one to read "
    "for small sets. It may be slightly negative where the sets are alike.",
    "cmmd": "Of CLIP embeddings, made for natural images.",
    "precision": "Share of synthetic images inside the region of real ones (realism), as density, "
    "which outliers of the real set cannot raise. Recall is the share of real images inside the "
    "region of synthetic ones (variety), as coverage, the more robust of the two. A generator that "
    "repeats one good image has high precision and low coverage.",
    "inception_score": "Sees no real image: it says whether predictions are sure and varied.",
    "ms_ssim": "How alike the images of one prompt are. Above the real set's own value they repeat "
    "each other; far below it they are noisier than real scans.",
    "agreement": "Whether a classifier trained on real images finds in a synthetic one what was "
    "asked for; the real set's own value is about the most a perfect generator would reach.",
    "cas": "Accuracy on real images of a classifier that saw synthetic images only. This is the "
    "score to rank generators by, if the images are meant for training.",
    "copies": "Share of synthetic images more like a training image than 95 % of held-out real "
    "images are. Held-out images score about 5 % by construction, so about 5 % is no sign of "
    "copying.",
}

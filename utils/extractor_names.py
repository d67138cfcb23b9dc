"""Names of the feature networks, kept apart from torch so that a flag is checked at once."""

CLASSIFIER_PREFIX = "classifier:"
NOT_YET = ("clip", "dinov2", "vit")
FID_FILES = (
    "weights-inception-2015-12-05-6726825d.pth "
    "(https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/) or "
    "pt_inception-2015-12-05-6726825d.pth "
    "(https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/)"
)
TORCHVISION_FILE = (
    "inception_v3_google-0cc3c7bd.pth (https://download.pytorch.org/models/; torchvision's "
    "Inception_V3_Weights.IMAGENET1K_V1)"
)
# Name -> its weight file and where it is from.
WEIGHT_FILES = {"inception": FID_FILES, "torchvision-inception": TORCHVISION_FILE}

"""Names of the feature networks, kept apart from torch so that a flag is checked at once."""

CLASSIFIER_PREFIX = "classifier:"
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
CLIP_MODEL = (
    "openai/clip-vit-large-patch14-336 (CMMD's CLIP; https://huggingface.co), by this name or as a "
    "folder with config.json and model.safetensors"
)
DINOV2_MODEL = (
    "facebook/dinov2-large (https://huggingface.co), by this name or as a folder with config.json "
    "and model.safetensors"
)
VIT_FILE = (
    "RETFound_oct_weights.pth or another vision transformer in the layout of MAE and timm "
    "(https://github.com/rmaphoh/RETFound)"
)
# Name -> its weights and where they are from.
WEIGHT_FILES = {
    "inception": FID_FILES,
    "torchvision-inception": TORCHVISION_FILE,
    "clip": CLIP_MODEL,
    "dinov2": DINOV2_MODEL,
    "vit": VIT_FILE,
}
HUB_MODELS = ("clip", "dinov2")  # whose weights may be a name on the hub

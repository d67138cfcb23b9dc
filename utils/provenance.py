"""The mark of a synthetic image: text entries of its PNG that say what it is and who made it."""

import json
from hashlib import sha256
from pathlib import Path

from PIL.PngImagePlugin import iTXt

from utils.run_folder import hash_folder

GENERATOR = "OCT-SD generate_synthetic_dataset.py"

# IPTC's term for media made by a trained model, https://cv.iptc.org/newscodes/digitalsourcetype/
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP_KEY = "XML:com.adobe.xmp"  # where the PNG specification's registry puts an XMP packet
_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""

# What decides over the pixels; cards, logs and checkpoints in the folder do not.
PIPELINE_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def png_text(
    *, prompt_sha256: str, seed: int, model_hash: str, prompt: str | None = None
) -> dict[str, str]:
    """Text entries of one synthetic image's PNG.

    Args:
        prompt_sha256: Hash of the prompt; whoever has the prompt can check it.
        seed: Seed of the image's generator.
        model_hash: From `hash_pipeline`.
        prompt: The prompt itself; None leaves it out, for it may come from a patient's report.
    """
    entries = {
        "synthetic": "true",
        "generator": GENERATOR,
        "prompt_sha256": prompt_sha256,
        "seed": str(seed),
        "model_hash": model_hash,
        **source_type(),
    }
    # iTXt is UTF-8 whatever the letters; plain text would become Latin-1 (tEXt) where it can.
    return entries if prompt is None else entries | {"prompt": iTXt(prompt)}


def source_type() -> dict[str, str]:
    """Text entries that say that an image was made by a trained model, and no more."""
    return {"digital_source_type": DIGITAL_SOURCE_TYPE, XMP_KEY: iTXt(_XMP)}


def hash_pipeline(folder: Path) -> str:
    """Content hash of a pipeline folder's parts (`PIPELINE_PARTS`), as hex."""
    hashes = {part: hash_folder(folder / part) for part in PIPELINE_PARTS}
    return sha256(json.dumps(hashes).encode()).hexdigest()

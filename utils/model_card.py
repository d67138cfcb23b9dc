"""The model card that goes beside a fine-tuned pipeline."""

import json
from collections.abc import Mapping

_TEMPLATE = """\
---
base_model: {base_model_yaml}
library_name: diffusers
pipeline_tag: text-to-image
tags:
- stable-diffusion
- stable-diffusion-diffusers
- text-to-image
- medical-imaging
inference: true
---

# {title}

Fine-tuned from `{base_model}` with `train_text_to_image.py` of OCT-SD.

**Research use, not for diagnosis.** The images it draws are synthetic and show no patient, but a
model can memorise what it was trained on: audit for copies before you pass it on. The licence of
the base model and the terms of the training data bind this model too.

## Use

```python
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipeline({prompt!r}, generator=torch.Generator().manual_seed(0)).images[0]
```

## Training

| | |
|---|---|
{table}
{samples}"""


def model_card_text(
    *, title: str, base_model: str, prompt: str, facts: Mapping[str, object], num_samples: int
) -> str:
    """Text of a model card (Markdown with the hub's YAML head).

    Args:
        title: What the model is called.
        base_model: What it was fine-tuned from.
        prompt: An example for the usage section.
        facts: Rows of the training table.
        num_samples: Validation pictures of the last step that lie beside the card.
    """
    table = "\n".join(
        f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items() if value is not None
    )
    samples = ""
    if num_samples:
        samples = f"\n{num_samples} pictures drawn at the end lie in `validation/`.\n"
    return _TEMPLATE.format(
        title=title,
        base_model=base_model,
        base_model_yaml=json.dumps(base_model),  # a JSON string is a YAML string
        prompt=prompt,
        table=table,
        samples=samples,
    )


def _cell(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")

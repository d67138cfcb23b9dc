"""Memory per GPU that training Stable Diffusion 1.x takes, computed, not measured.

    python -m benchmarks.training_memory --batch_sizes 1 8 16 32 64

    weights 4 B + gradients 4 B + AdamW's moments 8 B + average 4 B, times the parameters
    + bf16 copies of the weights 2 B, which autocast keeps within a step
    + what the backward pass needs, 2 B an element, counted layer by layer without computing

With FSDP2 the first line is split over the GPUs, with ZeRO-2 its gradients and moments. Left out:
CUDA's context and libraries (about 1 GiB), the allocator's waste, DDP's buckets (4 B a parameter),
and that some layers (norms, softmax) keep float32 inputs. So take it as the least that is needed.
Prints JSON, in GiB.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from utils import cli
from utils.run_folder import print_result

LATENT_SIDE, TEXT_TOKENS, TEXT_WIDTH = 64, 77, 768  # 512 px; CLIP ViT-L/14
BYTES = {"weights": 4, "gradients": 4, "moments": 8, "average": 4}
COPY_BYTES = ACTIVATION_BYTES = 2  # bf16
# What diffusers' gradient checkpointing computes a second time rather than keeps.
RECOMPUTED = ("ResnetBlock2D", "BasicTransformerBlock")
# Split over the GPUs by each engine.
SPLIT = {
    "ddp": (),
    "zero2": ("gradients", "moments"),
    "fsdp": ("weights", "gradients", "moments", "average"),
}


@dataclass(frozen=True)
class Saved:
    """Elements that one forward pass keeps for the backward pass.

    Attributes:
        everything: Without gradient checkpointing.
        checkpointed: With it, at the worst moment.
    """

    everything: int
    checkpointed: int


def count_saved(unet, latents, text) -> Saved:
    """Count a forward pass's saved elements; on the meta device nothing is computed.

    Attention counts as fused kernels keep it: query, key, value and output, no matrix of weights.
    """
    import torch

    seen = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    kept_alive = []  # so that no storage's number is used twice
    units = [0]  # elements outside of all units, then inside of each
    inside = [0]
    inputs = 0

    def count(tensor):
        storage = tensor.untyped_storage()  # shared by a tensor and its views
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept_alive.append(storage)
            units[inside[-1]] += storage.nbytes() // tensor.element_size()
        return tensor

    def enter(module, args, kwargs):
        nonlocal inputs
        inputs += args[0].numel()
        units.append(0)
        inside.append(len(units) - 1)

    handles = []
    for module in unet.modules():
        if type(module).__name__ in RECOMPUTED:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    with (
        _fused_attention(),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        unet(latents, torch.zeros(len(latents), device=latents.device), text)
    for handle in handles:
        handle.remove()
    return Saved(sum(units), units[0] + inputs + max(units[1:], default=0))


@contextmanager
def _fused_attention():
    import torch
    from torch.nn import functional

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value):
            output = torch.empty_like(query)
            ctx.save_for_backward(query, key, value, output)
            return output

    plain: Callable = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda q, k, v, *_, **__: Fused.apply(q, k, v)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def gib(num_parameters: int, elements: float, *, engine: str = "ddp", num_gpus: int = 1) -> float:
    """Memory of one GPU in GiB.

    Args:
        num_parameters: Trained ones.
        elements: Kept for the backward pass, over the whole batch.
        engine: One of `SPLIT`.
        num_gpus: Over which the engine splits.
    """
    total = sum(size / (num_gpus if name in SPLIT[engine] else 1) for name, size in BYTES.items())
    copies = 0 if engine == "fsdp" else COPY_BYTES  # FSDP gathers one block at a time
    return ((total + copies) * num_parameters + ACTIVATION_BYTES * elements) / 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Count, and print the table."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--batch_sizes", type=cli.positive_int, nargs="+", default=[1, 8, 16, 32, 64]
    )
    args: argparse.Namespace = parser.parse_args(argv)
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        # The class's defaults are Stable Diffusion 1.x, but for the text's width.
        unet = UNet2DConditionModel(cross_attention_dim=TEXT_WIDTH, attention_head_dim=8)
        latents = torch.empty(1, 4, LATENT_SIDE, LATENT_SIDE)
        text = torch.empty(1, TEXT_TOKENS, TEXT_WIDTH)
    saved = count_saved(unet, latents, text)
    num_parameters = sum(math.prod(parameter.shape) for parameter in unet.parameters())
    rows = {}
    for size in args.batch_sizes:
        rows[size] = {
            "plain": gib(num_parameters, size * saved.everything),
            "gradient_checkpointing": gib(num_parameters, size * saved.checkpointed),
            "zero2_8_gpus": gib(
                num_parameters, size * saved.everything, engine="zero2", num_gpus=8
            ),
            "fsdp_8_gpus": gib(num_parameters, size * saved.everything, engine="fsdp", num_gpus=8),
        }
    result = {
        "parameters": num_parameters,
        "elements_per_image": vars(saved),
        "gib_before_any_image": gib(num_parameters, 0),
        "gib_by_batch_size": rows,
    }
    print_result(result)
    return 0


if __name__ == "__main__":
    cli.main_guard(main)

"""Hash of a loaded model, the same wherever its files came from."""

import hashlib

import torch

# Of a configuration, what says where it came from or how it is run.
_NO_FACTS = ("transformers_version", "architectures", "dtype", "torch_dtype")


def hash_module(module, prefixes: tuple[str, ...] = ("",)) -> str:
    """SHA-256 of a model's weights and configuration, as hex; wherever it was loaded from.

    Args:
        module: A model of diffusers or transformers.
        prefixes: Weights that count, by the start of their names.
    """
    config = module.config if isinstance(module.config, dict) else module.config.to_dict()
    kept = {key: config[key] for key in config if key[0] != "_" and key not in _NO_FACTS}
    digest = hashlib.sha256(repr(sorted(kept.items())).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()

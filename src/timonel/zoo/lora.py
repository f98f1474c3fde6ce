"""A LoRA merged into a network: W + B A on each layer it names (arXiv 2106.09685).

Merged at load it runs as fast as its base, and needs no further package.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import ModelError

LORA = "pytorch_lora_weights.safetensors"  # as diffusers calls it
PREFIX, DOWN, UP = "unet.", ".lora_A.weight", ".lora_B.weight"


@torch.no_grad()
def merge(network: nn.Module, path: Path) -> None:
    """Add a LoRA with scale 1 to the weights of a network, in their precision.

    Args:
        network: changed in place.
        path: a LoRA file of diffusers.

    Raises:
        ModelError: where the file cannot be read or does not fit the network.
    """
    try:
        factors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot read the LoRA {str(path)!r}: {error}; install timonel again"
        ) from error
    layers = {key.removesuffix(end) for key in factors for end in (DOWN, UP) if key.endswith(end)}
    if 2 * len(layers) != len(factors):
        raise ModelError(
            f"the LoRA {str(path)!r} holds more or less than one {DOWN} and one {UP} for each layer"
        )
    for layer in sorted(layers):
        try:
            weight = network.get_parameter(f"{layer.removeprefix(PREFIX)}.weight")
            down, up = (factors[layer + end].float().to(weight.device) for end in (DOWN, UP))
            product = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
        except (AttributeError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"the LoRA {str(path)!r} does not fit the model at {layer!r}: {error}"
            ) from error
        weight.copy_(weight.float() + product)

"""A vision transformer as the network of ``Classifier``, of any size, fresh or with the weights of an earlier run."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Pool = Literal["cls", "mean"]
PREFIX, HEAD = "network.", "head."


class VisionTransformer(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021) of the transformers library, with a linear head.

    An image is cut into patches; their embeddings and a class token, with learned positions, go through ``depth``
    blocks and a layer norm. It is for small images as they are: nothing is resized, nothing downloaded.

    Args:
        classes: Number of logits, at least 2.
        side: Pixels of a side of the square images.
        channels: Channels of the images: 1 for grey, 3 for colour.
        patch: Pixels of a side of a patch; divides ``side``.
        width: Size of a token's vector; a multiple of ``heads``.
        depth: Number of blocks, at least 1.
        heads: Attention heads of a block.
        mlp_ratio: Hidden width of a block's MLP, as a multiple of ``width``.
        dropout: Probability of dropping a value of the embeddings and of what each half of a block adds, in [0, 1).
            Attention weights are not dropped: that would rule out the fast kernels on a CPU.
        pool: What the head reads: the class token (``cls``) or the ``mean`` of the patches.
        weights: Lightning checkpoint of a ``Classifier`` with such a network, whose weights to begin with, except the
            head's. Shapes must be equal; ``heads`` and ``pool`` do not show in them: keep them as they were.
        keep_head: Whether to take the head from ``weights``, too.

    Raises:
        ValueError: If an argument is out of range or ``weights`` does not fit; the message names it.
        FileNotFoundError: If there is no file ``weights``.
    """

    def __init__(
        self,
        classes: int,
        side: int,
        channels: int = 3,
        patch: int = 4,
        width: int = 64,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        pool: Pool = "cls",
        weights: str | None = None,
        keep_head: bool = False,
    ) -> None:
        super().__init__()
        at_least = {"classes": 2, "side": 1, "channels": 1, "patch": 1, "width": 1, "depth": 1, "heads": 1}
        given = locals()
        for field, low in at_least.items():
            if given[field] < low:
                raise ValueError(f"{field} must be at least {low}, got {given[field]}")
        if side % patch:
            raise ValueError(f"patch must divide side={side}, got {patch}")
        if width % heads:
            raise ValueError(f"heads must divide width={width}, got {heads}")
        if not 0.5 < width * mlp_ratio < math.inf:
            raise ValueError(f"mlp_ratio must give at least 1 hidden unit at width={width}, got {mlp_ratio}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")
        if keep_head and weights is None:
            raise ValueError("keep_head=true needs weights to keep the head of, got weights=null")
        from transformers import ViTConfig, ViTModel  # heavy: only for a vision transformer

        fused: dict[str, Any] = {"attn_implementation": "sdpa"}  # an argument that its signature does not name
        config = ViTConfig(
            image_size=side,
            num_channels=channels,
            patch_size=patch,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=round(width * mlp_ratio),
            hidden_dropout_prob=dropout,
            **fused,
        )
        self.image, self.pool = (channels, side, side), pool
        self.vit = ViTModel(config, add_pooling_layer=False)
        # After the blocks, so that layer groups find them: what follows the last block is trained by every client.
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=config.initializer_range)
        nn.init.zeros_(self.head.bias)
        if weights is not None:
            load_weights(self, weights, keep_head)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)`` from images ``(batch, channels, side, side)``, flattened or not."""
        inputs = self.image[0] * self.image[1] ** 2
        if x.shape[1:] != self.image and x.shape[1:] != (inputs,):
            raise ValueError(f"images must have the shape {self.image} or {(inputs,)}, got {tuple(x.shape[1:])}")
        tokens: Tensor = self.vit(pixel_values=x.reshape(-1, *self.image)).last_hidden_state
        logits: Tensor = self.head(tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(1))
        return logits


def load_weights(network: VisionTransformer, weights: str, keep_head: bool = False) -> None:
    """Copy the weights of an earlier run into a network, all of them or none.

    Args:
        network: The network; without ``keep_head`` its head stays as it is.
        weights: Lightning checkpoint of a ``Classifier`` with such a network.
        keep_head: Whether to copy the head, too.

    Raises:
        ValueError: If the file is no such checkpoint, or a key or shape differs; the message names the first.
        FileNotFoundError: If there is no such file.
    """
    found, own = _network_state(Path(weights).expanduser()), network.state_dict()
    if not keep_head:
        found, own = (
            {name: value for name, value in state.items() if not name.startswith(HEAD)} for state in (found, own)
        )
    for name, value in own.items():
        wanted = tuple(value.shape)
        if name not in found:
            raise ValueError(f"weights: {weights} has no {PREFIX}{name}, which has the shape {wanted} in this network")
        if tuple(found[name].shape) != wanted:
            raise ValueError(
                f"weights: {PREFIX}{name} has the shape {tuple(found[name].shape)} in {weights}, "
                f"but {wanted} in this network"
            )
    for name, value in found.items():
        if name not in own:
            raise ValueError(
                f"weights: {PREFIX}{name} of shape {tuple(value.shape)} in {weights} is not part of this network"
            )
    network.load_state_dict(found, strict=False)  # checked above; what is missing is the head


def _network_state(file: Path) -> dict[str, Tensor]:
    """Tensors of the network in a checkpoint of a module that keeps it as ``network``."""
    if not file.is_file():
        raise FileNotFoundError(f"weights is not a file: {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:  # what torch says takes many lines
        raise ValueError(f"weights: {file} is not a checkpoint that loads with weights_only=True") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"weights: {file} is not a checkpoint of Lightning: it has no state_dict")
    found = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    if not found:
        raise ValueError(
            f"weights: {file} has no key that begins with {PREFIX}: it is not the checkpoint of a Classifier"
        )
    return found

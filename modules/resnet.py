"""Residual networks without batch statistics, for private and federated training."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks of each stage (He et al. 2016, arXiv 1512.03385, table 1)."""


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        inputs: Channels that come.
        outputs: Channels that go.
        stride: 2 halves the image.
        groups: Groups of each normalisation; 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=groups == 0),
            _norm(groups, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=groups == 0),
            _norm(groups, outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=groups == 0), _norm(groups, outputs))
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, outputs, height / stride, width / stride)``."""
        made: Tensor = self.activation(self.residual(x) + self.shortcut(x))
        return made


class ResNet(nn.Module):
    """ResNet-18 or -34 with group normalisation: no example's output depends on the others of its batch.

    Args:
        classes: Number of logits.
        channels: Channels of the image: 1 for grey, 3 for colour.
        depth: 18 or 34 layers with weights.
        groups: Groups of each normalisation, a divisor of 64; 0 for no normalisation. 2 is what the code of Robust-HDP
            puts in the place of batch normalisation (Saber-mm/HDPFL at b00c897).
        stem: ``imagenet``: a 7x7 convolution of stride 2 and a max-pooling, as that code has it for images of 32
            pixels, too; ``small``: a 3x3 convolution that leaves the size as it is.

    Raises:
        ValueError: If an argument is out of range, naming it.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        depth: Literal[18, 34] = 18,
        groups: int = 2,
        stem: Literal["imagenet", "small"] = "imagenet",
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be 18 or 34, got {depth}")
        if groups < 0 or (groups and 64 % groups):
            raise ValueError(f"groups must be 0 or a divisor of 64, got {groups}")
        if stem not in ("imagenet", "small"):
            raise ValueError(f"stem must be imagenet or small, got {stem!r}")
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        begin = [nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=groups == 0), _norm(groups, 64)]
        pool: list[nn.Module] = [nn.MaxPool2d(3, 2, padding=1)] if stem == "imagenet" else []
        self.stem = nn.Sequential(*begin, nn.ReLU(), *pool)
        blocks: list[nn.Module] = []
        width = 64
        for stage, count in enumerate(DEPTHS[depth]):
            for number in range(count):
                outputs = 64 * 2**stage
                blocks.append(Block(width, outputs, 2 if stage and not number else 1, groups))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)`` from images of shape ``(batch, channels, height, width)``."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))
        return logits


def _norm(groups: int, channels: int) -> nn.Module:
    return nn.GroupNorm(groups, channels) if groups else nn.Identity()

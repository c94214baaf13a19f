"""The discriminator: tells originals from generated pictures, of any size."""

from __future__ import annotations

from torch import Tensor, nn


class Discriminator(nn.Module):
    """VGG-style network with LeakyReLU and strided convolutions in the place of pooling (Ledig et al. 2017).

    Eight 3x3 convolutions, every second one with stride 2, from `channels` to eight times as many; then the mean over
    the picture, so that any patch size goes, and two fully connected layers.
    """

    def __init__(self, channels: int = 64) -> None:
        """Build the network.

        Args:
            channels: Feature maps of the first layer (64 in SRGAN).

        Raises:
            ValueError: For less than one channel.
        """
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be 1 or more, got {channels}")
        layers: list[nn.Module] = []
        inputs = 3
        for width in (channels, 2 * channels, 4 * channels, 8 * channels):
            for stride in (1, 2):
                first = inputs == 3
                layers.append(nn.Conv2d(inputs, width, 3, stride, padding=1, bias=first))
                if not first:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.LeakyReLU(0.2, inplace=True))
                inputs = width
        self.features = nn.Sequential(*layers)
        self.judge = nn.Sequential(
            nn.Linear(inputs, 16 * channels), nn.LeakyReLU(0.2, inplace=True), nn.Linear(16 * channels, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Judge pictures.

        Args:
            image: `(B, 3, H, W)` float in [0, 1], any size.

        Returns:
            Logits `(B,)`; positive means "original".
        """
        return self.judge(self.features(image).mean((2, 3))).squeeze(1)

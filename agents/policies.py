"""Actor-critic policies whose feature extractor is the generator's encoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from gan.generator import Decoder, Encoder, Generator, GeneratorConfig


class TrunkExtractor(BaseFeaturesExtractor):
    """The generator's encoder, and the mean of its latent over the picture, so that any patch size goes.

    The encoder stays in evaluation mode whatever the policy's mode. SB3 collects rollouts in evaluation mode and trains
    in training mode; with BatchNorm the two would give different features for the same picture (PPO's ratio would not
    start at 1), and observations would move the running statistics. Those belong to the adversarial update alone.
    """

    def __init__(self, observation_space: spaces.Box, generator_config: GeneratorConfig) -> None:
        """Build the encoder.

        Args:
            observation_space: LR pictures, `(3, h, w)`.
            generator_config: Architecture of the generator that the encoder is part of.

        Raises:
            ValueError: For observations that are no pictures of three channels first.
        """
        if len(observation_space.shape) != 3 or observation_space.shape[0] != 3:
            raise ValueError(f"the trunk reads LR pictures (3, h, w), the observations have {observation_space.shape}")
        super().__init__(observation_space, features_dim=generator_config.channels)
        self.trunk = Encoder(generator_config).eval()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """LR pictures `(B, 3, h, w)` float in [0, 1] to features `(B, channels)` float32."""
        return self.trunk(observations).float().mean((2, 3))

    def train(self, mode: bool = True) -> TrunkExtractor:
        """Set the mode of everything but the encoder."""
        super().train(mode)
        self.trunk.eval()
        return self


class TrunkActorCriticPolicy(ActorCriticPolicy):
    """Actor and critic: one fully connected layer each on the generator's latent (Savioli 2019, sec. 2.1).

    The policy owns the whole generator, so that `model.save` keeps it. Its optimiser holds the encoder and the two
    heads; the decoder is trained by whoever trains the generator (`AdversarialLossCallback`) with an optimiser of its
    own. Load pretrained weights with `model.policy.generator.load_state_dict(...)`.

    Works with A2C, PPO and every other on-policy algorithm of SB3 that takes an `ActorCriticPolicy`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        generator_config: GeneratorConfig | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        ortho_init: bool = True,
        **kwargs: Any,
    ) -> None:
        """Build the policy.

        Args:
            observation_space: LR pictures.
            action_space: Of the environment.
            lr_schedule: Learning rate, as SB3 gives it.
            generator_config: Architecture; `GeneratorConfig()` where none is given.
            net_arch: Hidden layers between latent and heads; none by default, as in the paper (SB3's own default would
                add two of 64 units).
            ortho_init: Orthogonal initial weights, of the heads and hidden layers only: SB3's own version would
                overwrite the encoder's as well.
            **kwargs: As `stable_baselines3.common.policies.ActorCriticPolicy`.

        Raises:
            ValueError: For `share_features_extractor=False`: there is one trunk.
        """
        if not kwargs.pop("share_features_extractor", True):
            raise ValueError("actor and critic share the generator's trunk; leave share_features_extractor at True")
        self.generator_config = generator_config or GeneratorConfig()
        self._ortho_heads = ortho_init
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[] if net_arch is None else net_arch,
            ortho_init=False,
            features_extractor_class=TrunkExtractor,
            features_extractor_kwargs={"generator_config": self.generator_config},
            **kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        """Build heads and optimiser, then the decoder, which thereby stays out of that optimiser."""
        super()._build(lr_schedule)
        if self._ortho_heads:
            for module, gain in ((self.mlp_extractor, 2**0.5), (self.action_net, 0.01), (self.value_net, 1.0)):
                module.apply(partial(self.init_weights, gain=gain))
        self.decoder = Decoder(self.generator_config)
        # In a tuple, because a module attribute would enter the state dict a second time.
        self._generator = (Generator(self.generator_config, self.trunk, self.decoder).eval(),)

    @property
    def trunk(self) -> Encoder:
        """The encoder that policy and generator share."""
        assert isinstance(self.features_extractor, TrunkExtractor)
        return self.features_extractor.trunk

    @property
    def generator(self) -> Generator:
        """The live generator: the trunk and the decoder."""
        return self._generator[0]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What `policy.save` keeps besides the weights."""
        parameters = super()._get_constructor_parameters()
        for name in ("features_extractor_class", "features_extractor_kwargs"):
            parameters.pop(name, None)
        parameters.update(generator_config=self.generator_config, ortho_init=self._ortho_heads)
        return parameters


def trunk_parameters(policy: nn.Module) -> list[nn.Parameter]:
    """The parameters of a policy's shared trunk.

    Args:
        policy: A policy with a `trunk`, such as `TrunkActorCriticPolicy`.

    Raises:
        TypeError: For a policy without one.
    """
    trunk = getattr(policy, "trunk", None)
    if not isinstance(trunk, nn.Module):
        raise TypeError(f"{type(policy).__name__} has no trunk to share with a generator; take TrunkActorCriticPolicy")
    return list(trunk.parameters())

"""The generator itself as a policy: a Gaussian around its picture."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from agents.policies import TrunkExtractor
from gan.generator import Decoder, Encoder, Generator, GeneratorConfig


class GeneratorPolicy(ActorCriticPolicy):
    """Mean: the generator's picture. Noise: equal and independent on every value of it. Critic: a layer on the trunk.

    For `rlsr/SuperResolution-v0`, whose action is the SR picture in [-1, 1]. The optimiser holds encoder, decoder and
    critic, so the policy's gradient trains the whole generator; SRGAN's losses can be added by
    `AdversarialLossCallback` as with every other policy.

    A log probability is the mean over the picture's values, not the sum: tens of thousands of them would make every
    ratio of probabilities 0 or infinite after one small step. PPO's ratio becomes the geometric mean of the values'
    own ratios, as in GSPO (Zheng et al. 2025, eq. 7); A2C's gradient is divided by a constant.

    Attributes:
        sigma: Standard deviation of the noise, in the picture's range of [0, 1].
        reference: The generator as it was when `anchor` was last called, never trained.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        generator_config: GeneratorConfig | None = None,
        sigma: float = 0.02,
        **kwargs: Any,
    ) -> None:
        """Build the policy.

        Args:
            observation_space: LR pictures `(3, h, w)` uint8.
            action_space: SR pictures `(3, scale * h, scale * w)` in [-1, 1].
            lr_schedule: Learning rate, as SB3 gives it.
            generator_config: Architecture; `GeneratorConfig()` where none is given.
            sigma: Of the noise, above 0.
            **kwargs: As `stable_baselines3.common.policies.ActorCriticPolicy`.

        Raises:
            ValueError: For spaces that do not fit the generator, a sigma that is not above 0, an extractor that is not
                shared, or state-dependent noise.
        """
        self.generator_config = generator_config or GeneratorConfig()
        _check_spaces(observation_space, action_space, self.generator_config.scale)
        if not 0.0 < sigma < math.inf:
            raise ValueError(f"sigma must be above 0, got {sigma!r}")
        if not kwargs.pop("share_features_extractor", True) or kwargs.pop("use_sde", False):
            raise ValueError(
                "the policy is its generator with independent noise on every value; leave share_features_extractor at "
                "True and use_sde at False"
            )
        self.sigma = float(sigma)
        if kwargs.get("optimizer_class", th.optim.Adam) is th.optim.Adam and kwargs.get("optimizer_kwargs") is None:
            kwargs["optimizer_kwargs"] = {"eps": 1e-8}  # as plain SRGAN's Adam; SB3's default is another
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            ortho_init=False,
            features_extractor_class=TrunkExtractor,
            features_extractor_kwargs={"generator_config": self.generator_config},
            **kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        """Build decoder, critic and the optimiser of all; SB3's own would add a layer with an output per pixel."""
        config = self.generator_config
        self.decoder = Decoder(config)
        # In a tuple, because a module attribute would enter the state dict a second time.
        self._generator = (Generator(config, self.trunk, self.decoder).eval(),)
        self.value_net = nn.Linear(config.channels, 1)
        nn.init.zeros_(self.value_net.weight)
        nn.init.zeros_(self.value_net.bias)
        parameters = [*self.generator.parameters(), *self.value_net.parameters()]
        self.optimizer = self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self.reference = Generator(config).eval().requires_grad_(False)
        self.anchor()

    @property
    def trunk(self) -> Encoder:
        """The encoder."""
        assert isinstance(self.features_extractor, TrunkExtractor)
        return self.features_extractor.trunk

    @property
    def generator(self) -> Generator:
        """The live generator."""
        return self._generator[0]

    def anchor(self) -> None:
        """Take the generator's weights of now as the reference to stay close to."""
        self.reference.load_state_dict(copy.deepcopy(self.generator.state_dict()))
        self.reference.set_compute_dtype(self.trunk.compute_dtype)

    def pictures(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Mean pictures and values.

        Args:
            obs: LR pictures `(N, 3, h, w)` uint8.

        Returns:
            SR pictures `(N, 3, H, W)` float32, in [0, 1] but not clipped, and values `(N,)`. The critic's gradient
            stops at the latent: it must not change the picture.
        """
        lr_image = self.lr_image(obs)
        latent = self.trunk(lr_image)
        values = self.value_net(latent.detach().float().mean((2, 3))).squeeze(1)
        return self.decoder(latent, lr_image), values

    def lr_image(self, obs: PyTorchObs) -> th.Tensor:
        """Observations as float pictures in [0, 1]."""
        lr_image = preprocess_obs(obs, self.observation_space)
        assert isinstance(lr_image, th.Tensor)
        return lr_image

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Actions in [-1, 1] (not clipped), values `(N, 1)`, log probabilities `(N,)`."""
        mean, values = self.pictures(obs)
        noise = th.zeros_like(mean) if deterministic else th.randn_like(mean)
        picture = mean + self.sigma * noise
        return to_action(picture), values[:, None], self._log_prob(picture, mean)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Values `(N, 1)`, log probabilities `(N,)` and entropies `(N,)` of actions taken before."""
        mean, values = self.pictures(obs)
        picture = to_picture(actions.reshape(mean.shape))
        return values[:, None], self._log_prob(picture, mean), self.entropy().expand(len(mean))

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """Values `(N, 1)`."""
        return self.pictures(obs)[1][:, None]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Actions alone, for `predict`."""
        return self.forward(observation, deterministic)[0]  # type: ignore[arg-type]

    def entropy(self) -> th.Tensor:
        """Entropy of each value of the picture, in nats: 0.5 log(2 pi e sigma^2)."""
        return th.tensor(0.5 * math.log(2 * math.pi * math.e * self.sigma**2), device=self.device)

    def _log_prob(self, picture: th.Tensor, mean: th.Tensor) -> th.Tensor:
        """Log density of pictures, the mean over their values."""
        deviation = (picture - mean) / self.sigma
        return -0.5 * deviation.square().flatten(1).mean(1) - math.log(self.sigma) - 0.5 * math.log(2 * math.pi)

    def set_training_mode(self, mode: bool) -> None:
        """Nothing here depends on the mode; BatchNorm belongs to the adversarial update alone."""
        self.training = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What `policy.save` keeps besides the weights."""
        parameters = super()._get_constructor_parameters()
        for name in ("features_extractor_class", "features_extractor_kwargs", "net_arch", "ortho_init"):
            parameters.pop(name, None)
        parameters.update(generator_config=self.generator_config, sigma=self.sigma)
        return parameters


def to_action(picture: th.Tensor) -> th.Tensor:
    """Pictures from [0, 1] to the action's range of [-1, 1]."""
    return 2.0 * picture - 1.0


def to_picture(action: th.Tensor) -> th.Tensor:
    """Actions from [-1, 1] to pictures in [0, 1]."""
    return 0.5 * (action + 1.0)


def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space, scale: int) -> None:
    """Refuse spaces between which no generator of this scale lies."""
    observed, acted = observation_space.shape or (), action_space.shape or ()
    if len(observed) != 3 or observed[0] != 3 or acted != (3, scale * observed[-2], scale * observed[-1]):
        raise ValueError(
            f"a generator of scale {scale} makes pictures (3, {scale} h, {scale} w) of LR pictures (3, h, w); this "
            f"environment has observations {observed} and actions {acted}: take rlsr/SuperResolution-v0 with scale="
            f"{scale}, or another generator_config"
        )

"""Any Stable-Baselines3 policy with the generator's encoder as its feature extractor.

`TrunkActorCriticPolicy` is the paper's actor-critic; here the same trunk goes into the policies of other algorithms,
so that `AdversarialLossCallback` serves them as well.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from agents.policies import TrunkExtractor
from gan.generator import Decoder, Encoder, Generator, GeneratorConfig


class SharedTrunk:
    """What `with_trunk` puts before a policy: it owns the whole generator, whose encoder the algorithm optimises.

    The trunk is the extractor of the network that acts: of the Q network (DQN), of the actor (SAC, TQC, TD3, DDPG,
    CrossQ), else of actor and critic together. Critics that have extractors of their own keep their own encoder.
    """

    def __init__(self, *args: Any, generator_config: GeneratorConfig | None = None, **kwargs: Any) -> None:
        """Build the policy, then the decoder, which thereby is in none of the policy's optimisers.

        Args:
            *args: As the policy that the trunk was put into.
            generator_config: Architecture; `GeneratorConfig()` where none is given.
            **kwargs: As the policy that the trunk was put into.
        """
        self.generator_config = generator_config or GeneratorConfig()
        kwargs |= {
            "features_extractor_class": TrunkExtractor,
            "features_extractor_kwargs": {"generator_config": self.generator_config},
        }
        if isinstance(self, ActorCriticPolicy):
            kwargs["ortho_init"] = False  # SB3's would overwrite the encoder's weights
        super().__init__(*args, **kwargs)  # type: ignore[call-arg]  # the policy's, of whatever class
        self.decoder = Decoder(self.generator_config)
        # In a tuple, because a module attribute would enter the state dict a second time.
        self._generator = (Generator(self.generator_config, self.trunk, self.decoder).eval(),)

    @property
    def trunk(self) -> Encoder:
        """The encoder that policy and generator share."""
        acting = next((getattr(self, name) for name in ("q_net", "actor") if hasattr(self, name)), self)
        return acting.features_extractor.trunk

    @property
    def generator(self) -> Generator:
        """The live generator: the trunk and the decoder."""
        return self._generator[0]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What `policy.save` keeps besides the weights."""
        parameters = super()._get_constructor_parameters()  # type: ignore[misc]
        for name in ("features_extractor_class", "features_extractor_kwargs", "ortho_init"):
            parameters.pop(name, None)
        return parameters | {"generator_config": self.generator_config}


@cache
def with_trunk(policy_class: type[BasePolicy]) -> type[BasePolicy]:
    """A policy class of SB3 or sb3-contrib, on the generator's trunk.

    ```python
    from stable_baselines3.sac.policies import SACPolicy

    model = SAC(with_trunk(SACPolicy), env, policy_kwargs={"generator_config": config})
    env.set_attr("generator", model.policy.generator)
    model.learn(1000, callback=AdversarialLossCallback(make_update))
    ```

    Args:
        policy_class: Takes `features_extractor_class`, as all but ARS's do.

    Returns:
        A class with `trunk`, `generator`, and one more setting, `generator_config`.

    Raises:
        TypeError: For anything but a policy class.
    """
    if not (isinstance(policy_class, type) and issubclass(policy_class, BasePolicy)):
        raise TypeError(f"expected a policy class of Stable-Baselines3, got {policy_class!r}")
    return type(f"Trunk{policy_class.__name__}", (SharedTrunk, policy_class), {"__doc__": policy_class.__doc__})

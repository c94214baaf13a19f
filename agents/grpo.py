"""GRPO for a generator: many pictures of each patch, judged side by side, one pass through the network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch as th
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from torch import Tensor
from torch.nn import functional

from agents.advantages import BASELINES, Baseline, advantages, is_flat
from agents.generator_policy import GeneratorPolicy, to_action
from agents.picture_noise import picture_noise
from agents.vec_env import GymnasiumVecEnv
from rlsr_env.block_maps import BLOCK
from rlsr_env.env import RestorationEnv
from rlsr_env.vector_env import RestorationVectorEnv

Credit = Literal["auto", "block", "picture"]
CREDITS: tuple[Credit, ...] = ("auto", "block", "picture")


class GRPO(OnPolicyAlgorithm):
    """Group-relative policy optimisation (Shao et al. 2024) of a generator, with the interface of Stable-Baselines3.

    One update: a batch of N patches goes through the generator once; K pictures of each are drawn around its output, in
    pairs of opposite noise; the environment judges all of them; the policy gradient of the one picture that the
    generator made is

        sum over k of A_k (a_k - mean) / (sigma^2 K n),   n the number of values of a picture,

    the gradient of `GeneratorPolicy`'s log probability (Savioli 2019, eq. 9-10, with A the advantage within the group).
    Where the metric has a map, each block of 8 x 8 pixels has an advantage of its own: the noise of other blocks does
    not disturb its credit.

    Smooth noise (`noise_blur`, `grey_noise`) has fewer directions to tell apart and outlives the filters that many
    metrics begin with. Then a_k - mean is correlated, and the same sum is the natural gradient for the mean: the score
    multiplied by the noise's covariance (Kakade 2001), which a picture-sized inverse would only undo.

    An environment step is a picture that was judged, so an update counts K * N of them. The patches then change.

    Attributes:
        n_skipped: Updates left out because the metric failed.
    """

    policy: GeneratorPolicy

    def __init__(
        self,
        policy: str | type[GeneratorPolicy],
        env: VecEnv | RestorationVectorEnv | str,
        learning_rate: float | Callable[[float], float] = 1e-4,
        group_size: int = 16,
        sigma: float | Callable[[float], float] = 0.02,
        baseline: Baseline = "group",
        credit: Credit = "auto",
        noise_blur: float = 0.0,
        grey_noise: bool = False,
        policy_coef: float = 1.0,
        anchor_weight: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        max_skipped: int = 10,
        max_flat: int = 50,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        """Prepare the algorithm.

        Args:
            policy: `"GeneratorPolicy"`, or a class derived from it.
            env: `rlsr/SuperResolution-v0` as a native vector environment, wrapped in `GymnasiumVecEnv` or not, or its
                id (one patch a batch).
            learning_rate: Adam's, or a function of the progress that remains (1 to 0).
            group_size: K, pictures of each patch, even and 4 or more: half of them are drawn, the others mirrored.
            sigma: Standard deviation of the noise in the picture's range of [0, 1], or a function of the progress that
                remains, to anneal it.
            baseline: What a reward is compared with: see `advantages`.
            credit: `"block"` (the metric needs a map), `"picture"`, or `"auto"`: by block where the metric has a map.
            noise_blur: Standard deviation, in pixels, of a Gaussian that smooths the noise; 0 leaves it white.
            grey_noise: The same noise in all three channels.
            policy_coef: Weight of the policy gradient, beside whatever a callback adds to the update.
            anchor_weight: Weight of the Kullback-Leibler divergence from the policy that training started from, the
                mean over the picture's values of (mean - reference)^2 / (2 sigma^2): against reward hacking.
            vf_coef: Weight of the critic's squared error; used with `baseline="critic"` only.
            max_grad_norm: Bound on the norm of this gradient, to which SRGAN's may be added afterwards.
            max_skipped: Failures of the metric in a row, each of which costs an update, before `learn` gives up.
            max_flat: Updates in a row in which no group's reward varied, before `learn` gives up.
            policy_kwargs: Of the policy.
            tensorboard_log: Folder.
            verbose: As in SB3.
            seed: Of noise and environment.
            device: `"auto"`, `"cpu"`, `"cuda"`.
            _init_setup_model: As in SB3.

        Raises:
            TypeError: For an environment that cannot judge several pictures of a patch.
            ValueError: For a number out of range, an unknown name, or credit by block from a metric without a map or on
                patches that blocks do not fill.
        """
        _check(group_size, baseline, credit, policy_coef, anchor_weight, max_skipped, max_flat)
        if not 0.0 <= noise_blur < math.inf:
            raise ValueError(f"noise_blur must be 0 or more pixels, got {noise_blur!r}")
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=1,
            gamma=1.0,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            monitor_wrapper=False,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.group_size = group_size
        self.sigma = sigma
        self.baseline: Baseline = baseline
        self.credit: Credit = credit
        self.noise_blur = noise_blur
        self.grey_noise = grey_noise
        self.policy_coef = policy_coef
        self.anchor_weight = anchor_weight
        self.max_skipped = max_skipped
        self.max_flat = max_flat
        self.n_skipped = 0
        self._n_failures_in_a_row = 0
        self._n_flat_in_a_row = 0
        self._n_updates = 0
        self._loss: Tensor | None = None
        if self.env is not None and self._by_block:
            size = self.judge.source.hr_patch_size
            self.judge.metric.blocks(th.zeros(1, 3, size, size), th.zeros(1, 3, size, size))  # which says what is wrong
        if _init_setup_model:
            self._setup_model()

    policy_aliases = {"GeneratorPolicy": GeneratorPolicy}  # noqa: RUF012  (SB3's own name and form)

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Any form of the environment as a `VecEnv`."""
        if isinstance(env, VectorEnv):
            env = GymnasiumVecEnv(env)
        if not isinstance(env, VecEnv):
            inner = getattr(env, "unwrapped", env)
            batch = inner.vector_env if isinstance(inner, RestorationEnv) else None
            if not isinstance(batch, RestorationVectorEnv):
                raise TypeError(
                    f"GRPO needs an environment that judges several pictures of one patch, got {type(inner).__name__}; "
                    'take gymnasium.make_vec("rlsr/SuperResolution-v0", num_envs=8)'
                )
            env = GymnasiumVecEnv(batch)
        _restoration(env)
        return env

    def _setup_model(self) -> None:
        """Build the policy; there is no rollout buffer: a group is used once, where it was made."""
        self._setup_lr_schedule()
        self._sigma_schedule = FloatSchedule(self.sigma)
        self.set_random_seed(self.seed)
        self.rollout_buffer = None  # type: ignore[assignment]
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)
        self.policy.sigma = self._sigma_at(1.0)

    def _sigma_at(self, remaining: float) -> float:
        """The noise at a progress that remains, checked, because it may be anybody's function."""
        sigma = self._sigma_schedule(remaining)
        if not 0.0 < sigma < math.inf:
            raise ValueError(f"sigma must be above 0, got {sigma!r} where {remaining:.3g} of the training remains")
        return sigma

    def _excluded_save_params(self) -> list[str]:
        """What is not written to the file."""
        return [*super()._excluded_save_params(), "_loss", "_sigma_schedule", "rollout_buffer"]

    @property
    def judge(self) -> RestorationVectorEnv:
        """The environment itself, below its wrappers."""
        assert self.env is not None
        return _restoration(self.env)

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 10,
        tb_log_name: str = "GRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> GRPO:
        """Train until `total_timesteps` pictures have been judged; see Stable-Baselines3.

        The weights of the first update become the anchor; `reset_num_timesteps=False` keeps the one there is.
        """
        if self.num_timesteps == 0 or reset_num_timesteps:
            self.policy.anchor()
        self.policy.reference.set_compute_dtype(self.policy.trunk.compute_dtype)  # which a file does not hold
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """One pass of the generator over the current patches, the group's pictures, their rewards, new patches."""
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        judge = self.judge
        self.policy.sigma = self._sigma_at(self._current_progress_remaining)
        obs = th.as_tensor(self._last_obs, device=self.device)
        mean, values = self.policy.pictures(obs)
        half = picture_noise(self.group_size // 2, mean.detach(), self.noise_blur, self.grey_noise)
        try:
            rewards = self._rewards(mean.detach(), half)
            picture = to_action(mean.detach()).to(judge.source.device)
            next_obs, mean_rewards, ended, _, _ = judge.step_tensors(picture)
        except ValueError as error:
            self._skip(error)
            next_obs = self._new_patches()
        else:
            self._n_failures_in_a_row = 0
            self._loss = self._policy_loss(obs, mean, values, half, rewards)
            self.ep_info_buffer.extend(  # type: ignore[union-attr]
                {"r": reward, "l": 1, "t": 0.0} for reward in mean_rewards.tolist()
            )
            if judge.metadata["autoreset_mode"] is AutoresetMode.DISABLED and ended.any():
                next_obs = self._new_patches()
        self._last_obs = next_obs  # type: ignore[assignment]
        self.num_timesteps += self.group_size * env.num_envs
        callback.update_locals(locals())
        if not callback.on_step():
            return False
        callback.on_rollout_end()
        return True

    def _rewards(self, mean: Tensor, half: Tensor) -> Tensor:
        """Rewards of the group, `(K, N)` or `(K, N, H // 8, W // 8)`; the second half has the first's noise negated."""
        device = self.judge.source.device
        action, n_pairs = to_action(mean), len(half)
        samples = action.new_empty(2 * n_pairs, *action.shape)
        th.add(action, half, alpha=2.0 * self.policy.sigma, out=samples[:n_pairs])
        th.sub(action, half, alpha=2.0 * self.policy.sigma, out=samples[n_pairs:])
        return self.judge.rewards_of(samples.to(device), self._by_block).to(self.device, th.float32)

    @property
    def _by_block(self) -> bool:
        """Whether credit goes to blocks."""
        if self.credit == "auto":
            return self.judge.metric.block_map is not None
        return self.credit == "block"

    def _policy_loss(self, obs: Tensor, mean: Tensor, values: Tensor, half: Tensor, rewards: Tensor) -> Tensor:
        """A scalar whose gradient is that of the class's docstring, with anchor and critic; logs all of them."""
        if self.baseline == "critic":
            predicted = values.detach().reshape(-1, *(1,) * (rewards.ndim - 2))
            group_advantages = advantages(rewards, "critic", predicted)
        else:
            group_advantages = advantages(rewards, self.baseline)
        flat = is_flat(rewards)
        self._watch_flat(flat)
        # A pair has noise e and -e: (A of the one - A of the other) e.
        first, second = group_advantages.chunk(2)
        direction = _spread(first - second, half) / (self.group_size * self.policy.sigma)
        policy_loss = -(direction * mean).mean()
        loss = self.policy_coef * policy_loss
        if self.anchor_weight > 0:
            with th.no_grad():
                reference = self.policy.reference(self.policy.lr_image(obs))
            divergence = (mean - reference).square().mean() / (2 * self.policy.sigma**2)
            loss = loss + self.anchor_weight * divergence
            self.logger.record_mean("train/divergence_from_start", divergence.item())
        if self.baseline == "critic":
            value_loss = functional.mse_loss(
                values, rewards.flatten(2).mean((0, 2)) if rewards.ndim > 2 else rewards.mean(0)
            )
            loss = loss + self.vf_coef * value_loss
            self.logger.record_mean("train/value_loss", value_loss.item())
        self.logger.record_mean("train/reward_spread", rewards.std(0).mean().item())
        self.logger.record_mean("train/flat_groups", flat.float().mean().item())
        self.logger.record("train/sigma", self.policy.sigma)
        self.logger.record("train/entropy", self.policy.entropy().item())
        return loss

    def train(self) -> None:
        """One step of the optimiser on the group just made; none where the metric failed on it."""
        if self._loss is None:
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.optimizer.zero_grad(set_to_none=True)
        self._loss.backward()
        self._loss = None
        norm = th.nn.utils.clip_grad_norm_(self.policy.optimizer.param_groups[0]["params"], self.max_grad_norm)
        self.logger.record_mean("train/grad_norm", norm.item())
        self.policy.optimizer.step()
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _skip(self, error: ValueError) -> None:
        """Leave out an update that the metric spoiled."""
        self._loss = None
        self.n_skipped += 1
        self.logger.record("train/n_skipped", self.n_skipped)
        self._count_failure(error)
        warnings.warn(f"an update was skipped, {self.n_skipped} so far: {self._named(error)}", stacklevel=2)

    def _new_patches(self) -> Tensor:
        """Observations of new episodes; the metric judges their first pictures, so it may fail here too."""
        while True:
            try:
                return self.judge.reset_tensors()[0]
            except ValueError as error:
                self._count_failure(error)

    def _count_failure(self, error: ValueError) -> None:
        """Give up after too many failures of the metric in a row."""
        self._n_failures_in_a_row += 1
        if self._n_failures_in_a_row > self.max_skipped:
            raise ValueError(
                f"the metric failed {self._n_failures_in_a_row} times in a row, more than max_skipped = "
                f"{self.max_skipped}; the last time: {self._named(error)}"
            ) from error

    def _named(self, error: ValueError) -> str:
        """What went wrong, and on patches of which pictures."""
        uris = dict.fromkeys(self.judge.uris())
        return str(error) if any(uri in str(error) for uri in uris) else f"{error} (patches of {', '.join(uris)})"

    def _watch_flat(self, flat: Tensor) -> None:
        """Give up where rewards do not vary any more."""
        self._n_flat_in_a_row = self._n_flat_in_a_row + 1 if flat.all() else 0
        if self._n_flat_in_a_row > self.max_flat:
            raise RuntimeError(
                f"in {self._n_flat_in_a_row} updates in a row, all {self.group_size} pictures of a patch earned the "
                f"same, so there is nothing to learn from; raise sigma (now {self.policy.sigma:g}), or take a reward "
                "that varies"
            )


def _spread(weights: Tensor, noise: Tensor) -> Tensor:
    """The sum over k of weight_k noise_k.

    Args:
        weights: `(K, N)`, or `(K, N, H // 8, W // 8)` for each block; pixels beyond the last whole block get none.
        noise: `(K, N, 3, H, W)`.

    Returns:
        `(N, 3, H, W)`.
    """
    if weights.ndim == 2:
        return th.einsum("kn,knchw->nchw", weights, noise)
    rows, columns = (BLOCK * n for n in weights.shape[2:])
    of_pixels = weights.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    total = th.zeros_like(noise[0])
    # Sample by sample: what is added up then stays in the processor's cache.
    for weight, sample in zip(of_pixels, noise, strict=True):
        total[..., :rows, :columns].addcmul_(weight[:, None], sample[..., :rows, :columns])
    return total


def _restoration(env: VecEnv) -> RestorationVectorEnv:
    """The native environment below SB3's wrappers."""
    inner = env
    while isinstance(inner, VecEnvWrapper):
        inner = inner.venv
    batch = inner.vector_env.unwrapped if isinstance(inner, GymnasiumVecEnv) else inner
    if not isinstance(batch, RestorationVectorEnv) or batch.task.remembers:
        task = batch.task.name if isinstance(batch, RestorationVectorEnv) else type(batch).__name__
        raise TypeError(
            f"GRPO needs an environment that judges several pictures of one patch, got {task}; take "
            'gymnasium.make_vec("rlsr/SuperResolution-v0", num_envs=8)'
        )
    return batch


def _check(
    group_size: int,
    baseline: str,
    credit: str,
    policy_coef: float,
    anchor_weight: float,
    max_skipped: int,
    max_flat: int,
) -> None:
    """Refuse settings out of range."""
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 4 or group_size % 2:
        raise ValueError(f"group_size must be an even integer of 4 or more, got {group_size!r}")
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}; known: {', '.join(BASELINES)}")
    if credit not in CREDITS:
        raise ValueError(f"unknown credit {credit!r}; known: {', '.join(CREDITS)}")
    for name, weight in {"policy_coef": policy_coef, "anchor_weight": anchor_weight}.items():
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"{name} must be 0 or more, got {weight!r}")
    for name, value in {"max_skipped": max_skipped, "max_flat": max_flat}.items():
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value!r}")

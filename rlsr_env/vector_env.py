"""The environments, natively batched: N image patches, one batch, one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rlsr_env.batch_judge import PERFECT, BatchJudge, rounded
from rlsr_env.batches import keep_memory
from rlsr_env.captions import add_caption
from rlsr_env.codec import LRCodec
from rlsr_env.episodes import Episodes, check_state, checked_options, final_infos, masked, picture_numbers
from rlsr_env.images import ImageSet, decode_images, image_set
from rlsr_env.metrics import Metric, metric
from rlsr_env.patches import PatchSource, to_float
from rlsr_env.resample import Upsampling
from rlsr_env.rewards import Reward, reward
from rlsr_env.tasks import PartRestorer, Restorer, Task, choose_task


class RestorationVectorEnv(VectorEnv):
    """N restoration tasks at once; see `RestorationEnv` for what each of them is.

    Equal to N scalar environments whose seeds count up from the first, as in Gymnasium's `SyncVectorEnv`: to the bit as
    far as the generator and the metric are the same to the bit for a picture in any company. Lanczos upsampling and
    most metrics are; HaarPSI, GMSD and whatever else is made of PyTorch's convolutions, networks above all, may differ
    in the last bits.

    Attributes:
        generator: The network that restores, called without gradient on `(N, 3, h, w)` float in [0, 1]. It is held, not
            copied: when somebody trains it, the next step already sees the difference. Assign another at any time.
        source: The patches.
        metric: The judge.
        episodes: Which are running, and their random numbers.
    """

    _lr: Tensor  # (N, 3, h, w) uint8
    _lr_image: Tensor  # the same as float in [0, 1]
    _hr: Tensor  # (N, 3, scale * h, scale * w) uint8

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: str | Task = "psnr_prediction",
        images: str | ImageSet = "sample:train",
        scale: int = 4,
        quality: int = 75,
        base_codec: str = "jpeg",
        lr_patch_size: int = 40,
        episode_length: int = 5,
        metric: str | Metric = "psnr",
        reward: str | Reward = "threshold",
        generator: Restorer | None = None,
        source: PatchSource | None = None,
        device: str | torch.device = "cpu",
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        render_original: bool = False,
        **task_options: Any,
    ) -> None:
        """Build the environments.

        Args:
            num_envs: How many.
            task: What an action means.
            images: The image set that patches come from: `"sample"`, `"sample:train"`, `"folder:PATH"`, or an object.
            scale: Downsampling factor of the LR file.
            quality: Quality of the LR file.
            base_codec: `"jpeg"`, `"webp"` or `"avif"`.
            lr_patch_size: Side of the observation, pixels.
            episode_length: Steps on one patch (the paper's T).
            metric: Name or object.
            reward: Name or object: from the metric before and after a step to a number.
            generator: From LR to SR pictures; Lanczos upsampling where none is given.
            source: Patches that exist already, in the place of `images`, `scale`, `quality`, `base_codec`,
                `lr_patch_size` and `device`.
            device: Where pictures are kept and compared: `"cpu"`, `"cuda"`, ...
            autoreset_mode: `SAME_STEP` or `DISABLED` (with `reset(options={"reset_mask": ...})`).
            render_mode: None or `"rgb_array"`; the scalar environment also takes `"human"`.
            render_original: Whether frames show the original as well.
            **task_options: The task's own settings.

        Raises:
            TypeError: For an argument of a wrong kind.
            ValueError: For a setting that is unknown or out of range, or a metric that needs larger patches.
        """
        sizes = {"num_envs": num_envs, "episode_length": episode_length, "lr_patch_size": lr_patch_size}
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if generator is not None and not callable(generator):
            raise TypeError(f"generator must be a function from LR to SR pictures, got {type(generator).__name__}")
        self.episodes = Episodes(num_envs, autoreset_mode)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 2, "autoreset_mode": self.episodes.mode}
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"unknown render_mode {render_mode!r}; known: None, {self.metadata['render_modes']}")
        self.render_mode = render_mode
        self.render_original = render_original
        keep_memory()
        if source is not None and not isinstance(source, PatchSource):
            raise TypeError(f"source must be a PatchSource, got {source!r}; images takes names")
        if source is None:
            codec = LRCodec(scale=scale, base=base_codec, quality=quality)
            decoded = decode_images(image_set(images), min_size=lr_patch_size * codec.scale)
            source = PatchSource(decoded, codec, lr_patch_size, device=device)
        self.source = source
        self.task = choose_task(task, **task_options)
        self.metric = _choose_metric(metric, source.hr_patch_size)
        self.reward = _choose_reward(reward)
        self.episode_length = episode_length
        self.generator: Restorer = generator if generator is not None else Upsampling(source.codec.scale)

        size = source.lr_patch_size
        self.num_envs = num_envs
        self.single_observation_space = Box(0, 255, (self.task.n_channels, size, size), np.uint8)
        self.single_action_space = self.task.action_space(size, source.codec.scale)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._index = np.zeros((num_envs, 5), dtype=np.int64)
        self._n_steps = np.zeros(num_envs, dtype=np.int64)
        self._values = torch.zeros(num_envs, dtype=torch.float64, device=source.device)
        # Loops on the CPU take a picture colour by colour, networks elsewhere take it pixel by pixel.
        self._memory_format = torch.contiguous_format if source.device.type == "cpu" else torch.channels_last
        self._take_patches()
        # By NumPy: after PyTorch's threads have once been at work, a forked process waits for them for ever.
        self._sr = torch.from_numpy(np.zeros(tuple(self._hr.shape), np.uint8)).to(source.device)
        self._batch_judge = BatchJudge(self.metric, tuple(self._hr.shape), source.device)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, each on a new patch.

        Args:
            seed: Of all random choices; environment i gets `seed + i`, or its own from a sequence.
            options: `{"reset_mask": (num_envs,) bool}` resets only the marked environments; `{"uri": ...}` takes the
                patch from that picture, one for all environments or a sequence with one for each.

        Returns:
            Observations `(N, channels, h, w)` uint8, and `info` with the metric of the generator's picture.

        Raises:
            TypeError: For a seed that is no integer, options that are no dictionary, a mask that is no array of bool.
            ValueError: For a negative seed, a seed sequence or mask of the wrong length, a mask that marks none, a
                picture that the image set lacks, or another option.
        """
        options = checked_options(options)
        pictures = picture_numbers(options.get("uri"), self.source.uris, self.num_envs)
        # Last: where something is wrong, no seed is used up.
        mask = self.episodes.reset(seed, options, ["uri"])
        self._start(mask, pictures)
        return _fresh(self._observed()), masked({self.metric.name: _fresh(self._values)}, mask)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Act in every environment.

        Args:
            actions: `(N, ...)`, one action of `single_action_space` each.

        Returns:
            Observations, rewards `(N,)` float64, terminated and truncated `(N,)` bool, and `info`. Where an episode has
            ended in mode SAME_STEP, the observation is the next episode's, and the last one's is in
            `info["final_obs"]`, its info in `info["final_info"]`.

        Raises:
            TypeError: For actions that are no numbers.
            ValueError: For actions of the wrong shape, or NaN or infinite ones.
            ResetNeeded: For an environment whose episode is over and was not reset.
        """
        rewards, terminated, values = self._act(self._checked_actions(actions))
        info = {name: _fresh(entries) for name, entries in values.items()}
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        if self.episodes.mode is AutoresetMode.SAME_STEP and terminated.any():
            infos = final_infos(_fresh(self._observed()), info, terminated)
            self._start(terminated)
            infos |= masked({self.metric.name: _fresh(self._values)}, everyone)
        else:
            infos = masked(info, everyone)
        return _fresh(self._observed()), _fresh(rewards), terminated, np.zeros_like(terminated), infos

    def reset_tensors(self, seed: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """`reset` without NumPy: all environments, observations and info as tensors on the device.

        Args:
            seed: As for `reset`.

        Returns:
            Observations `(N, channels, h, w)` uint8, and `info` with the metric, `(N,)` float64.

        Raises:
            TypeError: For a seed that is no integer.
            ValueError: For a negative seed.
        """
        self.reset(seed=seed)
        return _own(self._observed()), {self.metric.name: self._values.clone()}

    def step_tensors(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """`step` without NumPy: tensors in, tensors out, all on the device.

        Args:
            actions: `(N, ...)` float32.

        Returns:
            Observations, rewards `(N,)` float64, terminated and truncated `(N,)` bool, and `info`: the metric and the
            task's own entries of this step, each `(N,)`, also where the episode has ended; in mode SAME_STEP then
            `final_obs`, the observations of all environments before the new episodes began.

        Raises:
            TypeError: For anything but a tensor of numbers.
            ValueError: For actions of the wrong shape, or NaN or infinite ones.
            ResetNeeded: For an environment whose episode is over and was not reset.
        """
        rewards, terminated, info = self._act(self._checked_tensor(actions))
        if self.episodes.mode is AutoresetMode.SAME_STEP and terminated.any():
            info["final_obs"] = _own(self._observed())
            self._start(terminated)
        ended = torch.from_numpy(terminated).to(self.source.device)
        return _own(self._observed()), rewards, ended, torch.zeros_like(ended), info

    def rewards_of(self, actions: Tensor, per_block: bool = False) -> Tensor:
        """What each of several actions would earn on the current patches, without acting: groups of samples for GRPO.

        Args:
            actions: `(K, N, ...)` float32, K actions for each environment.
            per_block: Credit for each block of 8 x 8 pixels instead, from the metric's map after the action, turned so
                that larger is better; the reward function is not applied.

        Returns:
            Rewards `(K, N)`, or maps `(K, N, H // 8, W // 8)`, on the device.

        Raises:
            TypeError: For anything but a tensor of numbers.
            ValueError: For actions of the wrong shape, NaN or infinite ones, a task whose steps depend on each other, a
                metric that has no map where one is asked for, or a metric that fails; the pictures are named.
            ResetNeeded: For an environment whose episode is over and was not reset.
        """
        if self.task.remembers:
            raise ValueError(
                f"task {self.task.name} remembers earlier actions, so several cannot be tried on one patch; take "
                "rlsr/SuperResolution-v0"
            )
        actions = self._checked_tensor(actions, several=True)
        self.episodes.require_running()
        n_samples = len(actions)
        if n_samples == 0:
            raise ValueError("there are no actions to try; give one or more for each environment")
        with torch.no_grad():
            lr_image = self._lr_image.repeat(n_samples, 1, 1, 1)
            restored = self.task.restore(actions.flatten(0, 1), lr_image, self.generator)
            self._check_shape(restored, len(lr_image))
            sr_levels = rounded(restored)
            sign = 1.0 if self.metric.higher_is_better else -1.0
            if per_block:
                maps = sign * self.metric.blocks(to_float(sr_levels), to_float(self._hr))
                self._check_samples(maps.flatten(1).isnan().any(1), n_samples)
                return maps.unflatten(0, (n_samples, self.num_envs))
            try:
                # As in a step: the same picture must be worth the same to the bit.
                values = self.metric.against_levels(self._hr.repeat(n_samples, 1, 1, 1))(sr_levels).double()
            except ValueError as error:
                raise ValueError(f"{error} (patches of {', '.join(dict.fromkeys(self.uris()))})") from error
            self._check_samples(values.isnan(), n_samples)
            values = values.nan_to_num(posinf=PERFECT, neginf=-PERFECT).unflatten(0, (n_samples, self.num_envs))
            return self.reward(sign * self._values.expand_as(values), sign * values)

    def _check_samples(self, bad: Tensor, n_samples: int) -> None:
        """Raise where samples could not be judged, and say of which pictures."""
        if bad.any():
            patches = bad.unflatten(0, (n_samples, self.num_envs)).any(0).nonzero().flatten().tolist()
            uris = dict.fromkeys(self.uris()[number] for number in patches)
            raise ValueError(
                f"metric {self.metric.name} returned NaN for {int(bad.sum())} of {len(bad)} pictures, patches of "
                f"{', '.join(uris)}"
            )

    def _act(self, actions: Tensor) -> tuple[Tensor, np.ndarray, dict[str, Tensor]]:
        """Act, judge, count: rewards `(N,)`, terminated `(N,)`, and what `info` says of this step."""
        self.episodes.require_running()
        before = (self._values, self._sr)
        remembered = dict(vars(self.task))
        try:
            with torch.no_grad():
                self._judge(self.task.restore(actions, self._lr_image, self.generator))
            rewards = self._rewards(before[0])
            bonus = self.task.bonus(actions, self._values)
            if bonus is not None:
                rewards = rewards + bonus.double()
        except BaseException:  # whatever fails (a metric, a generator, Ctrl-C), this step has not been
            self._values, self._sr = before
            vars(self.task).update(remembered)
            raise
        self._n_steps += 1
        terminated = self._n_steps >= self.episode_length
        self.episodes.end(terminated)
        return rewards, terminated, {self.metric.name: self._values.clone(), **self.task.describe(actions)}

    def _rewards(self, before: Tensor) -> Tensor:
        """What the metric's change from `before` earns, `(N,)` float64."""
        sign = 1.0 if self.metric.higher_is_better else -1.0
        rewards = self.reward(sign * before, sign * self._values)
        if not isinstance(rewards, Tensor):
            raise TypeError(f"a reward returns a tensor with a number for each environment, got {rewards!r}")
        if rewards.shape != before.shape or not torch.isfinite(rewards).all():
            raise ValueError(
                f"the reward returned {rewards.tolist()} for {self.num_envs} environments; expected one finite number "
                "for each"
            )
        return rewards.double()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame per environment, `(H + 14, 2 * W, 3)` uint8: the LR patch enlarged, the SR patch, and a caption.

        With `render_original`, the original comes third, and the frame is `3 * W` wide.
        """
        if self.render_mode is None:
            return None
        scale = self.source.codec.scale
        panels = [
            self._lr.repeat_interleave(scale, 2).repeat_interleave(scale, 3),
            self._sr,
            *([self._hr] if self.render_original else []),
        ]
        pictures = torch.cat(panels, dim=3).permute(0, 2, 3, 1).cpu().numpy()
        values = zip(self._n_steps.tolist(), self._values.tolist(), strict=True)
        captions = [f"step {step}: {self.metric.name} {value:.4f} {self.metric.unit}" for step, value in values]
        return tuple(add_caption(picture, text) for picture, text in zip(pictures, captions, strict=True))

    @property
    def hr_patches(self) -> Tensor:
        """The current originals, `(N, 3, H, W)` uint8: for oracles and reports, never for an agent."""
        return self._hr

    def uris(self) -> list[str]:
        """The picture that each environment's patch comes from."""
        return [self.source.uris[number] for number in self._index[:, 0]]

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from step to step, as plain numbers: from here, a copy goes on exactly."""
        return {
            "index": self._index.tolist(),
            "n_steps": self._n_steps.tolist(),
            "values": self._values.tolist(),
            "task": self.task.state_dict(),
            **self.episodes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict` of an environment with the same settings.

        The SR pictures are no part of the state: until the next step, `render` shows those from before.

        Raises:
            ValueError: Where the number of environments, the pictures, the task or its options differ, or something is
                missing.
        """
        check_state(state, ("index", "n_steps", "values", "finished", "rngs"), self.num_envs)
        index = np.array(state["index"], dtype=np.int64)
        self.source.check(index)
        lr_image, _ = self.source.gather(index, self._memory_format)
        with torch.no_grad():
            self.task.load_state_dict(state.get("task", {}), to_float(lr_image), self.generator)
        self._index = index
        self._take_patches()
        self._batch_judge.take(self._hr)
        self._n_steps = np.array(state["n_steps"], dtype=np.int64)
        self._values = torch.tensor(state["values"], dtype=torch.float64, device=self.source.device)
        self.episodes.load_state_dict(state)

    def _start(self, mask: np.ndarray, pictures: Sequence[int] | None = None) -> None:
        """Give the marked environments a new patch and judge the generator's picture of it: step 0 of the episode."""
        before = (self._index.copy(), self._n_steps.copy(), self._lr, self._hr, self._lr_image)
        remembered = dict(vars(self.task))
        try:
            begun, rngs = zip(*self.episodes.begin(mask), strict=True)
            chosen = None if pictures is None else [pictures[i] for i in begun]
            self._index[list(begun)] = self.source.draw_each(rngs, chosen)
            self._take_patches()
            self._n_steps[mask] = 0
            marked = torch.from_numpy(mask).to(self.source.device)
            with torch.no_grad():
                self._judge(self.task.start(marked, self._lr_image, self.generator), mask)
        except BaseException:  # whatever fails, what has not begun cannot go on, and the others have lost nothing
            self._index, self._n_steps, self._lr, self._hr, self._lr_image = before
            vars(self.task).update(remembered)
            self.episodes.finished[mask] = True
            raise

    def _take_patches(self) -> None:
        """Gather the patches of the index."""
        self._lr, self._hr = self.source.gather(self._index, self._memory_format)
        self._lr_image = to_float(self._lr)

    def _judge(self, restored: Tensor | PartRestorer, marked: np.ndarray | None = None) -> None:
        """Round and measure SR pictures; only the marked environments take them over, where a mask is given."""
        self._check_shape(restored, self.num_envs)
        sr_levels, values = self._batch_judge.judge(restored, self._hr, marked)
        if marked is not None and not marked.all():
            taken = torch.from_numpy(marked).to(self.source.device)
            values = torch.where(taken, values, self._values)
            sr_levels = torch.where(taken[:, None, None, None], sr_levels, self._sr)
        self._values, self._sr = values, sr_levels

    def _check_shape(self, restored: Tensor | PartRestorer, n: int) -> None:
        """Raise unless these are `n` pictures of the originals' size."""
        if not isinstance(restored, Tensor | PartRestorer):
            raise TypeError(
                f"task {self.task.name} must return pictures as a tensor, or a PartRestorer, got "
                f"{type(restored).__name__}"
            )
        expected = (n, *self._hr.shape[1:])
        if tuple(restored.shape) != expected:
            raise ValueError(
                f"the generator makes pictures of {tuple(restored.shape)} from LR patches of {tuple(self._lr.shape)}, "
                f"the originals are {expected}; give a generator of scale {self.source.codec.scale}"
            )

    def _observed(self) -> Tensor:
        """Observations `(N, channels, h, w)` uint8 on the device; not a copy."""
        return self.task.observe(self._lr)

    def _checked_tensor(self, actions: Any, several: bool = False) -> Tensor:
        """Actions, or several for each environment, as a float32 tensor on the device."""
        if not isinstance(actions, Tensor) or actions.dtype == torch.bool or actions.is_complex():
            got = actions.dtype if isinstance(actions, Tensor) else type(actions).__name__
            raise TypeError(f"actions must be a tensor of numbers, got {got}; step takes NumPy arrays")
        expected = self.action_space.shape
        if (actions.shape[1:] if several and actions.dim() else actions.shape) != expected:
            times = "K times " if several else ""
            raise ValueError(f"actions must have shape {times}{expected}, got {tuple(actions.shape)}")
        own = actions.detach().resolve_neg().to(self.source.device, torch.float32)
        if not _all_finite(own):
            raise ValueError("an action is NaN or infinite; check the weights of the network that acts")
        return own

    def _checked_actions(self, actions: Any) -> Tensor:
        """Actions as a float32 tensor on the device."""
        array = np.asarray(actions)
        if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
            raise TypeError(f"actions must be numbers of {self.single_action_space}, got dtype {array.dtype}")
        if array.shape != self.action_space.shape:
            raise ValueError(f"actions must have shape {self.action_space.shape}, got {array.shape}")
        # Writeable, as PyTorch warns of an array that is not.
        own = torch.from_numpy(np.require(array, dtype=np.float32, requirements=["C", "W"]))
        if not _all_finite(own):
            bad = np.flatnonzero(~np.isfinite(own.numpy().reshape(self.num_envs, -1)).all(axis=1)).tolist()
            raise ValueError(
                f"the actions of environments {bad} are NaN or infinite; expected {self.single_action_space}"
            )
        return own.to(self.source.device)


def _all_finite(actions: Tensor) -> bool:
    """Whether no action is NaN or infinite."""
    if actions.device.type == "cpu":
        from rlsr_env.loops import all_finite  # compiled by Numba, which takes its time to be imported

        return all_finite(actions)
    return bool(torch.isfinite(actions).all())


def _fresh(tensor: Tensor) -> np.ndarray:
    """A NumPy copy that shares no memory with the environment."""
    return np.array(tensor.cpu().numpy(), order="C", copy=True)


def _own(tensor: Tensor) -> Tensor:
    """A copy on the same device; on the CPU without waking PyTorch's threads."""
    return torch.from_numpy(_fresh(tensor)) if tensor.device.type == "cpu" else tensor.clone()


def _choose_metric(name: str | Metric, patch_size: int) -> Metric:
    """A metric that can judge patches of this size."""
    judge = metric(name)
    if judge.min_size > patch_size:
        raise ValueError(
            f"metric {judge.name} needs pictures of {judge.min_size} pixels or more, the patches have {patch_size}; "
            "take a larger lr_patch_size or another metric"
        )
    return judge


def _choose_reward(name: str | Reward) -> Reward:
    """A reward by name; here because the constructor's argument hides the function's name."""
    return reward(name)

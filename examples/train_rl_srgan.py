"""Train RL-SRGAN: an SB3 algorithm on the generator's trunk, SRGAN's losses in each of its updates.

Start here for an experiment of your own: another algorithm, another schedule, other pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import VecMonitor

from agents.callbacks import AdversarialLossCallback
from agents.policies import TrunkActorCriticPolicy
from agents.vec_env import GymnasiumVecEnv
from gan.adversarial import AdversarialUpdate
from gan.content import choose_content_loss
from gan.evaluation import code_pictures, measure
from gan.generator import Generator, GeneratorConfig
from gan.precision import choose_compute_dtype, choose_device
from gan.training import PatchSampler, Pretraining
from rlsr_env.codec import LRCodec
from rlsr_env.images import decode_images, image_set
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv


@dataclass(frozen=True)
class Args:
    """Arguments of this example."""

    algorithm: Literal["a2c", "ppo"] = "a2c"
    """which of SB3's algorithms"""
    schedule: Literal["update", "step"] = "step"
    """step: an SRGAN update at every environment step (the paper's); update: only within the algorithm's own updates"""
    images: str = "sample:train"
    """training pictures: sample:train or folder:PATH"""
    held_out: str = "sample:held-out"
    """pictures to measure on: sample:held-out or folder:PATH"""
    scale: int = 4
    """factor by which the pictures are shrunk"""
    quality: int = 75
    """quality of the small JPEG"""
    n_envs: int = 4
    """environments, one patch each"""
    n_steps: int = 5
    """environment steps to each RL update (the paper's T)"""
    total_timesteps: int = 800
    """environment steps of all environments together"""
    pretrain_updates: int = 500
    """updates of the generator alone before that"""
    batch_size: int = 8
    """patches in each SRGAN update"""
    content_loss: Literal["auto", "vgg19", "random", "none"] = "auto"
    """auto: VGG19 of the weights that are found, else of fixed random ones; vgg19 downloads them; none: without it"""
    vgg_weights: Path | None = None
    """file of VGG19's weights; without it RLSR_VGG19, torchvision's cache, else fixed random weights"""
    quick: bool = False
    """at most 60 updates of the generator alone and 80 environment steps, without content loss: a minute on one core"""
    seed: int = 0
    """seed of everything"""
    device: str = "auto"
    """auto, cpu or cuda"""
    save: Path | None = None
    """where to save the model (.zip); the callback's checkpoint goes beside it (.pt)"""


args = tyro.cli(Args)
if args.quick:
    args = replace(
        args,
        pretrain_updates=min(args.pretrain_updates, 60),
        total_timesteps=min(args.total_timesteps, 80),
        content_loss="none",
    )
torch.manual_seed(args.seed)
device = choose_device(args.device)
compute_dtype = choose_compute_dtype(device)

# The pictures: each is coded once, a training patch is a gather.
codec = LRCodec(scale=args.scale, quality=args.quality)
source = PatchSource(decode_images(image_set(args.images)), codec, lr_patch_size=96 // args.scale, device=device)
held_out = code_pictures(decode_images(image_set(args.held_out)), codec)

# The start: the generator alone.
generator = Generator(GeneratorConfig.preset("fast", args.scale)).to(device).set_compute_dtype(compute_dtype)
pretraining = Pretraining(generator, PatchSampler(source, args.batch_size, args.seed), args.pretrain_updates)
for _ in range(args.pretrain_updates):
    pretraining.update()
start = pretraining.averaged_generator()
print(f"pretrained: {measure(start, held_out, device)['psnr']:.3f} dB on held-out pictures")

# The agent: its policy owns the generator, the environment judges the same generator while it learns.
env = RestorationVectorEnv(args.n_envs, source=source, episode_length=args.n_steps)
algorithm = {"a2c": A2C, "ppo": PPO}[args.algorithm]
options = (
    {"use_rms_prop": False} if args.algorithm == "a2c" else {"batch_size": args.n_steps * args.n_envs, "n_epochs": 1}
)
model = algorithm(
    TrunkActorCriticPolicy,
    VecMonitor(GymnasiumVecEnv(env)),
    n_steps=args.n_steps,
    learning_rate=1e-4,
    policy_kwargs={"generator_config": start.config},
    seed=args.seed,
    device=device,
    **options,
)
model.policy.generator.load_state_dict(start.state_dict())
env.generator = model.policy.generator.set_compute_dtype(compute_dtype)

# SRGAN's losses, injected into every update.
content_loss = choose_content_loss(args.content_loss, args.vgg_weights)
print(f"content loss: {content_loss.description}")
callback = AdversarialLossCallback(
    lambda live: AdversarialUpdate(
        live, PatchSampler(source, args.batch_size, args.seed), content_loss.loss, seed=args.seed
    ),
    schedule=args.schedule,
)
model.learn(args.total_timesteps, callback=callback)
restored = measure(callback.adversarial.averaged_generator(), held_out, device)
print(f"{args.algorithm}, {callback.n_updates} SRGAN updates: {restored['psnr']:.3f} dB, SSIM {restored['ssim']:.4f}")
if args.save is not None:
    model.save(args.save)
    callback.save(args.save.with_suffix(".pt"))

"""`rlsr train`: a decoder from nothing to the weights that the package ships, stage by stage."""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from agents.grpo_stage import GRPOStage
from agents.interruption import Interrupted, Interruption
from agents.reports import describe_machine, describe_versions, write_json
from agents.run_folder import CONFIG, RUN, choose_run, read_checkpoint, read_run
from agents.stages import Stage, SupervisedStage
from agents.train_options import TrainOptions
from gan.adversarial import AdversarialConfig, AdversarialUpdate, SRGANTraining
from gan.content import choose_content_loss
from gan.evaluation import CodedPicture, code_pictures, measure
from gan.generator import Generator, GeneratorConfig
from gan.losses import LossWeights, Metrics
from gan.precision import choose_compute_dtype, choose_device
from gan.training import LatePhase, PatchSampler, Pretraining
from gan.weights import load_generator, save_generator
from rlsr_env.codec import LosslessLRCodec, LRCodec
from rlsr_env.files import write_whole
from rlsr_env.images import DecodedImages, decode_images, image_set
from rlsr_env.metrics import metric
from rlsr_env.patches import PatchSource
from rlsr_env.resample import upsample
from rlsr_env.rewards import Improvement
from rlsr_env.vector_env import RestorationVectorEnv

CHECKPOINT = "checkpoint.pt"
VALIDATED = ("psnr", "ms_ssim", "ssim")
# The metric by which the network of a purpose is chosen among those that were validated; a perceptual one has none.
CHOSEN_BY = {"psnr": "psnr", "ms_ssim": "ms_ssim", "perceptual": None}
LEAST_VALIDATED = 176  # what MS-SSIM needs


class TrainingRun:
    """One run of `rlsr train`.

    Everything that can be refused is refused by the constructor, which writes nothing.
    """

    def __init__(self, options: TrainOptions, *, command: str, console: Console | None = None) -> None:
        """Check the options, read and code the pictures.

        Args:
            options: What to do.
            command: The command line, for the card.
            console: Where to report progress.

        Raises:
            ValueError: For an option out of range, pictures or weights that cannot be used, an output folder that is
                not empty, or a resumed run whose pictures have changed.
            FileNotFoundError: For a folder or file that does not exist.
        """
        self.console = console or Console(stderr=True)
        self.command = command
        self.resumed = options.resume is not None
        self.out, self.options = choose_run(options)
        options = self.options
        options.check()
        self.device = choose_device(options.device)
        self.compute_dtype = choose_compute_dtype(self.device, options.precision)
        self.generator_config = GeneratorConfig.preset(options.generator, options.scale)
        self.start = self._read_start()
        self.reward = metric(options.reward) if options.rl_updates else None
        wants_content = options.adversarial_updates > 0 and options.content_weight > 0
        self.content = choose_content_loss(options.content_loss if wants_content else "none", options.vgg_weights)
        self._read_pictures()
        self.interruption = Interruption()
        self.points: list[dict[str, Any]] = []
        self.best: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def _read_start(self) -> Generator | None:
        """The generator to start from, deeper where asked for, with a new last layer where its scale is another."""
        if self.options.start is None:
            return None
        start = load_generator(self.options.start)
        n_blocks = self.generator_config.n_blocks
        known = replace(start.config, scale=self.options.scale, n_blocks=n_blocks)
        if known != self.generator_config or start.config.n_blocks > n_blocks:
            raise ValueError(
                f"--start {self.options.start} has the architecture {asdict(start.config)}, --generator "
                f"{self.options.generator} is {asdict(self.generator_config)}; they may differ in the scale only, and "
                "the new one may have more blocks"
            )
        if start.config.n_blocks < n_blocks:
            torch.manual_seed(self.options.seed)
            start = start.with_blocks(n_blocks)
        if start.config.scale == self.options.scale:
            return start
        if not self.options.fidelity_updates:
            raise ValueError(
                f"--start {self.options.start} is for scale {start.config.scale}: its last layer starts anew at scale "
                f"{self.options.scale}, so give --fidelity-updates as well"
            )
        torch.manual_seed(self.options.seed)
        return Generator(self.generator_config, encoder=start.encoder)

    def _read_pictures(self) -> None:
        """Training patches, held-out crops, whole held-out pictures."""
        options = self.options
        kind = LosslessLRCodec if options.clean else LRCodec
        qualities = (75,) if options.clean else options.chosen_qualities
        self.codecs = [kind(options.scale, options.base_codec, quality, options.downsampling) for quality in qualities]
        self.codec = self.codecs[len(qualities) // 2]  # of the crops that choose the best network
        training = image_set("sample:train" if options.data is None else f"folder:{options.data}")
        size = options.lr_patch_size
        if self.reward is not None:
            size = max(size, -(-self.reward.min_size // options.scale))
        if options.fidelity_updates and options.late_share > 0:
            size = max(size, options.late_lr_patch_size)
        decoded = decode_images(training, min_size=size * options.scale)
        self.n_training_pictures = len(decoded.images)
        self.source = PatchSource(decoded, self.codec, options.lr_patch_size, qualities, self.device)
        held_out = image_set("sample:held-out" if options.valid_data is None else f"folder:{options.valid_data}")
        crops = decode_images(held_out, min_size=LEAST_VALIDATED)
        images = tuple(self._crop(image) for image in crops.images)
        self.crops = code_pictures(DecodedImages(crops.uris, images, ()), self.codec)
        self.versions = [training.version, held_out.version]
        self.whole: dict[str, list[CodedPicture]] = {}
        for folder in options.eval_data:
            pictures = image_set(f"folder:{folder}")
            self.versions.append(pictures.version)
            self.whole[folder.name] = code_pictures(decode_images(pictures, min_size=LEAST_VALIDATED), self.codec)
        if begun := read_run(self.out, "command", "pictures"):
            self.command = begun["command"]
            if begun["pictures"] != self.versions:
                raise ValueError(
                    f"{self.out} began with the pictures {begun['pictures']}, now they are {self.versions}; bring back "
                    "what it began with, or start a new run"
                )

    def _crop(self, image: Any) -> Any:
        """The middle of a picture, of sides that the scale divides."""
        scale, size = self.options.scale, self.options.validation_size
        sides = [min(size, length) // scale * scale for length in image.shape[:2]]
        top, left = ((length - side) // 2 for length, side in zip(image.shape, sides, strict=False))
        return image[top : top + sides[0], left : left + sides[1]]

    @property
    def how_to_go_on(self) -> str:
        """What an interruption tells the user."""
        return f"go on with: rlsr train --resume {shlex.quote(str(self.out))}"

    def run(self) -> str:
        """Train what is not trained yet, measure, write the weights.

        Returns:
            What was written.

        Raises:
            Interrupted: After Ctrl-C, with a checkpoint written.
        """
        options = self.options
        (self.out / "stages").mkdir(parents=True, exist_ok=True)
        if not self.resumed:
            write_json(self.out / RUN, {"command": self.command, "pictures": self.versions})
            write_whole(self.out / CONFIG, lambda file: file.write(options.to_json().encode()))
        self.console.print(
            f"{self.n_training_pictures} training pictures, {len(self.crops)} held-out crops; x{options.scale} "
            f"{'clean' if options.clean else options.base_codec}, qualities "
            f"{' '.join(str(codec.quality) for codec in self.codecs)}; device {self.device}, "
            f"{str(self.compute_dtype).removeprefix('torch.')}; writing to {self.out}",
            highlight=False,
            soft_wrap=True,
        )
        with self.interruption:
            generator = self.start
            for stage in options.updates:
                generator = self._train(stage, generator)
            assert generator is not None
            self._export(generator)
        return f"wrote {self.out / options.weights_name}.safetensors and its card"

    def _new_generator(self, weights: Generator | None) -> Generator:
        """A generator on the device: fresh, or a copy of weights."""
        torch.manual_seed(self.options.seed)
        generator = Generator(self.generator_config)
        if weights is not None:
            generator.load_state_dict(weights.state_dict())
        return generator.to(self.device).set_compute_dtype(self.compute_dtype)

    def _make(self, stage: str, start: Generator | None) -> Stage:
        """A stage before its first update."""
        options = self.options
        generator = self._new_generator(start)
        if stage == "fidelity":
            late = None
            if options.late_share > 0:
                source = self.source.resized(options.late_lr_patch_size)
                sampler = PatchSampler(source, options.late_batch_size, options.seed + 1)
                late = LatePhase(sampler, options.late_share, options.late_loss)
            sampler = PatchSampler(self.source, options.batch_size, options.seed)
            return SupervisedStage(
                Pretraining(
                    generator, sampler, options.fidelity_updates, options.learning_rate, options.ema_decay,
                    options.loss, late,
                )
            )  # fmt: skip
        if stage == "adversarial":
            return SupervisedStage(SRGANTraining(self._losses(generator, srgan=True), options.adversarial_updates))
        assert self.reward is not None
        size = max(options.lr_patch_size, -(-self.reward.min_size // options.scale))
        if self.reward.block_map is not None:
            while size * options.scale % 8:  # credit goes to blocks of 8 x 8 pixels
                size += 1
        env = RestorationVectorEnv(
            options.n_patches, task="super_resolution", source=self.source.resized(size), episode_length=1,
            metric=self.reward, reward=Improvement(),
        )  # fmt: skip
        return GRPOStage(
            generator,
            env,
            lambda live: self._losses(live, srgan=options.adversarial_updates > 0),
            options.rl_updates,
            options.seed,
            learning_rate=options.fine_learning_rate,
            group_size=options.group_size,
            sigma=options.sigma,
            policy_coef=options.policy_coef,
            anchor_weight=options.anchor_weight,
            max_grad_norm=2.0,
        )

    def _losses(self, generator: Generator, srgan: bool) -> AdversarialUpdate:
        """The losses of SRGAN, or beside RL on a decoder that is no SRGAN the squared error alone."""
        options = self.options
        weights = LossWeights(
            options.mse_weight, options.content_weight if srgan else 0.0, options.adversarial_weight if srgan else 0.0
        )
        config = AdversarialConfig(
            weights, options.fine_learning_rate, options.discriminator_channels, min(options.ema_decay, 0.99),
            n_content_patches=options.content_patches,
        )  # fmt: skip
        sampler = PatchSampler(self.source, options.batch_size, options.seed)
        return AdversarialUpdate(generator, sampler, self.content.loss if srgan else None, config, options.seed)

    def _train(self, name: str, start: Generator | None) -> Generator:
        """Run a stage to its end, from its checkpoint where there is one; a finished stage is read back."""
        weights = self.out / "stages" / f"{name}.safetensors"
        if weights.with_suffix(".json").is_file():
            self.seconds[name] = json.loads(weights.with_suffix(".json").read_text())["seconds"]
            return load_generator(weights)
        stage = self._make(name, start)
        checkpoint = self.out / CHECKPOINT
        self.points, self.best, seconds = [], {}, 0.0
        if checkpoint.is_file():
            state = read_checkpoint(checkpoint, self.device, "name", "stage", "points", "best", "seconds")
            if state["name"] == name:
                stage.load_state_dict(state["stage"])
                self.points, self.best, seconds = state["points"], state["best"], state["seconds"]
        if not self.points:
            self._validate(name, stage, {}, None)
        started = time.perf_counter()

        def save() -> None:
            state = {
                "name": name, "stage": stage.state_dict(), "points": self.points, "best": self.best,
                "seconds": seconds + time.perf_counter() - started,
            }  # fmt: skip
            write_whole(checkpoint, lambda file: torch.save(state, file))

        self._run(name, stage, save)
        if stage.n_done < stage.n_updates:
            save()
            raise Interrupted(f"stopped in {name} at update {stage.n_done} of {stage.n_updates}; {self.how_to_go_on}")
        chosen_by = CHOSEN_BY[self.options.purpose]
        best = self.out / "stages" / f"{name}-best-{chosen_by}.safetensors"
        generator = load_generator(best) if best.is_file() else stage.averaged_generator().cpu()
        self.seconds[name] = round(seconds + time.perf_counter() - started, 1)
        write_json(self.out / "stages" / f"{name}-curve.json", self.points)
        card = {"name": name, "updates": stage.n_updates, "seconds": self.seconds[name], "command": self.command}
        save_generator(weights, generator, card)
        checkpoint.unlink(missing_ok=True)
        return generator

    def _run(self, name: str, stage: Stage, save: Callable[[], None]) -> None:
        """Run a stage under a progress bar, with looks at the held-out crops and checkpoints on the way."""
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )  # fmt: skip
        pending: list[Metrics] = []
        with (
            SummaryWriter(str(self.out / "tensorboard" / name)) as writer,
            Progress(*columns, console=self.console) as progress,
        ):
            bar = progress.add_task(name, total=stage.n_updates, completed=stage.n_done, rate="")
            started, n_before = time.perf_counter(), stage.n_done

            def on_update(metrics: Metrics) -> None:
                pending.append(metrics)
                rate = (stage.n_done - n_before) / (time.perf_counter() - started)
                progress.update(bar, completed=stage.n_done, rate=f"{rate:.2f} updates/s")
                if stage.n_done % self.options.validate_every == 0 or stage.n_done == stage.n_updates:
                    losses = {
                        key: statistics.fmean(float(m[key]) for m in pending if key in m)
                        for key in dict.fromkeys(key for m in pending for key in m)
                    }
                    pending.clear()
                    self._validate(name, stage, losses, writer)
                    save()

            stage.run(on_update, self.interruption)

    def _validate(self, name: str, stage: Stage, losses: dict[str, float], writer: SummaryWriter | None) -> None:
        """Measure the moving average on the held-out crops; keep the best by each metric."""
        generator = stage.averaged_generator() if stage.n_done else self._untrained(stage)
        result = measure(generator.set_compute_dtype(self.compute_dtype), self.crops, self.device)
        point = {"update": stage.n_done, **{key: result[key] for key in VALIDATED}, **losses}
        self.points.append(point)
        for key in VALIDATED:
            if key not in self.best or point[key] > self.best[key]:
                self.best[key] = point[key]
                card = {"name": f"{name}, best {key}", "update": stage.n_done, key: point[key]}
                save_generator(self.out / "stages" / f"{name}-best-{key}.safetensors", generator, card)
        for key, value in point.items():
            if writer is not None and key != "update":
                writer.add_scalar(key if "/" in key else f"held_out/{key}", value, stage.n_done)
        if not self.console.is_terminal:  # no bar is drawn there
            values = ", ".join(f"{key} {value:.5g}" for key, value in point.items() if key != "update")
            self.console.print(f"{name} {stage.n_done}/{stage.n_updates}: {values}", highlight=False, soft_wrap=True)

    def _untrained(self, stage: Stage) -> Generator:
        """The generator before a stage's first update, when its moving average holds nothing yet."""
        if isinstance(stage, GRPOStage):
            return stage.generator
        assert isinstance(stage, SupervisedStage)
        training = stage.training
        return training.adversarial.generator if isinstance(training, SRGANTraining) else training.generator

    def _export(self, generator: Generator) -> None:
        """Write the weights as float16, and their card with what they do on whole held-out pictures."""
        options = self.options
        path = self.out / f"{options.weights_name}.safetensors"
        save_generator(path, generator, {}, dtype="float16")
        stored = load_generator(path).to(self.device).set_compute_dtype(self.compute_dtype)
        exact = measure(generator.to(self.device).set_compute_dtype(self.compute_dtype), self.crops, self.device)
        rounded = measure(stored, self.crops, self.device)
        measured: dict[str, Any] = {}
        for folder, pictures in self.whole.items():
            baseline = measure(lambda lr_image: upsample(lr_image, options.scale, "lanczos"), pictures, self.device)
            decoder = measure(stored, pictures, self.device)
            names = ("psnr", "psnr_clic", "ms_ssim", "ssim")
            measured[folder] = {
                "decoder": {key: decoder[key] for key in names}, "lanczos": {key: baseline[key] for key in names},
            }  # fmt: skip
        card = {
            "name": options.weights_name,
            "purpose": options.purpose,
            "base_codec": "" if options.clean else options.base_codec,
            "qualities": [] if options.clean else [codec.quality for codec in self.codecs],
            "downsampling": options.downsampling,
            "command": self.command,
            "start": None if options.start is None else options.start.stem,
            "updates": dict(options.updates),
            "seed": options.seed,
            "seconds": self.seconds,
            "training_pictures": self.n_training_pictures,
            "pictures": self.versions,
            "content_loss": self.content.description,
            "machine": describe_machine(self.device, self.compute_dtype),
            "versions": describe_versions(),
            "psnr_lost_to_float16": exact["psnr"] - rounded["psnr"],
            "measured_at_quality": None if options.clean else self.codec.quality,
            "measured": measured,
            "licence": options.licence,
        }
        save_generator(path, generator, card, dtype="float16")

"""The paper's experiment: pretrain, train SRGAN and RL-SRGAN from that start on equal data, measure both."""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from agents.interruption import Interrupted, Interruption
from agents.options import ReproduceOptions
from agents.reports import (
    choose_picture,
    collect_results,
    describe_machine,
    describe_versions,
    write_comparison,
    write_curves,
    write_json,
    write_table,
)
from agents.run_folder import CONFIG, RUN, choose_run, read_checkpoint, read_run
from agents.stages import RLSRGANStage, Stage, SupervisedStage
from gan.adversarial import AdversarialConfig, AdversarialUpdate, SRGANTraining
from gan.content import ContentChoice, ContentLoss, choose_content_loss
from gan.evaluation import CodedPicture, code_pictures, measure, restore
from gan.generator import Generator, GeneratorConfig
from gan.losses import LossWeights, Metrics
from gan.precision import choose_compute_dtype, choose_device
from gan.training import PatchSampler, Pretraining
from gan.weights import load_generator, save_generator
from rlsr_env.codec import LRCodec
from rlsr_env.files import write_whole
from rlsr_env.images import DecodedImages, decode_images, image_set
from rlsr_env.patches import PatchSource, to_float
from rlsr_env.peak_signal import psnr
from rlsr_env.resample import upsample
from rlsr_env.rounding import to_8bit
from rlsr_env.vector_env import RestorationVectorEnv

METHODS = ("srgan", "rl-srgan")
PRETRAINED = "pretrained"
OWN_FOLDERS = ("weights", "checkpoints", "curves", "tensorboard")
N_CURVE_POINTS = 20
# Seeds of what is no part of the comparison; the methods' own seeds are 0, 1, ...
PRETRAINING_SEED, PROBE_SEED = 1_000_003, 1_000_033


@dataclass(frozen=True)
class HeldOut:
    """A set of held-out pictures and where its results go."""

    name: str
    pictures: list[CodedPicture]
    folder: Path


class Reproduction:
    """One run of `rlsr reproduce`.

    Everything that can be refused is refused by the constructor, which writes nothing.
    """

    def __init__(self, options: ReproduceOptions, command: str, console: Console | None = None) -> None:
        """Check the options, read and code the pictures.

        Args:
            options: What to do.
            command: The command line, for the results.
            console: Where to report progress.

        Raises:
            ValueError: For an option out of range, pictures that cannot be used, or an output folder that is not empty.
            FileNotFoundError: For a folder or file that does not exist.
        """
        self.console = console or Console(stderr=True)
        self.resumed = options.resume is not None
        self.out, self.options = choose_run(options)
        options = self.options
        options.check()
        self.device = choose_device(options.device)
        self.compute_dtype = choose_compute_dtype(self.device, options.precision)
        codec = LRCodec(scale=options.scale, base=options.base_codec, quality=options.quality)
        self.generator_config = GeneratorConfig.preset(options.generator, options.scale)
        self.content: ContentChoice = choose_content_loss(options.content_loss, options.vgg_weights)

        for folder in filter(None, (options.data, *options.eval_data)):
            if self.out.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"--out {self.out} lies in {folder}: its pictures would be read by the next run")
        training = image_set("sample:train" if options.data is None else f"folder:{options.data}")
        decoded = decode_images(training, min_size=options.hr_patch_size)
        self.n_training_pictures = len(decoded.images)
        self.n_skipped = len(decoded.skipped)
        self.source = PatchSource(decoded, codec, options.hr_patch_size // options.scale, device=self.device)
        versions = [training.version]
        self.held_out: list[HeldOut] = []
        names = [f"folder:{folder}" for folder in options.eval_data] or ["sample:held-out"]
        for number, name in enumerate(names):
            held_out = image_set(name)
            versions.append(held_out.version)
            pictures = decode_images(held_out, min_size=max(16, options.scale))
            self.n_skipped += len(pictures.skipped)
            title = Path(name.removeprefix("folder:")).resolve().name if options.eval_data else "held-out"
            folder = self.out if number == 0 else self.out / title
            if number > 0 and title in OWN_FOLDERS:
                raise ValueError(f"--eval-data {title}: the run has a folder of that name for itself; rename yours")
            if folder in [earlier.folder for earlier in self.held_out]:
                raise ValueError(
                    f"two folders of --eval-data are called {title}; their results would overwrite each other"
                )
            self.held_out.append(HeldOut(title, code_pictures(pictures, codec), folder))
        self.command = command
        self.conditions = {"content_loss": self.content.description, "pictures": versions}
        if self.resumed:
            self._check_conditions()
        self._make_probe(codec)
        self.interruption = Interruption()
        self.seconds: dict[str, float] = {}

    def _check_conditions(self) -> None:
        """Refuse to go on where weights or pictures are not those that the run began with."""
        begun = read_run(self.out, "command", *self.conditions)
        self.command = begun.get("command", self.command)
        for name, now in self.conditions.items():
            if begun and begun[name] != now:
                raise ValueError(
                    f"{self.out} began with {name} {begun[name]!r}, now it is {now!r}; bring back what it began with, "
                    "or start a new run"
                )

    def _make_probe(self, codec: LRCodec) -> None:
        """A fixed batch of held-out patches for the curves."""
        pictures = self.held_out[0].pictures
        side = min(192, *(size for p in pictures for size in p.hr_image.shape[:2]))
        images = DecodedImages(tuple(p.uri for p in pictures), tuple(p.hr_image for p in pictures), ())
        source = PatchSource(images, codec, side // codec.scale, device=self.device)
        lr_image, hr_image = source.gather(source.draw(np.random.default_rng(PROBE_SEED), 8))
        self.probe = to_float(lr_image), to_float(hr_image)

    def _probe_psnr(self, decoder: Any) -> float:
        """Mean PSNR on the probe, dB."""
        lr_image, hr_image = self.probe
        with torch.no_grad():
            return psnr(to_8bit(decoder(lr_image).float()), hr_image).mean().item()

    @property
    def how_to_go_on(self) -> str:
        """What an interruption tells the user."""
        return f"go on with: rlsr reproduce --resume {shlex.quote(str(self.out))}"

    def lanczos(self, lr_image: Tensor) -> Tensor:
        """The baseline decoder."""
        return upsample(lr_image, self.options.scale, "lanczos")

    def run(self) -> str:
        """Train what is not trained yet, measure everything, write the reports.

        Returns:
            What was written.

        Raises:
            Interrupted: After Ctrl-C, with a checkpoint written.
        """
        self._announce()
        for folder in [self.out, *(held.folder for held in self.held_out)]:
            folder.mkdir(parents=True, exist_ok=True)
        for name in ("weights", "checkpoints", "curves"):
            (self.out / name).mkdir(exist_ok=True)
        if not self.resumed:
            write_json(self.out / RUN, {"command": self.command, **self.conditions})
            write_whole(self.out / CONFIG, lambda file: file.write(self.options.to_json().encode()))
        with self.interruption:
            start = self._train(PRETRAINED, self._pretraining)
            for seed in range(self.options.seeds):
                for method in METHODS:
                    self._train(f"{method}-seed{seed}", lambda m=method, s=seed: self._adversarial_stage(m, s, start))
            self._report()
        return f"wrote {self.out}/results.json, table.md, comparison.png, curves.png"

    def _announce(self) -> None:
        """Say what will be done with what."""
        options = self.options
        held_out = ", ".join(f"{held.name} ({len(held.pictures)})" for held in self.held_out)
        precision = str(self.compute_dtype).removeprefix("torch.")
        lines = [
            f"{self.n_training_pictures} training pictures, held out: {held_out}; x{options.scale} "
            f"{options.base_codec} quality {options.quality}",
            f"content loss: {self.content.description}",
            f"device {self.device}, {precision}; writing to {self.out}",
        ]
        if self.n_skipped:
            lines.append(f"{self.n_skipped} files skipped, see the warnings above")
        for line in lines:
            self.console.print(line, highlight=False, soft_wrap=True)

    def _pretraining(self) -> Stage:
        """The first stage."""
        options = self.options
        torch.manual_seed(PRETRAINING_SEED)
        generator = Generator(self.generator_config).to(self.device).set_compute_dtype(self.compute_dtype)
        sampler = PatchSampler(self.source, options.batch_size, PRETRAINING_SEED)
        return SupervisedStage(Pretraining(generator, sampler, options.pretrain_updates))

    def _adversarial_stage(self, method: str, seed: int, start: Generator) -> Stage:
        """SRGAN or RL-SRGAN: the same start, batches and discriminator for the same seed."""
        options = self.options
        config = AdversarialConfig(
            weights=LossWeights(options.mse_weight, options.content_weight, options.adversarial_weight),
            learning_rate=options.learning_rate,
            discriminator_channels=options.discriminator_channels,
        )
        content_loss: ContentLoss | None = self.content.loss

        def make_update(generator: Generator) -> AdversarialUpdate:
            sampler = PatchSampler(self.source, options.batch_size, seed)
            return AdversarialUpdate(generator, sampler, content_loss, config, seed)

        if method == "srgan":
            generator = Generator(self.generator_config).to(self.device).set_compute_dtype(self.compute_dtype)
            generator.load_state_dict(start.state_dict())
            return SupervisedStage(SRGANTraining(make_update(generator), options.updates))
        vector_env = RestorationVectorEnv(
            options.n_envs, task="psnr_prediction", source=self.source, episode_length=options.rollout_steps
        )
        writer = TensorBoardOutputFormat(str(self.out / "tensorboard" / f"{method}-seed{seed}-agent"))
        return RLSRGANStage(
            start,
            vector_env,
            make_update,
            options.updates,
            options.rollout_steps,
            options.learning_rate,
            seed,
            logger=Logger(None, [writer]),
        )

    def _train(self, name: str, make_stage: Any) -> Generator:
        """Run a stage to its end, from its checkpoint where there is one; a finished stage is read back."""
        weights = self.out / "weights" / f"{name}.safetensors"
        if weights.with_suffix(".json").is_file():
            self.seconds[name] = json.loads(weights.with_suffix(".json").read_text()).get("seconds")
            return load_generator(weights).to(self.device).set_compute_dtype(self.compute_dtype)
        stage: Stage = make_stage()
        checkpoint = self.out / "checkpoints" / f"{name}.pt"
        points: list[dict[str, float]] = []
        seconds = 0.0
        if checkpoint.is_file():
            state = read_checkpoint(checkpoint, self.device, "stage", "points", "seconds")
            stage.load_state_dict(state["stage"])
            points, seconds = state["points"], state["seconds"]
        started = time.perf_counter()
        self._run_with_progress(name, stage, points)
        seconds += time.perf_counter() - started
        if stage.n_done < stage.n_updates:
            state = {"stage": stage.state_dict(), "points": points, "seconds": seconds}
            write_whole(checkpoint, lambda file: torch.save(state, file))
            raise Interrupted(f"stopped in {name} at update {stage.n_done} of {stage.n_updates}; {self.how_to_go_on}")
        generator = stage.averaged_generator()
        write_json(self.out / "curves" / f"{name}.json", points)
        card = {
            "name": name,
            "command": self.command,
            "updates": stage.n_updates,
            "training_pictures": self.n_training_pictures,
            "content_loss": self.content.description,
            "seconds": round(seconds, 1),
        }
        save_generator(weights, generator, card)
        checkpoint.unlink(missing_ok=True)
        self.seconds[name] = round(seconds, 1)
        return generator

    def _run_with_progress(self, name: str, stage: Stage, points: list[dict[str, float]]) -> None:
        """Run a stage under a progress bar, collecting the points of its curve and the TensorBoard log."""
        every = max(1, stage.n_updates // N_CURVE_POINTS)
        writer = SummaryWriter(str(self.out / "tensorboard" / name))
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )  # fmt: skip
        pending: list[Metrics] = []
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task(name, total=stage.n_updates, completed=stage.n_done, rate="")
            started, n_before = time.perf_counter(), stage.n_done

            def probe() -> dict[str, float]:
                return {"update": stage.n_done, "psnr": self._probe_psnr(stage.averaged_generator())}

            def on_update(metrics: Metrics) -> None:
                pending.append(metrics)
                rate = (stage.n_done - n_before) / (time.perf_counter() - started)
                progress.update(bar, completed=stage.n_done, rate=f"{rate:.1f} updates/s")
                if stage.n_done % every == 0 or stage.n_done == stage.n_updates:
                    means = {key: statistics.fmean(float(m[key]) for m in pending) for key in pending[0]}
                    pending.clear()
                    point = probe() | means
                    points.append(point)
                    if not self.console.is_terminal:  # no bar is drawn there
                        self.console.print(
                            f"{name} {stage.n_done}/{stage.n_updates} {rate:.1f} updates/s, "
                            f"held-out crops {point['psnr']:.3f} dB",
                            highlight=False,
                        )
                    for key, value in point.items():
                        if key != "update":
                            writer.add_scalar(key if "/" in key else f"held_out/{key}", value, stage.n_done)

            stage.run(on_update, self.interruption)
        writer.close()

    def _report(self) -> None:
        """Measure every generator on every held-out set and write the reports."""
        names = [PRETRAINED, *(f"{method}-seed{seed}" for method in METHODS for seed in range(self.options.seeds))]
        curves = {name: json.loads((self.out / "curves" / f"{name}.json").read_text()) for name in names}
        write_curves(self.out / "curves.png", curves, self._probe_psnr(self.lanczos))
        total = len(self.held_out) * (len(names) + 1)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self.console,
        ) as progress:  # fmt: skip
            bar = progress.add_task("measuring", total=total)
            for held in self.held_out:
                measured: dict[str, list[Mapping[str, Any]]] = {}
                measured["lanczos"] = [self._measure(self.lanczos, held)] * self.options.seeds
                progress.advance(bar)
                for name in names:
                    decoder = load_generator(self.out / "weights" / f"{name}.safetensors").to(self.device)
                    result = self._measure(decoder.set_compute_dtype(self.compute_dtype), held)
                    measured.setdefault(name.rpartition("-seed")[0] or name, []).append(result)
                    progress.advance(bar)
                self._write_reports(held, measured)

    def _measure(self, decoder: Any, held: HeldOut) -> dict[str, Any]:
        """Measure one decoder, or stop if asked to."""
        if self.interruption.requested:
            raise Interrupted(f"stopped while measuring; {self.how_to_go_on}")
        return measure(decoder, held.pictures, self.device)

    def _write_reports(self, held: HeldOut, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write results.json, table.md and comparison.png of one held-out set."""
        results = {
            "command": self.command,
            "versions": describe_versions(),
            "machine": describe_machine(self.device, self.compute_dtype),
            "seeds": list(range(self.options.seeds)),
            "held_out": held.name,
            "content_loss": self.content.description,
            "training_pictures": self.n_training_pictures,
            "skipped_files": self.n_skipped,
            "seconds": self.seconds,
            **collect_results(held.pictures, measured),
        }
        write_json(held.folder / "results.json", results)
        write_table(held.folder / "table.md", results)
        picture = choose_picture(held.pictures, self.options.scale)
        restored = {"lanczos": restore(self.lanczos, picture, self.device)}
        for method in METHODS:
            decoder = load_generator(self.out / "weights" / f"{method}-seed0.safetensors").to(self.device)
            restored[method] = restore(decoder.set_compute_dtype(self.compute_dtype), picture, self.device)
        write_comparison(held.folder / "comparison.png", picture, restored, self.options.scale)
        self.console.print((held.folder / "table.md").read_text(), highlight=False, soft_wrap=True, markup=False)

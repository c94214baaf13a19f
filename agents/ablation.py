"""The ablation: what reinforcement learning adds to SRGAN, metric by metric, against what else could be done."""

from __future__ import annotations

import copy
import json
import math
import shlex
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from agents.ablation_crops import HeldOutCrop, cut_crops
from agents.ablation_options import AblateOptions
from agents.ablation_report import Cell, write_page, write_reports
from agents.callbacks import AdversarialLossCallback
from agents.grpo import GRPO
from agents.interruption import Interrupted, Interruption
from agents.reports import describe_machine, describe_versions, write_json
from agents.rivals import EvolutionStrategies, MetricGradient, NoObjective, Objective, train
from agents.run_folder import CONFIG, RUN, choose_run, read_checkpoint, read_run
from gan.adversarial import AdversarialConfig, AdversarialUpdate, SRGANTraining
from gan.content import choose_content_loss
from gan.generator import Generator, GeneratorConfig
from gan.losses import LossWeights
from gan.precision import choose_compute_dtype, choose_device
from gan.training import PatchSampler, Pretraining
from gan.weights import load_generator, save_generator
from rlsr_env.block_maps import BLOCK
from rlsr_env.codec import LRCodec
from rlsr_env.files import write_whole
from rlsr_env.images import ImageSet, decode_images, image_set
from rlsr_env.metrics import Metric, metric
from rlsr_env.patches import PatchSource, to_float
from rlsr_env.rewards import Improvement
from rlsr_env.rounding import to_8bit
from rlsr_env.vector_env import RestorationVectorEnv

START_SEED = 1_000_003
CONTROL = "control"
# What another run must have in common with this one to lend it its start, and what made the start.
OF_THE_FILES = ("scale", "quality", "base_codec", "generator", "discriminator_channels")
OF_THE_START = (
    "pretrain_updates", "srgan_updates", "batch_size", "content_patches", "hr_patch_size", "learning_rate",
    "mse_weight", "content_weight", "adversarial_weight",
)  # fmt: skip


class _StopOnRequest(BaseCallback):
    """Ends `learn` where somebody asked to stop."""

    def __init__(self, interruption: Interruption) -> None:
        super().__init__()
        self.interruption = interruption

    def _on_step(self) -> bool:
        return not self.interruption.requested


class Ablation:
    """One run of `rlsr ablate`.

    Everything that can be refused is refused by the constructor, which writes nothing.
    """

    def __init__(self, options: AblateOptions, *, command: str, console: Console | None = None) -> None:
        """Check the options, read and code the pictures.

        Args:
            options: What to do.
            command: The command line, for the results.
            console: Where to report progress.

        Raises:
            ValueError: For an option out of range, an unknown metric, pictures that cannot be used, or an output folder
                that is not empty.
            FileNotFoundError: For a folder or file that does not exist.
        """
        self.console = console or Console(stderr=True)
        self.resumed = options.resume is not None
        self.out, self.options = choose_run(options)
        options = self.options
        self.command = read_run(self.out, "command").get("command", command)
        options.check()
        self.judges = [metric(name) for name in options.metrics]
        self.device = choose_device(options.device)
        self.compute_dtype = choose_compute_dtype(self.device, options.precision)
        self.codec = LRCodec(scale=options.scale, base=options.base_codec, quality=options.quality)
        self.generator_config = GeneratorConfig.preset(options.generator, options.scale)
        self.content = choose_content_loss(options.content_loss, options.vgg_weights)
        self.start_options = options if options.start is None else _options_of_start(options)
        self._read_pictures()
        self.interruption = Interruption()

    def _read_pictures(self) -> None:
        """Training patches of every size that is needed, and the crops to measure on."""
        options = self.options
        training = image_set("sample:train" if options.data is None else f"folder:{options.data}")
        sizes = {judge.name: self._patch_size(judge) for judge in self.judges}
        decoded = decode_images(training, min_size=max(options.hr_patch_size, *sizes.values()))
        self.n_training_pictures = len(decoded.images)
        self.sources = {
            size: PatchSource(decoded, self.codec, size // options.scale, device=self.device)
            for size in {options.hr_patch_size, *sizes.values()}
        }
        self.versions = [training.version]
        names = [f"folder:{folder}" for folder in options.eval_data] or ["sample:held-out"]
        self.crops: list[HeldOutCrop] = []
        for name in names:
            held_out = image_set(name)
            self.versions.append(held_out.version)
            self.crops += self._crops(held_out)

    def _patch_size(self, judge: Metric) -> int:
        """Side of the HR patches that a metric judges."""
        step = math.lcm(self.options.scale, BLOCK)
        return max(self.options.hr_patch_size, -(-judge.min_size // step) * step)

    def _n_patches(self, judge: Metric) -> int:
        """How many of them, so that all metrics see about as many pixels."""
        area = (self.options.hr_patch_size / self._patch_size(judge)) ** 2
        return max(2, round(self.options.n_patches * area))

    def _crops(self, held_out: ImageSet) -> list[HeldOutCrop]:
        """A crop of each picture of a set, as large as asked for and as the metrics need."""
        least = max(judge.min_size for judge in self.judges)
        return cut_crops(held_out, self.codec, self.options.crop_size, least)

    @property
    def how_to_go_on(self) -> str:
        """What an interruption tells the user."""
        return f"go on with: rlsr ablate --resume {shlex.quote(str(self.out))}"

    def run(self) -> str:
        """Train and measure the cells that are missing, write the reports.

        Returns:
            What was written.

        Raises:
            Interrupted: After Ctrl-C; finished cells are kept.
        """
        options = self.options
        with self.interruption:
            self.prepare()
            cells = [self._cell(*key) for key in self._with_progress(self.keys())]
        results = {
            "command": self.command,
            "versions": describe_versions(),
            "machine": describe_machine(self.device, self.compute_dtype),
            "options": json.loads(options.to_json()),
            "start": self.start_card,
            "content_loss": self.content.description,
            "training_pictures": self.n_training_pictures,
            "pictures": self.versions,
        }
        write_reports(self.out, cells, self.judges, results)
        self._write_crops()
        return f"wrote {self.out}/results.json, table.md, matrix.png, crops.png"

    def prepare(self) -> None:
        """Make the folder, read or train the start: what `train_cell` needs.

        Raises:
            Interrupted: After Ctrl-C.
        """
        for folder in ("start", "cells", "weights"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        if not self.resumed:
            write_json(self.out / RUN, {"command": self.command, "pictures": self.versions})
            write_whole(self.out / CONFIG, lambda file: file.write(self.options.to_json().encode()))
        self.start_state = self._start()

    @property
    def start_card(self) -> dict[str, Any]:
        """How the common start was trained."""
        return {name: getattr(self.start_options, name) for name in OF_THE_START}

    def keys(self) -> list[tuple[str, str, int]]:
        """Method, metric and seed of every cell; the control has no metric. A seed's cells come together."""
        keys = []
        for seed in range(self.options.seeds):
            keys.append((CONTROL, "", seed))
            for method in self.options.methods:
                keys += [(method, j.name, seed) for j in self.judges if self._is_run(method, j)]
        return keys

    def _is_run(self, method: str, judge: Metric) -> bool:
        """Whether a method is there for a reward."""
        if self.options.rewards and judge.name not in self.options.rewards:
            return False
        if method == "gradient":
            return judge.differentiable
        chosen = self.options.evolution_metrics
        return method != "evolution" or not chosen or judge.name in chosen

    def _with_progress(self, keys: Sequence[tuple[str, str, int]]) -> Any:
        """The keys, under a progress bar."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task("cells", total=len(keys))
            for key in keys:
                progress.update(bar, description=_name(*key))
                yield key
                progress.advance(bar)

    def _start(self) -> dict[str, Any]:
        """The state of the SRGAN training that every cell goes on from: read, or trained."""
        folder = (self.options.start or self.out) / "start"
        path = folder / "srgan.pt"
        if not path.is_file():
            source = self.sources[self.options.hr_patch_size]
            pretrained = folder / "pretrained.safetensors"
            if not pretrained.is_file():
                torch.manual_seed(START_SEED)
                sampler = PatchSampler(source, self.options.batch_size, START_SEED)
                pretraining = Pretraining(self.new_generator(), sampler, self.options.pretrain_updates)
                self._run_start("pretraining", pretraining)
                card = {"name": "pretrained", "command": self.command, "updates": pretraining.n_updates}
                save_generator(pretrained, pretraining.averaged_generator(), card)
            generator = self.new_generator()
            generator.load_state_dict(load_generator(pretrained).state_dict())
            training = SRGANTraining(self._update_of(generator, START_SEED), self.options.srgan_updates)
            self._run_start("srgan", training)
            write_whole(path, lambda file: torch.save(training.adversarial.state_dict(), file))
        return read_checkpoint(path, self.device)

    def _run_start(self, name: str, training: Pretraining | SRGANTraining) -> None:
        """All updates of a stage of the start."""
        while training.n_done < training.n_updates:
            if self.interruption.requested:
                raise Interrupted(f"stopped in {name}, which starts anew; {self.how_to_go_on}")
            training.update()
            if training.n_done % max(1, training.n_updates // 10) == 0:
                self.console.print(f"start: {name} {training.n_done}/{training.n_updates}", highlight=False)

    def new_generator(self) -> Generator:
        """A generator with fresh weights."""
        return Generator(self.generator_config).to(self.device).set_compute_dtype(self.compute_dtype)

    def _update_of(self, generator: Generator, seed: int) -> AdversarialUpdate:
        """SRGAN's losses on the stream of batches of a seed."""
        options = self.options
        config = AdversarialConfig(
            weights=LossWeights(options.mse_weight, options.content_weight, options.adversarial_weight),
            learning_rate=options.learning_rate,
            discriminator_channels=options.discriminator_channels,
            n_content_patches=options.content_patches,
        )
        sampler = PatchSampler(self.sources[options.hr_patch_size], options.batch_size, seed)
        return AdversarialUpdate(generator, sampler, self.content.loss, config, seed)

    def from_start(self, generator: Generator, seed: int) -> AdversarialUpdate:
        """The same, going on from the start: generator, discriminator and moving average are the start's."""
        update = self._update_of(generator, seed)
        own = {"sampler": update.sampler.state_dict(), "n_updates": 0}
        # A copy: an optimiser takes the tensors of a state dict as its own, and would train on in the start's.
        update.load_state_dict(copy.deepcopy(self.start_state) | own)
        return update

    def _cell(self, method: str, reward: str, seed: int) -> Cell:
        """Train and measure a cell, or read what was measured."""
        name = _name(method, reward, seed)
        path = self.out / "cells" / f"{name}.json"
        if path.is_file():
            try:
                return Cell(**json.loads(path.read_text()))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path} is damaged ({error}); delete it, and the cell is trained anew") from error
        started = time.perf_counter()
        generator = self.train_cell(method, reward, seed)
        seconds = time.perf_counter() - started
        values = self.measure(generator)
        cell = Cell(method, reward, seed, round(seconds, 1), values)
        if seed == 0:
            save_generator(self.out / "weights" / f"{name}.safetensors", generator, {"name": name})
        write_json(path, vars(cell))
        self.console.print(self._summary(name, cell), highlight=False)
        return cell

    def _summary(self, name: str, cell: Cell) -> str:
        """A line on a finished cell."""
        means = {judge: float(np.mean(list(values.values()))) for judge, values in cell.values.items()}
        return f"{name} {cell.seconds:.0f} s: " + ", ".join(f"{judge} {mean:.4f}" for judge, mean in means.items())

    def train_cell(self, method: str, reward: str, seed: int) -> Generator:
        """Train one cell from the start.

        Args:
            method: `"control"`, `"rl"`, `"gradient"` or `"evolution"`.
            reward: The metric's name; empty for the control.
            seed: Of batches, patches and noise.

        Returns:
            The moving average of the generator.
        """
        if method == "rl":
            return self.train_rl(metric(reward), seed)
        torch.manual_seed(seed)
        generator = self.new_generator()
        update = self.from_start(generator, seed)
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.options.learning_rate)
        update.attach(optimizer)
        objective = self._objective(method, reward, seed)
        norm = self.options.evolution_norm if method == "evolution" else self.options.gradient_norm
        for _ in range(self.options.updates):
            if self.interruption.requested:
                raise Interrupted(f"stopped in {_name(method, reward, seed)}, which starts anew; {self.how_to_go_on}")
            train(generator, objective, optimizer, 1, norm)
        return update.averaged_generator()

    def _objective(self, method: str, reward: str, seed: int) -> Objective:
        """What a cell without RL is trained for."""
        if method == CONTROL:
            return NoObjective()
        judge = metric(reward)
        # The patches are drawn like the environments', not the same as those of SRGAN's losses.
        sampler = PatchSampler(self.sources[self._patch_size(judge)], self._n_patches(judge), seed + 1000)
        if method == "gradient":
            return MetricGradient(judge, sampler)
        return EvolutionStrategies(judge, sampler, self.options.group_size, self.options.evolution_sigma, seed)

    def make_grpo(self, judge: Metric, seed: int) -> GRPO:
        """GRPO on the start's generator, its environment's patches judged by a metric."""
        options = self.options
        env = RestorationVectorEnv(
            self._n_patches(judge),
            task="super_resolution",
            source=self.sources[self._patch_size(judge)],
            episode_length=1,
            metric=judge,
            reward=Improvement(),
        )
        smooth = judge.name in options.smooth_noise_for
        sigma = options.smooth_sigma if smooth and options.smooth_sigma is not None else options.sigma
        # Annealed by the same factor.
        final = sigma if options.final_sigma is None else options.final_sigma * sigma / options.sigma
        model = GRPO(
            "GeneratorPolicy",
            env,
            learning_rate=options.learning_rate,
            group_size=options.group_size,
            sigma=lambda remaining: final + remaining * (sigma - final),
            baseline=options.baseline,
            credit=options.credit if judge.block_map is not None else "picture",
            noise_blur=options.noise_blur if smooth else 0.0,
            grey_noise=smooth,
            policy_coef=options.policy_coef,
            anchor_weight=options.anchor_weight,
            max_grad_norm=options.gradient_norm,
            policy_kwargs={"generator_config": self.generator_config},
            seed=seed,
            device=self.device,
        )
        model.policy.generator.set_compute_dtype(self.compute_dtype)
        model.policy.generator.load_state_dict(self.start_state["generator"])
        return model

    def train_rl(self, judge: Metric, seed: int) -> Generator:
        """A cell of GRPO, SRGAN's losses injected by the callback.

        Args:
            judge: The metric.
            seed: As of `train_cell`.

        Returns:
            The moving average of the generator.
        """
        torch.manual_seed(seed)
        model = self.make_grpo(judge, seed)
        callback = AdversarialLossCallback(lambda generator: self.from_start(generator, seed))
        n_judged = self.options.updates * self.options.group_size * self._n_patches(judge)
        model.learn(n_judged, callback=CallbackList([callback, _StopOnRequest(self.interruption)]))
        if self.interruption.requested:
            raise Interrupted(f"stopped in {_name('rl', judge.name, seed)}, which starts anew; {self.how_to_go_on}")
        return callback.adversarial.averaged_generator()

    @torch.no_grad()
    def measure(self, generator: Generator) -> dict[str, dict[str, float]]:
        """Every metric on every crop.

        Returns:
            `{metric: {uri: value}}`.
        """
        values: dict[str, dict[str, float]] = {judge.name: {} for judge in self.judges}
        for crop in self.crops:
            lr_image, hr_image = (to_float(image.to(self.device)) for image in (crop.lr_image, crop.hr_image))
            sr_image = to_8bit(generator(lr_image).float())
            for judge in self.judges:
                values[judge.name][crop.uri] = judge(sr_image, hr_image).item()
        return values

    def _write_crops(self) -> None:
        """A page with the centre of one crop: the original, the control, and every other cell of seed 0."""
        crops = self.crops if self.options.crops_of == "held_out" else self._crops(image_set("sample:held-out"))
        crop = max(crops, key=lambda crop: float(to_float(crop.hr_image).std()))
        panels = {"original": to_float(crop.hr_image)}
        for method, reward, _ in (key for key in self.keys() if key[2] == 0):
            generator = load_generator(self.out / "weights" / f"{_name(method, reward, 0)}.safetensors").to(self.device)
            generator.set_compute_dtype(self.compute_dtype)
            with torch.no_grad():
                sr_image = generator(to_float(crop.lr_image.to(self.device)))
            panels[f"{method} {reward}".strip()] = to_8bit(sr_image.float()).cpu()
        write_page(self.out / "crops.png", panels)


def _options_of_start(options: AblateOptions) -> AblateOptions:
    """The options of the run that lends its start; refuses one that trained for other files or another network."""
    assert options.start is not None
    if not (options.start / "start" / "srgan.pt").is_file() or not (options.start / CONFIG).is_file():
        raise FileNotFoundError(
            f"--start {options.start}: no {CONFIG} and start/srgan.pt there; give the folder of a run of rlsr ablate"
        )
    lender = AblateOptions.from_json((options.start / CONFIG).read_text())
    for name in OF_THE_FILES:
        if getattr(lender, name) != getattr(options, name):
            raise ValueError(
                f"--start {options.start} was trained with --{name.replace('_', '-')} {getattr(lender, name)}, this "
                f"run has {getattr(options, name)}; give both the same"
            )
    if (lender.adversarial_weight == 0) != (options.adversarial_weight == 0):
        raise ValueError(f"--start {options.start} and this run differ in whether --adversarial-weight is 0")
    return lender


def _name(method: str, reward: str, seed: int) -> str:
    """The name of a cell's files; a weighted sum of metrics has characters that a file name should not have."""
    safe = reward.replace("*", "x").replace("/", "_")
    return "-".join(part for part in (method, safe, f"seed{seed}") if part)

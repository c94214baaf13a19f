"""Train and compare agents in `rlsr/RateControl-v0`; makes the policy behind `rlsr compress --scale auto`.

Every training picture is stored at every setting once, and restored and judged; from then on, learning takes seconds.
Then pictures that nobody has trained on are stored in the same total of bytes by the best fixed setting, by the agents,
and by the oracle that makes all files and takes the best. What the agents' policies expect is corrected by the files
that they make (`agents.rate_search`), at most a tenth of the oracle's; PPO, which expects nothing, only looks for the
weight of the rate.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agents.rate_policy import RateNetwork, RatePolicy, picture_features
from agents.rate_search import Belief, choose_within
from agents.rate_training import (
    Experience,
    FeatureObservation,
    decoders_of,
    experience_all,
    fit_action_values,
    follow_expected_reward,
    make_env,
    own_file_bytes,
    ppo_choice,
    pretrained_weights,
    train_ppo,
)
from agents.reports import write_json
from gan.zoo import LANCZOS_WEIGHTS
from rlsr_env.crops import CroppedImages
from rlsr_env.files import write_whole
from rlsr_env.images import ImageSet, decode_images, image_set
from rlsr_env.rate_oracle import rate_control_oracle, spend
from rlsr_env.rate_source import RateSource, stream_bytes
from rlsr_env.rate_table import DEFAULT_SETTINGS, RateTable, Setting

RATES = (0.03, 0.05, 0.07, 0.10, 0.12, 0.15, 0.20, 0.30)
AGENTS = {
    "blind": "what every action came to on average, without a look at the picture",
    "values": "action values, fitted to what every action came to",
    "gradient": "from there, the exact gradient of the expected reward",
    "ppo": "SB3's PPO, which sees only what its own choices earned",
}


@dataclass(frozen=True)
class Args:
    """Arguments of this example."""

    images: str = "sample:train"
    """training pictures: sample:train or folder:PATH"""
    held_out: tuple[str, ...] = ("sample:held-out",)
    """pictures to compare on, one or more sets"""
    decoder: Literal["lanczos", "pretrained"] = "lanczos"
    """what restores: Lanczos at all scales, or the networks that gan.zoo finds (and Lanczos where there is none)"""
    file: Literal["own", "stream"] = "own"
    """bytes that count: of this project's own file, or of the plain JPEG, WebP or AVIF"""
    base_codec: str = "jpeg"
    """jpeg, webp or avif; the default settings are made for jpeg"""
    crop_size: int = 384
    """side of the crops that training pictures are cut into, in pixels"""
    crops: int = 1
    """crops of each training picture"""
    pictures: int = 0
    """how many training pictures to take, from the first on; 0 for all"""
    every: int = 1
    """take only every n-th setting"""
    seeds: int = 3
    """of each agent; all but PPO learn from as many draws of the training pictures, with replacement"""
    agents: tuple[str, ...] = tuple(AGENTS)
    """which agents to train"""
    files: float = 0.1
    """how many files a policy may make for the held-out pictures, as a part of those that the oracle makes"""
    ppo_timesteps: int = 20_000
    """files that PPO chooses"""
    regularisation: float = 0.1
    """of the action values"""
    tables: Path | None = None
    """folder in which what was measured is kept, and found again"""
    out: Path | None = None
    """folder to write rate-control.json and .md to; with --file stream or networks, these are part of the name"""
    policy: Path | None = None
    """where to write the policy, NAME.safetensors: action values fitted to all training pictures"""
    quick: bool = False
    """few settings and short training: a minute on one core"""


args = tyro.cli(Args)
command = shlex.join(["python", "examples/train_rate_control.py", *sys.argv[1:]])
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
if unknown := set(args.agents) - set(AGENTS):
    raise SystemExit(f"unknown agents {sorted(unknown)}; known: {', '.join(AGENTS)}")
settings = DEFAULT_SETTINGS[:: 4 if args.quick else args.every]
timesteps = min(args.ppo_timesteps, 2048) if args.quick else args.ppo_timesteps
files = max(args.files, 0.25) if args.quick else args.files  # of few settings a tenth is one, which must fit at once
scales = tuple(sorted({setting.scale for setting in settings}))
weights = (
    dict.fromkeys(scales, LANCZOS_WEIGHTS) if args.decoder == "lanczos" else pretrained_weights(args.base_codec, scales)
)
file_bytes = own_file_bytes(args.base_codec, weights) if args.file == "own" else stream_bytes


@dataclass(frozen=True)
class Choosing:
    """An agent that has learned: a policy, or else a function from features and weights of the rate to settings."""

    policy: RatePolicy | None = None
    choose: Callable[[np.ndarray, np.ndarray], np.ndarray] = field(default=lambda features, weights: features)


def measured(images: ImageSet, name: str) -> RateSource:
    """A set of pictures with everything known about it, from the folder of tables where it is there."""
    decoded = decode_images(images)
    path = None if args.tables is None else args.tables / f"{name}-{args.decoder}-{args.file}-{args.base_codec}.npz"
    table = RateTable.load(path) if path is not None and path.is_file() else None
    make = partial(RateSource, decoded, settings, args.base_codec, "psnr", False, decoders_of(weights), file_bytes)
    if table is not None:
        return make(table)
    source, start = make(), time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(f"{name}: {len(settings)} settings of each picture", total=len(decoded.uris))
        table = source.table(lambda done, total: progress.update(bar, completed=done))
    print(f"{name}: {table.n_bytes.size} files in {time.perf_counter() - start:.0f} s")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path)
    return source


def trained(agent: str, seed: int, source: RateSource, experience: Experience) -> Choosing:
    """What an agent has learned: from features and weights of the rate to settings."""
    if agent == "ppo":
        mean, deviation = experience.features.mean(dim=0).numpy(), experience.features.std(dim=0).numpy() + 1e-3
        env = FeatureObservation(make_env(64, source=source), mean, deviation)
        return Choosing(choose=partial(ppo_choice, train_ppo(env, timesteps, seed), env))
    network = RateNetwork(len(settings))
    n_pictures = len(experience.features)
    # So strong that nothing but the mean is left.
    regularisation = 1e9 if agent == "blind" else args.regularisation
    drawn = torch.randint(n_pictures, (n_pictures,), generator=torch.Generator().manual_seed(seed))
    fit_action_values(network, experience[drawn], regularisation)
    if agent == "gradient":
        follow_expected_reward(network, experience[drawn], make_env(1, source=source).rate_weight_range, seed=seed)
    return Choosing(policy=policy_of(network))


def share_of(agent: Choosing, source: RateSource, rate: float) -> dict[str, Any]:
    """What an agent comes to at the bytes of the best fixed setting, beside that setting and the oracle."""
    table = source.table()
    room = rate_control_oracle(table, bits_per_pixel=rate)
    views = torch.from_numpy(np.stack([source.view(picture) for picture in range(len(source.uris))]))
    if agent.policy is None:
        features, sizes = picture_features(views).numpy(), table.n_pixels / table.n_pixels.mean()
        choice = spend(
            table, room.fixed.n_bytes, lambda weight: agent.choose(features, weight * sizes), factor=1.2, n_steps=6
        )
    else:
        most_files = max(len(source.uris), int(files * table.n_bytes.size))
        belief = Belief(agent.policy, source.uris, table.n_pixels, views)
        choice = choose_within(belief, room.fixed.n_bytes, source.measure, most_files)
    return {
        "rate": rate, "fixed_setting": list(room.setting), "bytes": room.fixed.n_bytes, "fixed": room.fixed.quality,
        "oracle": room.oracle.quality, "oracle_gain": room.gain, "oracle_encodes": room.oracle.n_encodes,
        "policy": choice.quality, "policy_gain": choice.quality - room.fixed.quality, "policy_bytes": choice.n_bytes,
        "policy_encodes": choice.n_encodes,
    }  # fmt: skip


crops = CroppedImages(image_set(args.images), args.crop_size, args.crops, n_images=args.pictures or None)
training = measured(crops, f"train-{len(crops.uris())}x{args.crop_size}")
held_out = {
    name.rpartition("/")[2].replace(":", "-"): measured(image_set(name), name.rpartition("/")[2].replace(":", "-"))
    for name in args.held_out
}
experience = experience_all(make_env(64, source=training))
print(f"{len(training.uris)} training pictures, {len(settings)} settings, decoder {args.decoder}, file {args.file}")

card = {
    "base_codec": args.base_codec, "metric": "psnr", "decoder": args.decoder, "file": args.file,
    "weights": {str(scale): found.name for scale, found in weights.items()}, "training_pictures": len(training.uris),
    "crop_size": args.crop_size, "regularisation": args.regularisation, "learned_by": AGENTS["values"],
    "command": command,
}  # fmt: skip


def policy_of(network: RateNetwork) -> RatePolicy:
    """A network as a policy."""
    return RatePolicy(network, [Setting(*setting) for setting in settings], card)


results: dict[str, Any] = {name: {} for name in held_out}
for agent in args.agents:
    for seed in range(args.seeds):
        start = time.perf_counter()
        learned = trained(agent, seed, training, experience)
        seconds = time.perf_counter() - start
        for name, source in held_out.items():
            rows = []
            for rate in RATES:
                try:
                    rows.append(share_of(learned, source, rate))
                except ValueError as error:  # no setting, or not this policy, keeps within so few bytes
                    rows.append({"rate": rate, "unmet": str(error)})
            results[name].setdefault(agent, []).append({"seed": seed, "seconds": seconds, "rows": rows})


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Share of the oracle's gain, summed over the rates, and encodes; mean and deviation over the seeds."""
    shares, fewer, unmet = [], [], 0
    for run in runs:
        met = [row for row in run["rows"] if "unmet" not in row]
        unmet += len(run["rows"]) - len(met)
        total = sum(row["oracle_gain"] for row in met)
        shares.append(sum(row["policy_gain"] for row in met) / total if total else float("nan"))
        fewer.append(sum(row["oracle_encodes"] for row in met) / max(1, sum(row["policy_encodes"] for row in met)))
    spread = float(np.std(shares, ddof=1)) if len(shares) > 1 else 0.0
    return {
        "share": float(np.mean(shares)), "share_deviation": spread, "times_fewer_encodes": statistics.mean(fewer),
        "unmet_rates": unmet,
    }  # fmt: skip


lines = []
for name, agents in results.items():
    n = len(held_out[name].uris)
    lines += [f"### {name}: {n} pictures, decoder {args.decoder}, file {args.file}", ""]
    lines += ["| agent | share of the oracle's gain | times fewer files made | rates not met |", "|---|---|---|---|"]
    for agent, runs in agents.items():
        total = summary(runs)
        share, deviation = 100 * total["share"], 100 * total["share_deviation"]
        lines.append(
            f"| {agent}: {AGENTS[agent]} | {f'{share:.0f} % +- {deviation:.0f}' if np.isfinite(share) else 'none'} | "
            f"{total['times_fewer_encodes']:.1f} | {total['unmet_rates']:.0f} of {len(runs) * len(RATES)} |"
        )
    lines += ["", "| bpp | best fixed (scale, quality) | its PSNR | oracle | " + " | ".join(agents) + " |"]
    lines.append("|---|---|---|---|" + "---|" * len(agents))
    for row, rate in enumerate(RATES):
        first = next((runs[0]["rows"][row] for runs in agents.values() if "unmet" not in runs[0]["rows"][row]), None)
        if first is None:
            lines.append(f"| {rate:.2f} | no setting is that small | | | " + " | ".join([""] * len(agents)) + " |")
            continue
        cells = []
        for runs in agents.values():
            gains = [run["rows"][row]["policy_gain"] for run in runs if "unmet" not in run["rows"][row]]
            cells.append(f"{statistics.mean(gains):+.3f} dB" if gains else "not met")
        lines.append(
            f"| {rate:.2f} | {tuple(first['fixed_setting'])} | {first['fixed']:.3f} dB | "
            f"{first['oracle_gain']:+.3f} dB | "
            + " | ".join(cells) + " |"
        )  # fmt: skip
    lines.append("")
text = "\n".join(lines)
print(text)
if args.policy is not None:
    args.policy.parent.mkdir(parents=True, exist_ok=True)
    network = RateNetwork(len(settings))
    fit_action_values(network, experience, args.regularisation)
    policy_of(network).save(args.policy)
    print(f"wrote {args.policy}")
if args.out is not None:
    args.out.mkdir(parents=True, exist_ok=True)
    name = "-".join(
        ["rate-control", *["stream"] * (args.file == "stream"), *["networks"] * (args.decoder != "lanczos")]
    )
    totals = {name: {agent: summary(runs) for agent, runs in agents.items()} for name, agents in results.items()}
    content = {
        "command": command, "training_pictures": len(training.uris), "weights": card["weights"],
        "settings": [list(setting) for setting in settings], "agents": {agent: AGENTS[agent] for agent in args.agents},
        "totals": totals, "results": results,
    }  # fmt: skip
    as_text = f"Made by `{command}`.\n\n{text}"
    write_json(args.out / f"{name}.json", content)
    write_whole(args.out / f"{name}.md", lambda file: file.write(as_text.encode()))
    print(f"wrote {args.out / name}.json and .md")

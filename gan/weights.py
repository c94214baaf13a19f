"""Generators on disk: safetensors, and a JSON card that says what they are and how they came about."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from gan.generator import Generator, GeneratorConfig
from rlsr_env.files import write_whole

FILE_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def save_generator(
    path: str | os.PathLike[str], generator: Generator, card: dict[str, Any], dtype: str = "float32"
) -> None:
    """Write a generator's weights, and their card beside them (`.json`).

    Args:
        path: File to write, `.safetensors`.
        generator: The network.
        card: What a reader should know: data, command, seed, updates, metrics. The architecture and the file's sha256
            are added.
        dtype: What the file holds: `"float32"`, or `"float16"` for half the bytes and 11 bits of each number.

    Raises:
        ValueError: For another dtype, or a weight that float16 cannot hold.
    """
    if dtype not in FILE_DTYPES:
        raise ValueError(f"unknown dtype {dtype!r} of weights; known: {', '.join(FILE_DTYPES)}")
    path = Path(path)
    tensors = {}
    for name, tensor in generator.state_dict().items():
        stored = tensor.detach().cpu().contiguous()
        if stored.is_floating_point():  # BatchNorm also counts its batches
            stored = stored.to(FILE_DTYPES[dtype])
            if tensor.isfinite().all() and not stored.isfinite().all():
                raise ValueError(f"{name} holds a number that is too large for {dtype}; save it as float32")
        tensors[name] = stored
    content = save(tensors)
    whole_card = {"generator": asdict(generator.config), "sha256": hashlib.sha256(content).hexdigest(), **card}
    text = json.dumps(whole_card, indent=2) + "\n"
    write_whole(path, lambda file: file.write(content))
    write_whole(path.with_suffix(".json"), lambda file: file.write(text.encode()))


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the card of weights, without the weights.

    Args:
        path: The `.safetensors` file.

    Returns:
        What `save_generator` wrote: `generator` (the architecture), `sha256`, and whatever it was given.

    Raises:
        FileNotFoundError: Where the file or its card is missing.
        ValueError: Where the card is not one of `save_generator`.
    """
    path = Path(path)
    card_path = path.with_suffix(".json")
    for needed in (path, card_path):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed} does not exist; weights are a .safetensors file and a .json card beside it"
            )
    try:
        card = json.loads(card_path.read_text())
        GeneratorConfig(**card["generator"])
        if len(bytes.fromhex(card["sha256"])) != 32:
            raise ValueError(f"sha256 {card['sha256']!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{card_path} is no card that save_generator wrote ({error!r})") from error
    return dict(card)


def load_generator(path: str | os.PathLike[str]) -> Generator:
    """Read a generator that `save_generator` wrote.

    Args:
        path: The `.safetensors` file; its card must lie beside it.

    Returns:
        The generator, in evaluation mode, on the CPU, in float32 whatever the file holds.

    Raises:
        FileNotFoundError: Where the file or its card is missing.
        ValueError: Where the card is not one of `save_generator`, or the file not the one that it describes.
    """
    path = Path(path)
    card = read_card(path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != card["sha256"]:
        raise ValueError(
            f"{path} has sha256 {digest}, its card says {card['sha256']}: the file is damaged or not the card's"
        )
    generator = Generator(GeneratorConfig(**card["generator"]))
    generator.load_state_dict(load(content))
    return generator.eval()

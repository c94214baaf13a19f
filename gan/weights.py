"""Generators on disk: safetensors, and a JSON card that says what they are and how they came about."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from gan.generator import Generator, GeneratorConfig
from rlsr_env.files import write_whole


def save_generator(path: str | os.PathLike[str], generator: Generator, card: dict[str, Any]) -> None:
    """Write a generator's weights, and their card beside them (`.json`).

    Args:
        path: File to write, `.safetensors`.
        generator: The network.
        card: What a reader should know: data, command, seed, updates, metrics. The architecture and the file's sha256
            are added.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    content = save(tensors)
    whole_card = {"generator": asdict(generator.config), "sha256": hashlib.sha256(content).hexdigest(), **card}
    text = json.dumps(whole_card, indent=2) + "\n"
    write_whole(path, lambda file: file.write(content))
    write_whole(path.with_suffix(".json"), lambda file: file.write(text.encode()))


def load_generator(path: str | os.PathLike[str]) -> Generator:
    """Read a generator that `save_generator` wrote.

    Args:
        path: The `.safetensors` file; its card must lie beside it.

    Returns:
        The generator, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: Where the file or its card is missing.
        ValueError: Where the card is not one of `save_generator`, or the file not the one that it describes.
    """
    path = Path(path)
    card_path = path.with_suffix(".json")
    for needed in (path, card_path):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed} does not exist; weights are a .safetensors file and a .json card beside it"
            )
    content = path.read_bytes()
    try:
        card = json.loads(card_path.read_text())
        expected, config = card["sha256"], GeneratorConfig(**card["generator"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{card_path} is no card that save_generator wrote ({error!r})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ValueError(f"{path} has sha256 {digest}, its card says {expected}: the file is damaged or not the card's")
    generator = Generator(config)
    generator.load_state_dict(load(content))
    return generator.eval()

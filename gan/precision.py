"""Which arithmetic the networks run in: bfloat16 where the processor is faster in it, float32 elsewhere."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name.

    Args:
        name: `"auto"` (CUDA where present, else the CPU) or a name that torch knows (`"cpu"`, `"cuda:1"`).

    Returns:
        The device, known to be usable.

    Raises:
        ValueError: For a name that torch does not know, or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); give auto, cpu or cuda") from error
    return device


def choose_compute_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """The dtype that convolutions run in; weights, losses and optimisers stay in float32.

    Args:
        device: The device of the networks.
        name: `"auto"` (bfloat16 where the hardware is faster in it, else float32), `"fp32"` or `"bf16"`.

    Returns:
        `torch.bfloat16` or `torch.float32`.

    Raises:
        ValueError: For an unknown name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"unknown precision {name!r}; known: auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        # Intel's cores do AVX-512's bfloat16 products at half the speed: a virtual machine that hides their matrix unit
        # (AMX) trains 1.7 times as fast in float32. AMD's do them at twice the speed.
        vector_unit = capabilities.get("avx512_bf16", False) and "Intel" not in str(capabilities.get("cpu_name"))
        native = vector_unit or any(capabilities.get(name, False) for name in ("amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, compute_dtype: torch.dtype) -> torch.autocast:
    """A context in which convolutions and matrix products run in `compute_dtype`."""
    return torch.autocast(device.type, compute_dtype, enabled=compute_dtype != torch.float32)

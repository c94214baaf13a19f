import pytest
import torch

from gan.precision import autocast, choose_compute_dtype, choose_device

CPU = torch.device("cpu")


def test_auto_is_cuda_where_it_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == CPU


def test_cpu_can_be_named() -> None:
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "", "cuda:x", "meta", "mps:7", "hpu"])
def test_device_that_cannot_be_used_is_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("give auto, cpu or cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_cuda_is_one_line() -> None:
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here") as caught:
        choose_device("cuda")
    assert "\n" not in str(caught.value)


def test_compute_dtype_by_name() -> None:
    assert choose_compute_dtype(CPU, "fp32") == torch.float32
    assert choose_compute_dtype(CPU, "bf16") == torch.bfloat16
    with pytest.raises(ValueError, match="unknown precision 'fp16'; known: auto, fp32, bf16"):
        choose_compute_dtype(CPU, "fp16")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_the_processor_is_faster_in_it(
    capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_compute_dtype(CPU) == expected


def test_auto_on_cuda_asks_for_native_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: native or including_emulation,
        )
        assert choose_compute_dtype(torch.device("cuda")) == expected


def test_autocast_casts_in_bfloat16_and_switches_itself_off_in_float32() -> None:
    ones = torch.ones(2, 2)
    with autocast(CPU, torch.bfloat16):
        assert (ones @ ones).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert not torch.is_autocast_enabled("cpu")
        assert (ones @ ones).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), autocast(CPU, torch.float32):
        assert (ones @ ones).dtype == torch.float32

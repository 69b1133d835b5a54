"""What torch computes on here: a processor or a graphics card, so many threads, bfloat16 or not.

The name of a torch device goes in, "cpu" or "cuda"; a network that lies there, or a yes or no, comes out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from thesis_lib.core import nearest
from thesis_lib.core.errors import ThesisError

Module = TypeVar("Module", bound=torch.nn.Module)


class TorchDeviceError(ThesisError):
    """The torch device that was asked for is not there."""


def check_torch_device(torch_device: str) -> None:
    """TorchDeviceError where torch cannot compute on it."""
    if torch_device != "cpu" and not (torch_device.startswith("cuda") and torch.cuda.is_available()):
        raise TorchDeviceError(f"torch_device={torch_device}: needs cpu, or cuda where there is one")


def check_finite(name: str, values: torch.Tensor) -> None:
    """ThesisError that names the first of values (n, ...) with NaN or infinity: ReLUs, integers and FAISS hide both.

    Tensors of torch's device "meta" have no values and pass.
    """
    if not values.is_meta and not values.sum().isfinite():
        nearest.check_finite(name, values.detach().float().cpu().numpy())


def has_bfloat16(torch_device: str) -> bool:
    """Whether it multiplies in bfloat16 by itself; others imitate it, slower than float32."""
    if torch_device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    # The processor has units that torch leaves alone where ATEN_CPU_CAPABILITY says so; oneDNN then imitates them.
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()      # an older torch cannot tell
    return any(capabilities.get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def channels_last(network: Module, torch_device: str | None = None) -> Module:
    """The network itself, its weights with the channels of a place side by side; None leaves the torch device."""
    return network.to(torch_device, memory_format=torch.channels_last)      # type: ignore[call-overload]  # torch's stubs


def training_layout(torch_device: str) -> torch.memory_format:
    """How feature maps lie while large convolutions are trained: channels last, but one channel after the other on a
    processor with AVX2 alone, where a step of EfficientAD's student takes 1.16 times as long with channels last.

    By what the processor has, not by the clock: both give other last bits, and a training must give the same ones every
    time on one machine.
    """
    weak = torch_device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if weak else torch.channels_last


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """torch on so many threads, and on as many as before afterwards; None leaves it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

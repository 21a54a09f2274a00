"""What this machine can compute on."""

from __future__ import annotations

import torch

from sona_pipeline.common.messages import brief

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Of processors by Intel and AMD, and by ARM, as torch calls them."""


def usable_device(name: str | torch.device | None = None) -> torch.device:
    """The device of this name, or the fastest there is.

    Raises:
        ValueError: it is not there, with those that are.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise ValueError("it holds no numbers")
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, ValueError, NotImplementedError, ImportError) as error:
        there = ", ".join(devices_there())
        raise ValueError(f"the device {name} cannot be used: this machine has {there}, so name one of them") from error
    return device


def devices_there() -> list[str]:
    """Names of the devices of this machine."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if accelerator else 0
    return ["cpu", *(f"{accelerator.type}:{k}" for k in range(count) if accelerator)]


def default_dtype(device: torch.device, is_flow: bool = False) -> str:
    """Name of the dtype that diffusion models compute in on a device where nobody says another.

    Flow models are trained in bfloat16, and several overflow in float16.
    """
    if device.type != "cpu":
        return "bfloat16" if is_flow else "float16"
    return "bfloat16" if multiplies_bfloat16() else "float32"


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions that multiply bfloat16, and torch the library that uses them.

    Found in what torch says of the processor; versions of it that say nothing count as no.
    """
    said = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.backends.mkldnn.is_available() and any(said.get(name) for name in BFLOAT16_INSTRUCTIONS)


def check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError unless the device can do in `dtype` what diffusion models do."""
    functional = torch.nn.functional
    try:
        x = torch.ones(1, 4, 4, 4, device=device, dtype=dtype)
        x = functional.group_norm(functional.conv2d(x, torch.ones(4, 4, 1, 1, device=device, dtype=dtype)), 2)
        x = functional.interpolate(functional.silu(x), scale_factor=2.0).flatten(2)
        x = functional.gelu(functional.scaled_dot_product_attention(x, x, x) @ x.transpose(1, 2))
        functional.layer_norm(x, x.shape[-1:]).sum().item()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"the device {device} cannot compute in {name} ({brief(error)}): use float32") from error


def check_compiler(device: torch.device) -> None:
    """Raise ValueError unless `torch.compile` works for the device, which takes a C++ compiler and Python's headers."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # every backend has errors of its own
        raise ValueError(
            f"the denoiser cannot be compiled here ({brief(error)}): install a C++ compiler, such as g++, and the"
            " headers of Python, or leave --compile out"
        ) from error

"""`nlft env`."""

from __future__ import annotations

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
    "numpy",
)


def env() -> None:
    """Print versions and the device, for bug reports. Holds no names, paths or tokens."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from nlft import __version__
    from nlft.launch import is_first, processes

    lines = {"nlft": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            lines[name] = version(name)
        except PackageNotFoundError:
            lines[name] = "not installed"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        lines["device"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB"
        lines["cuda"] = str(torch.version.cuda)
        lines["bfloat16"] = "yes" if torch.cuda.is_bf16_supported() else "no"
    else:
        lines["device"] = "cpu"
    lines["threads"] = str(torch.get_num_threads())
    lines["processes"] = str(processes())
    for key, value in lines.items() if is_first() else ():
        print(f"{key:14} {value}")

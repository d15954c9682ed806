"""What this machine is: its precision, compiler and memory allocator, and its name in records."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def resolve_precision(precision: str) -> str:
    """What ``training.precision`` is on this machine: ``auto`` is bfloat16 where the device multiplies in it natively,
    else float32, and everything else is itself."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.13 has it
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if native else "float32"


def why_not_compiled() -> str | None:
    """What keeps torch from compiling a model here; None if nothing does. For a CPU it writes C++."""
    if torch.cuda.is_available():
        return None
    if not any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))):
        return "there is no C++ compiler, which torch.compile needs on a CPU"
    if " " in torch.__file__:
        return "torch does not quote its own path for the C++ compiler, and that has a space here"
    return None


def keep_freed_memory() -> None:
    """Tell glibc to keep what this process frees. It otherwise gives it back to the kernel at every step, and a small
    model on a CPU spends up to a fifth of its time on getting it again. Nothing happens with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, size: None)
    # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD; of the last, older versions refuse more than 32 MiB
    for option, size in ((-1, 2**30), (-2, 2**27), (-3, 2**25), (-3, 2**30)):
        mallopt(option, size)


def device_name() -> str:
    """The name of the GPU that runs are trained on here, or of the processor with its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def provenance() -> dict[str, Any]:
    """What a run is made with here: versions, system, hardware. Nothing that names the machine or its paths."""
    packages = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")
    return {
        "nfcore": package_version("nfcore"),
        "python": platform.python_version(),
        **{name: package_version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(),
        "threads": torch.get_num_threads(),
    }


def git_commit() -> str | None:
    """The checkout's commit, with ``+changes`` where tracked files differ from it; None outside a checkout, also where
    nfcore is installed below the files of another one."""
    file = Path(__file__).resolve()
    commit = ("describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes")
    try:
        for command in (("ls-files", "--error-unmatch", file.name), commit):
            done = subprocess.run(["git", *command], cwd=file.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

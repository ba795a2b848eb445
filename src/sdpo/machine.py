"""The machine this process runs on: how many cores it may use, which libraries and devices it has.

The only place that asks the operating system such things, so that a system without one of them
(macOS has no CPU affinity, Windows no `resource`) is met once. Standard library only: looking at
torch's files and the driver takes milliseconds, importing torch takes seconds.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

_CUDA_BUILD = re.compile(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)", re.MULTILINE)
_NAME_BYTES = 100


def usable_cores() -> int:
    """Cores that this process may keep busy, at least 1: those it is bound to where the system
    binds (Linux), else all, and no more than a container's quota of CPU time."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_cores()
    return cores if quota is None else max(1, min(cores, int(quota)))


def system_file(path: str) -> str:
    """Text of a file of the kernel's (`/proc`, `/sys`); empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def library_version(name: str) -> str | None:
    """Version of an installed library, without importing it; None where it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu_names() -> list[str]:
    """Names of the CUDA devices that the installed torch can use, in the driver's order; asked of
    the driver itself."""
    return _driver_devices() if torch_cuda() else []


def torch_cuda() -> str | None:
    """CUDA version that the installed torch was built for; None without torch or CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = _CUDA_BUILD.search(system_file(str(Path(spec.origin).with_name("version.py"))))
    return None if found is None else found.group(1)


def describe_machine() -> dict[str, str]:
    """What `sdpo --version` says about this machine, line by line."""
    gpus = gpu_names()
    cores = usable_cores()
    facts = {"python": f"{platform.python_version()}, {platform.system()} {platform.machine()}"}
    for name in ("torch", "transformers"):
        facts[name] = library_version(name) or f"not installed; pip install {name}"
    if torch_cuda():
        facts["torch"] += f", built for CUDA {torch_cuda()}"
    device = ", ".join(gpus) if gpus else "cpu"
    return facts | {"device": f"{device}, {cores} usable {'core' if cores == 1 else 'cores'}"}


def peak_memory_bytes() -> int | None:
    """Most memory this process has held; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _cgroup_cores() -> float | None:
    """CPU quota of the container, in cores."""
    quota, _, period = system_file("/sys/fs/cgroup/cpu.max").partition(" ")
    if not period:
        quota = system_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = system_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota.strip().isdigit() and period.strip().isdigit():
        return int(quota) / int(period)
    return None


def _driver_devices() -> list[str]:
    """Device names from NVIDIA's driver, which honours CUDA_VISIBLE_DEVICES; none without it."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    names = []
    for index in range(count.value):
        name, device = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_int()
        if not driver.cuDeviceGet(ctypes.byref(device), index):
            driver.cuDeviceGetName(name, _NAME_BYTES, device)
            names.append(name.value.decode(errors="replace"))
    return names

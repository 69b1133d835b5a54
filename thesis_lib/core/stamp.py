"""What a number was measured with: versions, commit, processor, threads, temperature.

Nothing goes in but the threads, a flat dict for a row or the head of a notebook comes out.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from thesis_lib.core import paths
from thesis_lib.core.identity import version_of
from thesis_lib.core.threads import usable_cpus

PACKAGES = ("torch", "torchvision", "faiss-cpu", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib",
            "papermill", "pillow", "safetensors", "onnx", "onnxruntime")


@cache
def library_hash() -> str:
    """Hash over the sources of thesis_lib, comments included: which state of it a reader has to look at."""
    digest = hashlib.sha256()
    for file in sorted(paths.PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(paths.PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def stamp(threads: Mapping[str, int] | None = None) -> dict[str, Any]:
    """One flat dict for a result row and for the head of a notebook; a value that this machine lacks is None.

    threads: by library, of what measured; None asks torch and FAISS, where they have been imported.
    """
    import psutil

    return {
        "commit": _commit(),
        "library": f"{version_of('thesis-lib')}+{library_hash()}",
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "cpus_usable": usable_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "threads": _threads() if threads is None else dict(threads),
        **condition(),
    }


def condition() -> dict[str, Any]:
    """What changes while a machine works, and how fast it is then."""
    return {"governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "temperature_c": _temperature(), "throttled": _throttled()}


def show(threads: Mapping[str, int] | None = None) -> None:
    """Print the stamp, one line per fact, the unknown ones left out."""
    facts = stamp(threads)
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    for key, value in facts.items():
        if value is not None:
            print(f"{key:>13}  {value}")


def _commit() -> str | None:
    """Of the checkout, with -dirty where tracked files differ from it; None without git or checkout."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(paths.root()), *arguments],
                              capture_output=True, text=True, check=True).stdout.strip()
    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_model() -> str | None:
    """Name of the processor, of a Raspberry Pi that of its board."""
    fields: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    # x86 names the processor; a Raspberry Pi names the board instead.
    return fields.get("model name") or fields.get("Model") or platform.processor() or None


def _threads() -> dict[str, int]:
    """Of what can have measured: a library that nobody imported has not."""
    asked = {"torch": "get_num_threads", "faiss": "omp_get_max_threads"}
    return {name: getattr(sys.modules[name], function)() for name, function in asked.items() if name in sys.modules}


def _temperature() -> float | None:
    text = _read("/sys/class/thermal/thermal_zone0/temp")
    return int(text) / 1000 if text and text.lstrip("-").isdigit() else None


def _throttled() -> str | None:
    """Raspberry Pi only: the firmware's under-voltage and throttling flags, 0x0 when all is well."""
    if not shutil.which("vcgencmd"):
        return None
    answer = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True)
    return answer.stdout.strip().partition("=")[2] or None


def _read(file: str) -> str | None:
    try:
        return Path(file).read_text().strip()
    except OSError:
        return None

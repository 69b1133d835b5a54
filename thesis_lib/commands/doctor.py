"""Is this machine all right? Each library is tried in a process of its own, so that a crash is a line, not an end."""

import importlib.util
import platform
import signal
import subprocess
import sys

from thesis_lib.core import identity, paths, stamp

# What a device needs for a bundle, and what the rest of the library needs.
DEVICE = {"numpy": "import numpy; (numpy.ones((64, 64)) @ numpy.ones((64, 64))).sum(); print(numpy.__version__)",
          "onnxruntime": "import onnxruntime; print(onnxruntime.__version__)"}
CHECKS = {
    **DEVICE,
    "torch": "import torch; (torch.ones(64, 64) @ torch.ones(64, 64)).sum(); print(torch.__version__)",
    "torchvision": "from thesis_lib.networks import backbones; b = backbones.load('resnet18', (1,), 'random'); "
                   "import torch; b(torch.zeros(1, 3, 64, 64)); print(backbones.torchvision().__version__)",
    "faiss": "import faiss, numpy; i = faiss.IndexFlatL2(8); i.add(numpy.ones((9, 8), 'f4')); "
             "i.search(numpy.ones((2, 8), 'f4'), 1); print(faiss.__version__)",
    "torch's network in onnxruntime": "import torch, onnxruntime; from thesis_lib.networks import engines; "
                   "b = engines.build('resnet18', (1,), 'random', 'fast'); b(torch.zeros(1, 3, 64, 64)); "
                   "print(onnxruntime.__version__)",
    "torch, then faiss": "import torch, faiss, numpy; torch.ones(512, 512) @ torch.ones(512, 512); "
                         "i = faiss.IndexFlatL2(64); i.add(numpy.ones((999, 64), 'f4')); "
                         "i.search(numpy.ones((99, 64), 'f4'), 1); print('together')",
}
# Package -> versions whose wheels are known to die of an illegal instruction on a Raspberry Pi 4.
DYING = {"torch": ("2.4.0", "2.6.0", "2.10.0"), "onnxruntime": ("1.21.0",)}
NO_TORCH = "a device needs no torch: measure and detect with a bundle of `thesis export` (docs/guides/device.md)"
ADVICE = (f"; {NO_TORCH}. Known on a Raspberry Pi 4 of the wheels of torch {', '.join(DYING['torch'])}; others have "
          "not been tried there")


def examine() -> bool:
    """Print one line per check, then the stamp; True when all is well.

    torch wheels that die of an illegal instruction (known on a Raspberry Pi 4) are named as such. Where torch is not
    installed at all, only what a bundle needs is looked at.
    """
    small = importlib.util.find_spec("torch") is None
    lines = [_line(name, code) for name, code in (DEVICE if small else CHECKS).items()]
    for line in known():
        print(line)
    if small:
        print("none  torch: not installed; this machine can measure and detect with a bundle of `thesis export`")
    for name, folder in (("data", paths.data()), ("outputs", paths.outputs())):
        print(f"{'ok   ' if folder.is_dir() else 'new  '} {name}: {folder}")
    if all(lines):
        stamp.show({} if small else None)
    return all(lines)


def known(machine: str | None = None) -> list[str]:
    """One line for each installed version that is known to die on a Raspberry Pi 4, with what to install instead.

    On 64-bit Arm alone. Other processors of that kind may have the instruction: whether a package works here is what
    its check says. machine: as `platform.machine` names it; None is this one.
    """
    if (machine or platform.machine()) not in ("aarch64", "arm64"):
        return []
    lines = []
    for package, versions in DYING.items():
        version = (identity.version_of(package) or "").partition("+")[0]
        if version in versions:
            none = f", or none: {NO_TORCH}" if package == "torch" else ""
            lines.append(f"note  {package} {version}: dies of an illegal instruction on a Raspberry Pi 4; install that "
                         f"of constraints.txt (pip install -c constraints.txt {package}){none}")
    return lines


def _line(name: str, code: str) -> bool:
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if child.returncode == 0:
        print(f"ok    {name}: {child.stdout.strip()}")
        return True
    if child.returncode < 0:
        reason = f"killed by {signal.Signals(-child.returncode).name}"
        if -child.returncode == signal.SIGILL:
            reason += ": this build uses instructions that the processor lacks" + (ADVICE if "torch" in code else "")
    else:
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
    print(f"FAIL  {name}: {reason}")
    return False

"""Gradient descent with checkpoints: the one loop of everything that is trained here.

A step draws all it needs by chance from its own number, so that an interrupted run goes on exactly as it would have.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thesis_lib.progress import bar
from thesis_lib.runtime import torch_threads

log = logging.getLogger(__name__)


class TrainingError(ValueError):
    """A checkpoint or an option does not fit, or the numbers have run away; the message names it."""


@dataclass
class Course:
    """What a training leaves behind beside its network."""

    step: int = 0                                               # steps done
    seconds: float = 0.0                                        # of all its calls together
    losses: dict[str, list[float]] = field(default_factory=dict)    # every part, every step
    kept: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)      # what `snapshot` gave, by step


@contextmanager
def _threads() -> Iterator[None]:
    """All that a batch of several notebooks at a time grants: the numbers of a training depend on its threads."""
    with torch_threads(int(os.environ.get("THESIS_TRAINING_THREADS", 0)) or None):
        yield


@_threads()
def descend(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], losses: Callable[[int], Mapping], *,
            steps: int, seed: int, checkpoint: Path, subject: Mapping[str, Any],
            schedules: Sequence[torch.optim.lr_scheduler.LRScheduler] = (), keep: Sequence[int] = (),
            snapshot: Callable[[], dict[str, torch.Tensor]] | None = None, every_s: float = 60.0,
            limit: int | None = None, device: str = "cpu", what: str = "training") -> Course:
    """Minimise the sum of `losses(step)`, a mapping of named scalars, in place; each step has its own random numbers.

    checkpoint: written at once or not at all, each `every_s` seconds and at the end; a call with the same `subject`
    (anything JSON holds) takes it up, one with another is refused. keep: steps after which `snapshot` is asked.
    limit: stop after so many steps of this call. Raises TrainingError; weights that are not finite are never stored.
    """
    check_device(device)
    parts = {"network": network} | {f"{name} {number}": part for name, several in
                                    (("optimizer", optimizers), ("schedule", schedules))
                                    for number, part in enumerate(several)}
    course = _resume(checkpoint, subject, parts, steps, device)
    began = time.perf_counter() - course.seconds
    written, last = time.perf_counter(), min(steps, course.step + (limit or steps))
    for step in bar(range(course.step, last), desc=what, total=steps, initial=course.step):
        with torch.random.fork_rng([device] if device.startswith("cuda") else []):
            torch.manual_seed(mixed(seed, step))
            values = losses(step)
            for optimizer in optimizers:
                optimizer.zero_grad()
            sum(values.values()).backward()
        for part in (*optimizers, *schedules):
            part.step()
        for name, value in values.items():
            course.losses.setdefault(name, []).append(value.item())
        course.step, course.seconds = step + 1, time.perf_counter() - began
        if bad := [name for name in values if not math.isfinite(course.losses[name][-1])]:
            raise TrainingError(f"{what}: the loss {', '.join(bad)} of step {course.step} is not finite; a lower "
                                "learning rate may help")
        if course.step in keep:
            course.kept[course.step] = snapshot()
        if course.step == last or time.perf_counter() - written > every_s:
            _say(what, course, steps, optimizers)
            _save(checkpoint, subject, parts if course.step < steps else {"network": network}, course)
            written = time.perf_counter()
    return course


def mixed(seed: int, number: int) -> int:
    """Seed of the random numbers of one step or picture. torch's generator on the CPU reads the low 32 bits alone, so
    both have to be in these; numbers below 2^32 never meet under one seed.
    """
    return (seed * 0x9E3779B1 + number) % 2**32


def check_device(device: str) -> None:
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise TrainingError(f"device={device}: needs cpu, or cuda where there is one")


def has_bfloat16(device: str) -> bool:
    """Whether it multiplies in bfloat16 by itself; others imitate it, slower than float32."""
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    found = getattr(torch.cpu, "get_capabilities", dict)()      # an older torch cannot tell
    return any(found.get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def checkpoint_of(out: Path, device: str, limit: int | None) -> Path:
    """Checkpoint beside the weights that a training is to write, its folder made; TrainingError for what cannot be."""
    if out.suffix != ".safetensors":
        raise TrainingError(f"out={out}: needs a name that ends in .safetensors")
    if limit is not None and limit < 1:
        raise TrainingError(f"limit={limit}: needs at least 1")
    check_device(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_suffix(".checkpoint")


def _say(what: str, course: Course, steps: int, optimizers) -> None:
    recent = {name: values[-50:] for name, values in course.losses.items()}
    log.info("%s: step %d of %d, %.0f s, learning rate %.2g, loss of %s", what, course.step, steps, course.seconds,
             optimizers[0].param_groups[0]["lr"],
             ", ".join(f"{name} {sum(values) / len(values):.4g}" for name, values in recent.items()))


def _save(path: Path, subject: Mapping, parts: Mapping, course: Course) -> None:
    # A loss tells of damaged weights one step too late: a checkpoint of them could never be gone on from.
    if not all(values.isfinite().all() for values in parts["network"].state_dict().values()):
        raise TrainingError(f"step {course.step}: the weights are not finite; a lower learning rate may help")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save({"subject": json.dumps(subject), "course": vars(course)}
               | {name: part.state_dict() for name, part in parts.items()}, partial)
    os.replace(partial, path)


def _resume(path: Path, subject: Mapping, parts: Mapping, steps: int, device: str) -> Course:
    """What an earlier call with this subject has done. A finished one stores its network alone."""
    if not path.is_file():
        return Course()
    try:
        stored = torch.load(path, map_location=device, weights_only=True)
        found = json.loads(stored["subject"])
    except Exception as error:              # torch raises whatever its unpickler met
        raise TrainingError(f"{path}: not a readable checkpoint ({type(error).__name__}); delete it to start "
                            "anew") from error
    wanted = json.loads(json.dumps(subject))
    if other := [f"{name}={wanted.get(name)}" for name in {**found, **wanted} if found.get(name) != wanted.get(name)]:
        raise TrainingError(f"{path}: made with another recipe than {', '.join(other)}; delete it to start anew")
    course = Course(**stored["course"])
    for name, part in parts.items():
        if name == "network" or course.step < steps:
            part.load_state_dict(stored[name])
    log.info("%s: going on after step %d", path.name, course.step)
    return course

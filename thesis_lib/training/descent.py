"""Gradient descent with checkpoints: the one loop of everything that is trained here.

A network, its optimizers and losses by step go in; the network comes out trained, beside the `Course` of its training.
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
from typing import Any, Protocol

import torch
from torch import nn

from thesis_lib.core import files, identity
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.progress import bar
from thesis_lib.core.seeds import seed_of
from thesis_lib.networks.torch_setup import check_torch_device, torch_threads

log = logging.getLogger(__name__)
Losses = Mapping[str, torch.Tensor]     # named parts of the loss of one step, scalars


class TrainingError(ThesisError):
    """A checkpoint or an option does not fit, or the numbers have run away; the message names it."""


@dataclass
class Course:
    """What a training leaves behind beside its network."""

    step: int = 0                                               # steps done
    seconds: float = 0.0                                        # of all its calls together
    losses: dict[str, list[float]] = field(default_factory=dict)    # every part, every step
    kept: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)      # what `snapshot` gave, by step


class _Part(Protocol):
    """What a checkpoint holds the state of: the network, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@contextmanager
def _threads() -> Iterator[None]:
    """All that a batch of several notebooks at a time grants: the numbers of a training depend on its threads."""
    with torch_threads(int(os.environ.get("THESIS_TRAINING_THREADS", 0)) or None):
        yield


@_threads()
def descend(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], losses: Callable[[int], Losses], *,
            steps: int, seed: int, checkpoint: Path, subject: Mapping[str, Any], code: Mapping[str, str],
            schedules: Sequence[torch.optim.lr_scheduler.LRScheduler] = (), keep: Sequence[int] = (),
            snapshot: Callable[[], dict[str, torch.Tensor]] | None = None, every_s: float = 60.0,
            limit: int | None = None, torch_device: str = "cpu", what: str = "training") -> Course:
    """Minimise the sum of `losses(step)`, a mapping of named scalars, in place; each step has its own random numbers.

    checkpoint: written at once or not at all, each `every_s` seconds and at the end; a call with the same `subject`
    (anything JSON holds) takes it up, one with another is refused. code: what the losses run through, of
    `identity.code` or `identity.steps`; where that, versions, threads or torch device differ, a line says so and the
    training starts anew. keep: steps after which `snapshot` is asked. limit: stop after so many steps of this call.
    Raises TrainingError; weights that are not finite are never stored.
    """
    check_torch_device(torch_device)
    # 1. Everything with a state; an earlier call with the same subject, under the same conditions, gives it back.
    parts: dict[str, _Part] = {"network": network}
    parts |= {f"optimizer {number}": optimizer for number, optimizer in enumerate(optimizers)}
    parts |= {f"schedule {number}": schedule for number, schedule in enumerate(schedules)}
    conditions = _conditions(code, torch_device)
    course = _resume(checkpoint, subject, conditions, parts, steps, torch_device, what)
    # 2. The clock goes on from the seconds of the earlier calls.
    began = time.perf_counter() - course.seconds
    written, last = time.perf_counter(), min(steps, course.step + (limit or steps))
    for step in bar(range(course.step, last), desc=what, total=steps, initial=course.step):
        # 3. One step of every optimizer, then of every schedule. All chance comes from the number of the step, and the
        # caller's random numbers are left as they were.
        with torch.random.fork_rng([torch_device] if torch_device.startswith("cuda") else []):
            torch.manual_seed(seed_of("step", seed, step))
            values = losses(step)
            for optimizer in optimizers:
                optimizer.zero_grad()
            total = sum(values.values())
            total.backward()            # type: ignore[union-attr]  # there is at least one part
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        # 4. What the step has left behind.
        for name, value in values.items():
            course.losses.setdefault(name, []).append(value.item())
        course.step, course.seconds = step + 1, time.perf_counter() - began
        if bad := [name for name in values if not math.isfinite(course.losses[name][-1])]:
            raise TrainingError(f"{what}: the loss {', '.join(bad)} of step {course.step} is not finite; a lower "
                                "learning rate may help")
        if course.step in keep and snapshot is not None:
            course.kept[course.step] = snapshot()
        # 5. A checkpoint now and then; a finished training needs its network alone.
        if course.step == last or time.perf_counter() - written > every_s:
            _say(what, course, steps, optimizers)
            _save(checkpoint, subject, conditions, parts if course.step < steps else {"network": network}, course)
            written = time.perf_counter()
    return course


def checkpoint_of(out: Path, torch_device: str, limit: int | None) -> Path:
    """Checkpoint beside the weights that a training is to write, its folder made; TrainingError for what cannot be."""
    if out.suffix != ".safetensors":
        raise TrainingError(f"out={out}: needs a name that ends in .safetensors")
    if limit is not None and limit < 1:
        raise TrainingError(f"limit={limit}: needs at least 1")
    check_torch_device(torch_device)
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_suffix(".checkpoint")


def _say(what: str, course: Course, steps: int, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """A line of the log: how far, and the mean of each loss over the last 50 steps."""
    recent = {name: values[-50:] for name, values in course.losses.items()}
    log.info("%s: step %d of %d, %.0f s, learning rate %.2g, loss of %s", what, course.step, steps, course.seconds,
             optimizers[0].param_groups[0]["lr"],
             ", ".join(f"{name} {sum(values) / len(values):.4g}" for name, values in recent.items()))


def _conditions(code: Mapping[str, str], torch_device: str) -> dict[str, Any]:
    """What the numbers of a step depend on beside the recipe."""
    loop = descend.__module__
    return {"code": {**identity.code(loop), **code}, "versions": identity.versions(loop), "torch_device": torch_device,
            "threads": torch.get_num_threads() if torch_device == "cpu" else None}


def _save(path: Path, subject: Mapping[str, Any], conditions: Mapping[str, Any], parts: Mapping[str, _Part],
          course: Course) -> None:
    """Write a checkpoint, whole or not at all; TrainingError where the weights are not finite."""
    # A loss tells of damaged weights one step too late: a checkpoint of them could never be gone on from.
    if not all(values.isfinite().all() for values in parts["network"].state_dict().values()):
        raise TrainingError(f"step {course.step}: the weights are not finite; a lower learning rate may help")
    content = {"subject": json.dumps(subject), "conditions": json.dumps(conditions), "course": vars(course)}
    with files.replaced(path) as partial:
        torch.save(content | {name: part.state_dict() for name, part in parts.items()}, partial)


def _resume(path: Path, subject: Mapping[str, Any], conditions: Mapping[str, Any], parts: Mapping[str, _Part],
            steps: int, torch_device: str, what: str) -> Course:
    """What an earlier call with this subject has done under the same conditions; nothing under others. A finished one
    stores its network alone.
    """
    if not path.is_file():
        return Course()
    try:
        stored = torch.load(path, map_location=torch_device, weights_only=True)
        recipe = json.loads(stored["subject"])
    except Exception as error:              # torch raises whatever its unpickler met
        raise TrainingError(f"{path}: not a readable checkpoint ({type(error).__name__}); delete it to start "
                            "anew") from error
    # 1. Another recipe is refused: its checkpoint may be hours of somebody's work.
    wanted = json.loads(json.dumps(subject))                # in JSON's types, as the stored one
    differing = [name for name in {**recipe, **wanted} if recipe.get(name) != wanted.get(name)]
    if differing:
        asked = ", ".join(f"{name}={wanted.get(name)}" for name in differing)
        raise TrainingError(f"{path}: made with another recipe than {asked}; delete it to start anew")
    # 2. Under other conditions the same recipe gives other numbers: the work is done again.
    before = json.loads(stored.get("conditions", "{}"))
    if unlike := _unlike(before, conditions):
        log.warning("%s: %s was made by other %s; training starts anew", what, path.name, unlike)
        return Course()
    # 3. Going on: every state as it was. A finished training stored its network alone.
    course = Course(**stored["course"])
    for name, part in parts.items():
        if name == "network" or course.step < steps:
            part.load_state_dict(stored[name])
    log.info("%s: going on after step %d", path.name, course.step)
    return course


def _unlike(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The conditions that differ, in words; modules by name."""
    differences = []
    if modules := identity.unlike(before.get("code", {}), now["code"]):
        differences.append(f"code ({', '.join(modules)})")
    for name, text in (("versions", "versions of packages"), ("torch_device", "torch device"), ("threads", "threads")):
        if before.get(name) != now[name]:
            differences.append(f"{text} ({before.get(name)}, now {now[name]})")
    return " and ".join(differences)

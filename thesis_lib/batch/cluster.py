"""Where a batch runs: threads of this machine or the workers of a Dask cluster, behind one interface.

The address of a scheduler and tasks go in, a `Place` comes out that takes them. Stated assumption of a cluster: data,
outputs and notebooks lie on a file system that all machines see under the same names. A probe checks it for every
worker before anything starts.
"""

import os
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thesis_lib.batch.plan import Task, files_of
from thesis_lib.batch.values import BatchError
from thesis_lib.batch.worker import Stop
from thesis_lib.core import identity, paths, stamp

if TYPE_CHECKING:       # only who has a cluster needs the package
    from distributed import Client


@dataclass
class Place:
    """`pool` with its event `stop`; `slots` tasks at a time, each with so many threads."""

    pool: Executor
    stop: Stop
    slots: int
    threads: int
    local: bool = True


class StopFile:
    """An event that processes on several machines see: a file on what they share."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def set(self) -> None:
        self.file.touch()

    def is_set(self) -> bool:
        return self.file.exists()

    def wait(self, seconds: float, /) -> bool:
        time.sleep(max(seconds, 0.5))       # a shared file system is not to be asked ten times a second
        return self.is_set()


@contextmanager
def connect(address: str, tasks: Sequence[Task], report: Callable[[str], None],
            patience: float = 10) -> Iterator[Place]:
    """The workers of a running scheduler that see what this machine sees; BatchError when there is none."""
    try:
        import distributed
    except ImportError:
        raise BatchError("scheduler: needs the package distributed: pip install -e '.[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=patience, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise BatchError(f"scheduler {address}: does not answer ({str(error).splitlines()[0]}); "
                         "`dask scheduler` starts one") from None
    probe = paths.outputs() / f".probe-{secrets.token_hex(6)}"
    probe.parent.mkdir(parents=True, exist_ok=True)
    stop = StopFile(probe.with_name(probe.name.replace("probe", "stop")))
    with client:
        try:
            probe.touch()
            good = _fit(client, probe, tasks, report)
            every = client.scheduler_info(n_workers=-1)["workers"]
            slots = {worker: every[worker]["nthreads"] for worker in good}
            hosts = defaultdict(list)                   # machine -> its workers
            for worker in good:
                hosts[every[worker]["host"]].append(worker)
            # Workers of one machine share its processors: so many threads that all notebooks at a time fit.
            cores = client.run(os.cpu_count, workers=good)
            threads = min(cores[workers[0]] // sum(slots[worker] for worker in workers) for workers in hosts.values())
            report(f"{len(good)} workers, {sum(slots.values())} notebooks at a time, dashboard {client.dashboard_link}")
            # Others only when none of these is left: a worker that is started again has a new address.
            pool = client.get_executor(workers=good, allow_other_workers=True)
            yield Place(pool, stop, sum(slots.values()), max(1, threads), local=False)
        finally:
            probe.unlink(missing_ok=True)
            stop.file.unlink(missing_ok=True)


def sight(probe: str, tasks: Sequence[Task]) -> dict[str, Any]:
    """What a process sees of the shared files; compared between a worker and the machine of the batch."""
    code: dict[str, str] = {}
    for task in tasks:
        if task.notebook.is_file():
            code |= task.code
    seen = {"outputs": str(paths.outputs()), "shared outputs": Path(probe).is_file(), "data": str(paths.data()),
            "code": code, "packages": {package: identity.version_of(package) for package in stamp.PACKAGES}}
    for task in tasks:
        seen[f"notebook of {task.name}"] = task.notebook.is_file()
    for task in tasks:
        seen[f"data of {task.name}"] = files_of(task.effective) if task.notebook.is_file() else None
    return seen


def _fit(client: "Client", probe: Path, tasks: Sequence[Task], report: Callable[[str], None]) -> list[str]:
    """Addresses of the workers that see what we see; each other one is named in a line."""
    here, good = sight(str(probe), tasks), []
    there = client.run(sight, str(probe), tasks, on_error="return")
    if not there:
        raise BatchError("scheduler: has no worker; `dask worker ADDRESS --nthreads 1` starts one")
    for worker, seen in sorted(there.items()):
        if isinstance(seen, Exception):
            report(f"worker {worker} is refused: {type(seen).__name__}: {seen}")
            continue
        unlike = [name for name in here if seen.get(name) != here[name]]
        if not unlike:
            good.append(worker)
            continue
        first, detail = unlike[0], ""           # one reason is enough; the others often follow from it
        if first in ("outputs", "data"):
            detail = f" ({seen.get(first)}, here {here[first]})"
        elif first == "code":
            detail = f" ({', '.join(identity.unlike(seen['code'], here['code']))})"
        report(f"worker {worker} is refused: its {first} is not as here{detail}")
    if not good:
        raise BatchError(f"scheduler: none of its {len(there)} workers sees the same code, data and outputs as "
                         "this machine")
    return good

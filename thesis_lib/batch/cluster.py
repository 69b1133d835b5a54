"""Where a batch runs: threads of this machine or the workers of a Dask cluster, behind one interface.

Stated assumption of a cluster: data, outputs and notebooks lie on a file system that all machines see under the same
names. A probe checks it for every worker before anything starts.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thesis_lib.batch.plan import BatchError, Task, files_of
from thesis_lib.core import identity, paths, stamp


@dataclass
class Place:
    """`pool` with its event `stop`; `slots` tasks at a time, each with so many threads."""

    pool: Executor
    stop: Any
    slots: int
    threads: int
    local: bool = True


class StopFile:
    """An event that processes on several machines see: a file on what they share."""

    def __init__(self, file: Path):
        self.file = file

    def set(self) -> None:
        self.file.touch()

    def is_set(self) -> bool:
        return self.file.exists()

    def wait(self, seconds: float) -> bool:
        time.sleep(max(seconds, 0.5))       # a shared file system is not to be asked ten times a second
        return self.is_set()


@contextmanager
def connect(address: str, tasks: list[Task], report: Callable[[str], None], patience: float = 10) -> Iterator[Place]:
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
            hosts = {host: [worker for worker in good if every[worker]["host"] == host]
                     for host in {every[worker]["host"] for worker in good}}
            cores = client.run(os.cpu_count, workers=good)
            threads = min(cores[there[0]] // sum(map(slots.get, there)) for there in hosts.values())
            report(f"{len(good)} workers, {sum(slots.values())} notebooks at a time, dashboard {client.dashboard_link}")
            # Others only when none of these is left: a worker that is started again has a new address.
            pool = client.get_executor(workers=good, allow_other_workers=True)
            yield Place(pool, stop, sum(slots.values()), max(1, threads), local=False)
        finally:
            probe.unlink(missing_ok=True)
            stop.file.unlink(missing_ok=True)


def sight(probe: str, tasks: list[Task]) -> dict:
    """What a process sees of the shared files; compared between a worker and the machine of the batch."""
    return {"outputs": str(paths.outputs()), "shared outputs": Path(probe).is_file(), "data": str(paths.data()),
            "code": dict(item for task in tasks if task.notebook.is_file() for item in task.code.items()),
            "packages": {package: identity.version_of(package) for package in stamp.PACKAGES},
            **{f"notebook of {task.name}": task.notebook.is_file() for task in tasks},
            **{f"data of {task.name}": files_of(task.effective) if task.notebook.is_file() else None
               for task in tasks}}


def _fit(client, probe: Path, tasks: list[Task], report) -> list[str]:
    """Addresses of the workers that see what we see; each other one is named in a line."""
    here, good = sight(str(probe), tasks), []
    there = client.run(sight, str(probe), tasks, on_error="return")
    if not there:
        raise BatchError("scheduler: has no worker; `dask worker ADDRESS --nthreads 1` starts one")
    for worker, seen in sorted(there.items()):
        if isinstance(seen, Exception):
            report(f"worker {worker} is refused: {type(seen).__name__}: {seen}")
        elif unlike := [name for name in here if seen.get(name) != here[name]]:
            first = unlike[0]
            told = f" ({seen.get(first)}, here {here[first]})" if first in ("outputs", "data") else ""
            if first == "code":
                told = f" ({', '.join(identity.unlike(seen['code'], here['code']))})"
            report(f"worker {worker} is refused: its {first} is not as here{told}")
        else:
            good.append(worker)
    if not good:
        raise BatchError(f"scheduler: none of its {len(there)} workers sees the same code, data and outputs as "
                         "this machine")
    return good

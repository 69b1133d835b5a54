"""One notebook in a process of its own: `execute` is the parent's end, this module as a script the child's.

A notebook and its parameters go in, the executed copy comes out, and in two words how it ended.
The child's current folder is a scratch folder with job.json; it leaves result.json (state, message) there.
"""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil

from thesis_lib.core import paths
from thesis_lib.core.threads import usable_cpus

NOISE = re.compile(r"without encryption|frozen.modules|to python to disable|PYDEVD_|^0\.\d\ds - ")
NO_KERNEL = ("Kernel died before", "Kernel didn't respond")     # jupyter_client, when a kernel never came up
CAUSES: dict[int, str] = {signal.SIGKILL: "out of memory?", signal.SIGILL: "a wheel built for another processor?"}


class Stop(Protocol):
    """An event: `threading.Event`, or a file that several machines see."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...

    def wait(self, seconds: float, /) -> bool: ...


def execute(notebook: Path, parameters: Mapping[str, Any], output: Path, *, timeout_s: float, threads: int, stop: Stop,
            rows: Path, look: Callable[[], None] = lambda: None) -> tuple[str, str]:
    """Run to the end, the limit (seconds) or the event `stop`; nothing of it is alive afterwards.

    rows: file for the ids of the result rows that it measures or reads; look: called ten times a second meanwhile.
    -> state ("done", "failed", "killed", "timeout", "interrupted", "no kernel"), message on one line.
    """
    with tempfile.TemporaryDirectory(prefix="thesis-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        job = {"notebook": str(notebook), "output": str(output), "parameters": dict(parameters), "scratch": folder}
        (scratch / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # The numbers of a training depend on its threads, so it has all, however many notebooks run at a time; waiting
        # for each other they must then leave the processor to other trainings. A value of the user's wins.
        training = {} if "OMP_NUM_THREADS" in os.environ else {"THESIS_TRAINING_THREADS": str(usable_cpus())}
        waits = {"GOMP_SPINCOUNT": "0"} if training and threads < usable_cpus() else {}
        environment = {"OMP_NUM_THREADS": str(threads), **training, **os.environ, **waits,
                       # absolute, because the child has another current folder
                       "THESIS_DATA": str(paths.data()), "THESIS_OUTPUTS": str(paths.outputs()),
                       "THESIS_ROWS": str(rows), "THESIS_PEAKS": str(scratch / "peaks"),
                       "THESIS_BATCH": "1",          # nobody watches: no bars, no widgets
                       "IPYTHONDIR": f"{folder}/ipython", "JUPYTER_RUNTIME_DIR": f"{folder}/runtime"}
        with open(scratch / "log", "wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "thesis_lib.batch.worker"], cwd=folder, env=environment,
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + timeout_s
            while child.poll() is None:
                if stop.wait(0.1):
                    return "interrupted", ""
                if time.monotonic() > deadline:
                    return "timeout", f"longer than {timeout_s:g} s"
                look()
        finally:
            if child.poll() is None:
                kill_tree(child.pid)
                child.wait()
            if child.stdin:
                child.stdin.close()
        if child.returncode < 0:
            return "killed", ended("papermill", child.returncode)
        if child.returncode == 0 and (scratch / "result.json").exists():
            state, message = json.loads((scratch / "result.json").read_text(encoding="utf-8"))
            return state, message
        lines = (scratch / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if line.strip() and not NOISE.search(line)]
        return "failed", one_line(" | ".join(telling[-3:]))


def kill_tree(pid: int, itself: bool = True) -> None:
    """Kill a process and all below it; a kernel leads a process group of its own, so killpg would miss it."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [*([top] if itself else []), *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def incomplete(cells: Iterable[Mapping[str, Any]], parameters: Mapping[str, Any]) -> str | None:
    """What is missing in cells that papermill calls complete: it does so after sys.exit(0) too."""
    injected: dict[str, Any] = {}
    for number, cell in enumerate(cells, 1):
        if cell["cell_type"] != "code":
            continue
        tags, metadata = cell["metadata"].get("tags", []), cell["metadata"].get("papermill", {})
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                return one_line(f"{output['ename']}: {output['evalue']} (cell {number})")
        ran = metadata.get("duration") is not None and cell["execution_count"] is not None
        if cell["source"].strip() and not ran and "skip-execution" not in tags:
            return f"cell {number} was not executed"
        if "injected-parameters" in tags:
            # papermill writes one assignment a line: name = literal.
            assignments = ast.parse(cell["source"]).body
            injected = {line.targets[0].id: ast.literal_eval(line.value) for line in assignments}
    return None if injected == parameters else f"ran with {injected}, not with {parameters}"


def ended(who: str, code: int) -> str:
    """'kernel died (signal 9: out of memory?)' for return code -9."""
    if code >= 0:
        return f"{who} died (exit code {code})"
    return f"{who} died (signal {-code}: {CAUSES.get(-code) or signal.strsignal(-code)})"


def one_line(text: str, limit: int = 300) -> str:
    """Without line breaks, cut off at the limit."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit - 3] + "..."


def _end_with_parent(scratch: str) -> None:
    os.read(0, 1)              # the parent holds the other end, open and silent: this returns when it is gone
    kill_tree(os.getpid(), itself=False)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def _papermill(job: Mapping[str, Any]) -> tuple[str, str]:
    """The child's end of `execute`: state and message."""
    # A check of addresses that jsonschema looks for and no notebook needs: its grammar takes a second of every page.
    sys.modules["rfc3987_syntax"] = None                                        # type: ignore[assignment]
    import papermill
    import papermill.iorw
    from jupyter_client import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError

    from thesis_lib.core.memory import largest_child_gb

    class Manager(AsyncKernelManager):        # nbclient drops its manager, and the kernel's return code
        last: Any = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            Manager.last = self

    # papermill formats paths as templates, so a brace in a folder's name must be doubled
    source, target = (job[name].replace("{", "{{").replace("}", "}}") for name in ("notebook", "output"))
    try:
        executed = papermill.execute_notebook(
            source, target, job["parameters"], kernel_name="python3", language="python",
            kernel_manager_class=Manager, progress_bar=False, autosave_cell_every=0, start_timeout=300,
            iopub_timeout=60,                 # default 4 s: too short for a loaded Raspberry Pi
            shutdown_kernel="immediate")      # it has nothing left to say; asked, it takes up to 2.5 s to unload torch
    except papermill.PapermillExecutionError as error:
        return "failed", one_line(f"{error.ename}: {error.evalue} (In [{error.exec_count}])")
    except DeadKernelError:
        return "killed", ended("kernel", Manager.last.provisioner.process.returncode)
    except Exception as error:
        state = "no kernel" if str(error).startswith(NO_KERNEL) else "failed"
        return state, one_line(f"{type(error).__name__}: {error}")
    # The largest process below this one is the kernel, and has ended.
    executed["metadata"]["papermill"]["peak_memory_gb"] = round(largest_child_gb(Path(os.environ["THESIS_PEAKS"])), 3)
    papermill.iorw.write_ipynb(executed, target)
    problem = incomplete(executed["cells"], job["parameters"])
    return ("failed", problem) if problem else ("done", "")


if __name__ == "__main__":
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    threading.Thread(target=_end_with_parent, args=(job["scratch"],), daemon=True).start()
    Path(job["scratch"], "result.json").write_text(json.dumps(_papermill(job)), encoding="utf-8")

"""Run a function in two processes at the same time."""

import multiprocessing
from collections.abc import Callable

PATIENCE_S = 240


def together(function: Callable, *arguments) -> None:
    """function(number, barrier, *arguments) as process 0 and 1; both must end well.

    Whoever waits at the barrier goes on when the other one waits there, too. The function belongs to a module: a fresh
    Python imports it, with the same environment but without pytest's fixtures.
    """
    fresh = multiprocessing.get_context("spawn")
    barrier = fresh.Barrier(2, timeout=PATIENCE_S)
    processes = [fresh.Process(target=function, args=(number, barrier, *arguments), daemon=True) for number in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * PATIENCE_S)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0], "what went wrong stands in the captured stderr"

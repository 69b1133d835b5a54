"""What the benchmarks share: command line, pictures, statistics of times, the row with its printed table, a peer."""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import pandas as pd
import torch

from thesis_lib import data
from thesis_lib.core import identity, results
from thesis_lib.methods import PatchCore
from thesis_lib.networks import backbones

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PEER = "outputs/peer/bin/python"        # Python of an environment with anomalib
MAKE_PEER = ("python3 -m venv outputs/peer && outputs/peer/bin/pip install 'anomalib==2.7.*' torch==2.13.0 "
             "torchvision==0.28.0")


def parser(about: str, rounds: int) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rounds", type=int, default=rounds, help="timed runs of every side")
    found.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and FAISS")
    return found


def add_pictures(found: argparse.ArgumentParser) -> None:
    found.add_argument("--data", default="demo", help="folder of categories in MVTec AD layout, or demo")
    found.add_argument("--category", default="granulate")
    found.add_argument("--weights", default="bundled", help="imagenet, bundled, random or a .safetensors file")


def set_threads(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)


def pictures(args: argparse.Namespace) -> tuple[data.Category, data.Preprocess]:
    return data.scan(data.resolve(args.data), args.category), data.Preprocess()


def add_peer(found: argparse.ArgumentParser) -> None:
    found.add_argument("--peer", default=PEER, help="Python of an environment with anomalib 2.7")
    found.add_argument("--clock", default="wall", choices=list(CLOCKS),
                       help="wall, or the processor's time of a side: for a machine with other work, with one thread")


def clock(args: argparse.Namespace) -> Callable[[], float]:
    """Seconds of the clock that was asked for."""
    return CLOCKS[args.clock]


class Peer:
    """anomalib in a process of its own, `anomalib_side.py` under the Python of its own environment.

    Every call is one line of JSON there and one back; the process ends with the `with` block.
    """

    def __init__(self, python: str, threads: int, clock: str) -> None:
        self.common, self.folder = {"threads": threads, "clock": clock}, tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("anomalib_side.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"})
        self.version = self._answer()["anomalib"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()

    def ask(self, do: str, tensors: dict[str, Any] | None = None, **more: Any) -> dict:
        """The answer; tensors go there as a file."""
        if tensors is not None:
            more["file"] = str(Path(self.folder.name) / "given.pt")
            torch.save(tensors, more["file"])
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **self.common, **more}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("anomalib: its process has ended; what it said stands above. Its environment is made by\n"
                             f"    {MAKE_PEER}")
        return json.loads(line)


def peer(args: argparse.Namespace) -> Peer | None:
    """anomalib on as many threads; where its environment is not there a line says how to make it."""
    if not Path(args.peer).is_file():
        print(f"without anomalib: {args.peer} is not there; make it by\n    {MAKE_PEER}")
        return None
    return Peer(args.peer, args.threads, args.clock)


def torchvision_state(network: backbones.Backbone) -> dict[str, torch.Tensor]:
    """Its numbers under the names that they have in torchvision's files."""
    return {backbones._torchvision_key(network.name, key): value for key, value in network.levels.state_dict().items()}


def spread(seconds: np.ndarray) -> float:
    """Interquartile range over the median."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return float((high - low) / median)


def statistics(seconds: np.ndarray, against: np.ndarray) -> dict:
    """Milliseconds, and the ratio to another side that was measured in the same rounds: median within a round."""
    return {"ms_median": 1e3 * float(np.median(seconds)), "ms_min": 1e3 * float(seconds.min()),
            "ratio": float(np.median(seconds / against)), "raw_ms": (1e3 * seconds).tolist()}


def subject(detector: PatchCore, category: data.Category, args: argparse.Namespace, **more) -> dict:
    """What was measured on these pictures; `more` are parameters that the detector does not have."""
    return {"category": category.name, "data": category.fingerprint,
            "weights": backbones.record(detector.backbone, args.weights),
            "parameters": detector.parameters(identity_only=True) | more}


def report(method: str, args: argparse.Namespace, subject: dict, lines: list[dict], *protocol: str,
           markdown: bool = False) -> None:
    """Store the lines as a row of kind "benchmark", then print them; `protocol` names arguments that matter, too.

    The code of the benchmark counts under its own name, not as "__main__", and with it all that it runs.
    """
    protocol = {name: getattr(args, name) for name in ("rounds", "threads", *protocol)}
    code = identity.key(f"{__package__}.bench_{method}", PatchCore.__module__)
    row = results.save("benchmark", {"method": method, **subject, "protocol": protocol, "code": code}, {"lines": lines})
    print(f"{subject['category']}, {args.threads} threads, row {row['id']}")
    shown = pd.DataFrame([{name: value for name, value in line.items() if not name.startswith("raw_")}
                          for line in lines])
    print(as_markdown(shown) if markdown else shown.round(3).to_string(index=False, na_rep=""))


def as_markdown(table: pd.DataFrame) -> str:
    """A table that can be pasted into a page."""
    rows = [list(table.columns), ["---"] * len(table.columns)]
    for values in table.itertuples(index=False):
        rows.append(["" if pd.isna(value) else f"{value:.3g}" if isinstance(value, float) else str(value)
                     for value in values])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

"""What the benchmarks share: command line, pictures, statistics of the times, and the row with its printed table."""

import argparse

import faiss
import numpy as np
import pandas as pd
import torch

from thesis_lib import data
from thesis_lib.core import identity, results
from thesis_lib.methods import PatchCore
from thesis_lib.networks import backbones


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


def statistics(seconds: np.ndarray, against: np.ndarray) -> dict:
    """Milliseconds, and the ratio to another side that was measured in the same rounds: median within a round."""
    return {"ms_median": 1e3 * float(np.median(seconds)), "ms_min": 1e3 * float(seconds.min()),
            "ratio": float(np.median(seconds / against)), "raw_ms": (1e3 * seconds).tolist()}


def subject(detector: PatchCore, category: data.Category, args: argparse.Namespace, **more) -> dict:
    """What was measured on these pictures; `more` are parameters that the detector does not have."""
    return {"category": category.name, "data": category.fingerprint,
            "weights": backbones.record(detector.backbone, args.weights),
            "parameters": detector.parameters(identity_only=True) | more}


def report(method: str, args: argparse.Namespace, subject: dict, lines: list[dict], *protocol: str) -> None:
    """Store the lines as a row of kind "benchmark", then print them; `protocol` names arguments that matter, too.

    The code of the benchmark counts under its own name, not as "__main__", and with it all that it runs.
    """
    protocol = {name: getattr(args, name) for name in ("rounds", "threads", *protocol)}
    code = identity.key(f"{__package__}.bench_{method}", PatchCore.__module__)
    row = results.save("benchmark", {"method": method, **subject, "protocol": protocol, "code": code}, {"lines": lines})
    print(f"{subject['category']}, {args.threads} threads, row {row['id']}")
    print(pd.DataFrame(lines).drop(columns="raw_ms").round(3).to_string(index=False, na_rep=""))

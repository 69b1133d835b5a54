"""Nearest bank row of every patch: cdist, FAISS' flat index, one matrix product, blocks of it, the choice, the floor.

    python -m benchmarks.bench_search --threads 1

Numbers drawn from a normal distribution: brute force takes as long on any. Before the clock starts the float32 sides
must agree with cdist in float64, which is timed only where it takes less than a second. The floor is the
multiply-accumulates at the rate of a large product. The table is printed and stored as a row "benchmark".
"""

import numpy as np
import torch

from benchmarks import common
from thesis_lib.core import timing
from thesis_lib.evaluation import limits
from thesis_lib.patches import search

SHAPES = "64x1000x384,1024x1000x128,1024x1000x384,1024x1000x1536,1024x10000x128,16384x1000x128"
PATIENCE = 5e8          # multiply-accumulates up to which cdist is timed
CHECKED = 64            # queries that are compared
TOLERANCE = 1e-4        # relative difference of a distance
WARMUP = 8              # untimed calls before each timed one: threads of another library still turn for a while


class OneProduct(search.Torch):
    """All distances at once, then torch's minimum: what is written down first."""

    def _nearest(self, vectors, k):
        partial = torch.addmm(self.norms, vectors, self.bank.T, alpha=-2)
        nearest, indices = partial.min(dim=1, keepdim=True)
        return nearest + vectors.square().sum(dim=1, keepdim=True), indices


SIDES = {"cdist": search.Cdist, "faiss": search.Faiss, "one product": OneProduct, "blocks (torch)": search.Torch,
         "by shape (auto)": search.Auto}


def compare(shape: str, rounds: int, machine: limits.Machine) -> list[dict]:
    """One line per side for queries x bank rows x dimension; the ratio is to FAISS in the same round."""
    queries, rows, dim = map(int, shape.split("x"))
    generator, macs = torch.Generator().manual_seed(0), queries * rows * dim
    bank, vectors = torch.randn(rows, dim, generator=generator), torch.randn(queries, dim, generator=generator)
    finders = {name: kind().fit(bank) for name, kind in SIDES.items()}
    exact, _ = finders["cdist"].query(vectors[:CHECKED])
    for name, finder in finders.items():
        if ((finder.query(vectors)[0][:CHECKED] if name != "cdist" else exact) / exact - 1).abs().max() > TOLERANCE:
            raise SystemExit(f"{shape}: {name} gives other distances than cdist")
    if macs > PATIENCE:
        del finders["cdist"]
    seconds = timing.interleaved({name: finder.query for name, finder in finders.items()}, vectors, rounds=rounds,
                                 warmup=WARMUP)
    floor = macs / machine.macs_per_s
    lines = [{"shape": shape, "side": name, **common.statistics(x, seconds["faiss"])} for name, x in seconds.items()]
    lines.append({"shape": shape, "side": "floor", "ms_median": 1e3 * floor,
                  "ratio": floor / float(np.median(seconds["faiss"]))})
    for line in lines:
        line |= {"times_floor": line["ms_median"] / (1e3 * floor), "gmac_per_s": macs / 1e6 / line["ms_median"]}
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser(__doc__, rounds=15)
    parser.add_argument("--shapes", default=SHAPES, help="queries x bank rows x dimension, separated by commas")
    args = parser.parse_args(arguments)
    common.set_threads(args)
    machine = limits.machine()
    lines = [line for shape in args.shapes.split(",") for line in compare(shape, args.rounds, machine)]
    common.report("search", args, {"category": "normal", "parameters": {"shapes": args.shapes}}, lines)


if __name__ == "__main__":
    main()

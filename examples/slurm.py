"""The batch on a SLURM cluster: python examples/slurm.py [--workers 8] [-- options of `thesis run`].

Each worker is a SLURM job that takes one notebook at a time. Data, outputs and this checkout must lie on a file system
that all nodes share under the same name. Fit `SETTINGS` to your cluster; --dry-run prints the job script and stops.
"""

import argparse
import os
import subprocess
import sys

from dask_jobqueue import SLURMCluster

SETTINGS = {
    "cores": 1,                     # notebooks at a time in one job
    "job_cpu": 4,                   # cores that SLURM gives it
    "memory": "8GB",                # PatchCore with a bank of 100 % of MVTec AD's largest category needs most of it
    "walltime": "12:00:00",         # longer than the longest notebook
    "python": sys.executable,       # of the shared environment
    "job_script_prologue": [f"export {name}={os.environ[name]}" for name in ("THESIS_DATA", "THESIS_OUTPUTS")
                            if name in os.environ],
    # "queue": "cpu", "account": "...", "interface": "ib0",
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=4, help="SLURM jobs (default 4)")
    options.add_argument("--dry-run", action="store_true", help="print the job script and stop")
    options.add_argument("thesis", nargs="*", help="options of `thesis run`, after --")
    args = options.parse_args()
    with SLURMCluster(**SETTINGS) as cluster:
        if args.dry_run:
            print(cluster.job_script())
            return 0
        cluster.scale(jobs=args.workers)
        cluster.wait_for_workers(1)
        return subprocess.call([sys.executable, "-m", "thesis_lib.commands.main", "run", "--scheduler",
                                cluster.scheduler_address, *args.thesis])


if __name__ == "__main__":
    sys.exit(main())

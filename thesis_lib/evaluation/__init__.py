"""A detector and pictures go in, rows come out: AUROC with interval, stage times, and what both may be compared with.

Tables and figures of rows do not belong here. A ladder of detectors on one category is `study.study`.
"""

from thesis_lib.evaluation.bars import thesis_bars
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.evaluation.crossfit import promise
from thesis_lib.evaluation.scores import evaluate, evaluate_many, subject, worst
from thesis_lib.evaluation.stage_times import compare, measure_time, measure_times
from thesis_lib.evaluation.study import Study
from thesis_lib.evaluation.thresholds import Promise

__all__ = ["Configuration", "Promise", "Study", "compare", "evaluate", "evaluate_many", "measure_time", "measure_times",
           "promise", "subject", "thesis_bars", "worst"]

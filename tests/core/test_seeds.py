"""Random streams: no two purposes of a training meet, and whatever a training draws has a purpose."""

import ast
from typing import get_args

import torch

from thesis_lib.core import paths
from thesis_lib.core.seeds import Purpose, seed_of
from thesis_lib.training import procedural
from thesis_lib.training.descent import descend

REACH = 100_000         # numbers of a stream that a training may use; the longest has 70 000 steps
# What draws from the plain seed: each for one purpose alone, and no training among them.
PLAIN = {"networks/backbones.py", "patches/coreset.py", "methods/padim.py", "evaluation/metrics.py", "core/timing.py",
         "data/scenes.py", "evaluation/wins.py", "evaluation/robustness.py", "evaluation/verdicts.py",
         "device/drift.py"}


def test_no_two_purposes_meet():
    """The streams under one seed, those of its statistics, penalty and teachers among them, and the plain seeds."""
    for seed in range(10):
        below = [seed_of("statistics", seed), seed_of("penalty", seed)]
        below += [seed_of("teacher", seed, p) for p in (17, 33, 65)]
        begins = sorted([0, *(seed_of(purpose, parent) for parent in (seed, *below) for purpose in get_args(Purpose))])
        apart = [after - before for before, after in zip(begins, [*begins[1:], begins[0] + 2**32], strict=True)]
        assert len(begins) == 55 and min(apart) > REACH, seed


def test_numbers_of_a_stream_follow_each_other_and_fit_into_32_bits():
    for purpose in get_args(Purpose):
        begin = seed_of(purpose, 3)
        assert [seed_of(purpose, 3, number) for number in (1, 500, 2**32 - 1)] == [
            (begin + number) % 2**32 for number in (1, 500, 2**32 - 1)]
    assert len({seed_of("step", seed, step) for seed in range(9) for step in range(99)}) == 9 * 99


def test_a_step_draws_other_numbers_than_the_picture_of_its_number(tmp_path, monkeypatch):
    """They were the same in 200 of 200 steps: the number that made a picture grey was its class, too."""
    steps, pictures = [], []

    def render(numbers, families, side, generator):
        pictures.append(numbers[0, :8].tolist())
        return torch.zeros(1, 3, side, side)

    monkeypatch.setattr(procedural, "render", render)
    source, line = procedural.Procedural(32, 1, seed=4), torch.nn.Linear(1, 1)

    def losses(step):
        steps.append(torch.rand(8).tolist())
        source[step]
        return {"size": line.weight.square().sum()}

    descend(line, [torch.optim.SGD(line.parameters(), lr=0.1)], losses, steps=200, seed=4, checkpoint=tmp_path / "c",
            subject={}, code={})
    assert len(steps) == len(pictures) == 200
    assert not any(a == b for step, picture in zip(steps, pictures, strict=True)
                   for a, b in zip(step, picture, strict=True))


def test_every_generator_of_a_training_has_a_purpose():
    """Whatever seeds a generator in the library asks `seed_of`, but for what is never trained."""
    plain = set()
    for file in paths.PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("manual_seed", "default_rng", "PCG64",
                                                                                 "RandomState"):
                given = node.args[0] if node.args else None
                if not (isinstance(given, ast.Call) and getattr(given.func, "id", "") == "seed_of"):
                    plain.add(file.relative_to(paths.PACKAGE).as_posix())
    assert plain == PLAIN

"""python -m pretraining.states NAME: train a detector that ships with the project, and write it beside this module.

A name of RECIPES goes in; out come a file that `load` of its method reads, its card in the header, and a row of its
training in outputs/results. All pictures are drawn: more of those that the demo set has, none by a camera.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from pretraining.command import printed
from thesis_lib.core import files, paths
from thesis_lib.data import synthetic
from thesis_lib.data.folders import Category, scan
from thesis_lib.data.pictures import Pictures, Preprocess
from thesis_lib.evaluation import metrics, scores
from thesis_lib.methods.efficientad import EfficientAD
from thesis_lib.methods.trained import Trained
from thesis_lib.methods.uninformed_students import UninformedStudents
from thesis_lib.networks.torch_setup import torch_threads

FRESH = 60              # good pictures, and of every defect, that were neither trained on nor looked at before
SEED = 1                # of their drawing; the demo set has 0


@dataclass(frozen=True)
class Recipe:
    """All that decides a state: the detector's parameters, and how many pictures of which category are drawn."""

    detector: Trained
    category: str
    image_size: int
    pictures: int           # trained on; the demo's are the first of them

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(image_size=self.image_size)

    def drawn(self) -> Category:
        """Training pictures of this recipe, and the test pictures of the demo set."""
        root = paths.scratch() / "states" / f"{self.category}{self.pictures}"
        synthetic.write(root, categories=[self.category], train=self.pictures)
        return scan(root, self.category)

    def fresh(self) -> Category:
        """FRESH good pictures, and as many of every defect."""
        root = paths.scratch() / "states" / f"{self.category}_fresh"
        defective = FRESH * len(synthetic.DEFECTS[self.category])
        synthetic.write(root, categories=[self.category], seed=SEED, train=1, good=FRESH, defective=defective)
        return scan(root, self.category)


RECIPES: Mapping[str, Recipe] = {
    "efficientad_bracket": Recipe(
        EfficientAD(weights="bundled", penalty="none", steps=5000, rate=2e-4, snapshots=5, precision="bfloat16"),
        "bracket", 256, 300),
    "uninformed_students_weave": Recipe(
        UninformedStudents(weights="bundled", layers=(2,), channels=16, teacher_steps=2000, teacher_rate=1e-3,
                           epochs=10, rate=1e-3, snapshots=10), "weave", 256, 60)}


def train(name: str, folder: Path) -> dict[str, Any]:
    """Train by the recipe of that name, on one thread, write `folder`/name.safetensors and return its card.

    An interrupted training goes on when it is called again.
    """
    recipe = RECIPES[name]
    category, detector = recipe.drawn(), replace(recipe.detector)
    with torch_threads(1):                  # sums of several threads are rounded in another order
        row = scores.evaluate(detector, category, recipe.preprocess, seeds=1).iloc[0]
        if not hasattr(detector, "networks_"):          # its row was there already: taken over from its checkpoint
            detector.fit(Pictures(category.train, recipe.preprocess))
    card = {"recipe": detector.parameters(), "category": recipe.category, "pictures": recipe.pictures,
            "image_size": recipe.image_size, "steps": int(row["training.steps"][-1]), "seed": detector.seed,
            "auroc": percent(row["labels"], row["scores"]), "row": row["id"]}
    file = detector.save(folder / f"{name}.safetensors", compact=True)
    # What is told of fresh pictures is told by the file, whose numbers have 16 bits.
    card |= {"fresh": by_kind(type(detector).load(file), recipe.fresh(), recipe.preprocess), "sha256": digest(file)}
    detector.save(file, compact=True, card=card)
    return card


def digest(file: Path) -> str:
    """Of all tensors of a file by name; the order of its header changes from one writing to the next."""
    tensors = sorted(safetensors.torch.load_file(file).items())
    return files.digest(b"".join(name.encode() + values.numpy().tobytes() for name, values in tensors))[:16]


def percent(labels: Any, values: Any) -> list[float]:
    """AUROC in % and its 95 % interval."""
    numbers = metrics.image_auroc(labels, np.asarray(values)), *metrics.auroc_interval(labels, np.asarray(values))
    return [round(100 * number, 1) for number in numbers]


@torch.no_grad()
def by_kind(detector: Trained, category: Category, preprocess: Preprocess) -> dict[str, dict[str, list[float]]]:
    """Map -> defect -> AUROC of its maximum against the good pictures, in %, with its interval."""
    found: dict[str, list[torch.Tensor]] = {}
    for images in Pictures(category.test, preprocess):
        maps = {"score": detector.predict(images).map}
        if isinstance(detector, EfficientAD):
            maps |= detector.maps(detector.stages["extraction"](images))
        for name, heat in maps.items():
            found.setdefault(name, []).append(heat.flatten(1).amax(1).double())
    kinds = np.array([sample.defect for sample in category.test])
    chosen = {"all": kinds != ""} | {kind: np.isin(kinds, [kind, "good"]) for kind in synthetic.DEFECTS[category.name]}
    return {name: {kind: percent(category.labels[those], torch.cat(values).numpy()[those])
                   for kind, those in chosen.items()} for name, values in found.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretraining.states", description="Train a detector that ships with the project. An interrupted "
        "training goes on when the same command is given again.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, default=paths.states(), help="folder of the file (default: %(default)s)")
    args = parser.parse_args(arguments)
    return printed(lambda: train(args.name, args.out))


if __name__ == "__main__":
    sys.exit(main())

"""The folder that `thesis export` writes and a device reads, without torch and FAISS:

    bundle.json         format, preprocessing, stages, expected scores, what was added; per engine threshold, what is
                        promised of it, bands of the light (`drift`), and configuration
    float/, int8/       a file per stage, each takes what the one before gives; the last gives the map:
                          patchcore     network.onnx (picture -> feature maps), embedding.onnx (-> patches),
                                        bank.npy (M, D; -> distances)
                          padim         network.onnx, embedding.onnx, gaussians.npz (channels, mean and factor of every
                                        position; -> distances)
                          simplenet     network.onnx, embedding.onnx, discriminator.onnx (-> map)
                          efficientad   network.onnx (-> what teacher, student and autoencoder say), maps.onnx (-> map)
    pictures/           those with expected scores, see `copies`: small copies of ten pictures, on the `whole_way` two
                        JPEGs and a large one, and the `near` ones, whose scores lie next to the threshold
    SHA256SUMS          of every other file; `sha256sum -c SHA256SUMS` checks them, too

The score is the maximum of the map, PaDiM's of the map smoothed by `sigma` positions; EfficientAD's map then gets the
rim that its networks cut off, from the nearest values.
A difference of scores is told as a share of the score, or of the threshold where that is larger, both above the
engine's `floor`: 0 of a distance; other maps have no zero, so it is the median of those that decided the threshold.
Where not all of a picture counts (`Preprocess.masked`), a part gets as its last array which positions do, and hands it
on; the map is -inf elsewhere.
Letters: H, W sides of a picture, P = h*w patches, D embedding, M bank rows.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thesis_lib.core import files
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.nearest import check_finite, nearest
from thesis_lib.core.onnx_session import session
from thesis_lib.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, at_centres
from thesis_lib.core.tiles import stitched
from thesis_lib.device import gaussians

FORMAT = 5              # 1 had PatchCore only, and no stages; 2 no regions and tiles; 3 no bands of light; 4 no padim
READ = (2, 3, 4, 5)
ENGINES = {"float": "fast", "int8": "int8"}         # of a bundle -> as the library calls it
Arrays = list[np.ndarray]                           # what one part of a bundle gives the next
Stages = Mapping[str, Callable[[Any], Any]]
SCORES = ("max",)                                   # rules a device knows
FACTS, SUMS = "bundle.json", "SHA256SUMS"


class BundleError(ThesisError):
    """A bundle is damaged, of another format, or scores differently here; the message names the file."""


@dataclass(frozen=True)
class Detection:
    """What was found in one picture."""

    score: float
    map: np.ndarray             # (h, w), -inf where nothing counts
    values: Mapping[str, float] = field(default_factory=dict)       # for a `drift.Watch`, where the bundle has bands


@dataclass(frozen=True)
class Bundle:
    """A folder whose files are as they were written, and what its bundle.json says."""

    folder: Path
    facts: dict[str, Any]
    preprocess: Preprocess

    @classmethod
    def open(cls, folder: str | Path) -> "Bundle":
        """Read and verify every file. Raises BundleError naming the one that is wrong."""
        folder = Path(folder)
        if not (folder / FACTS).is_file():
            raise BundleError(f"{folder}: not a bundle, holds no {FACTS}; needs a folder that `thesis export` wrote")
        listed = _verify(folder)
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["format"] not in READ:
            raise BundleError(f"{folder / FACTS}: format {facts['format']}, this version reads "
                              f"{', '.join(map(str, READ))}; "
                              f"install thesis-lib {facts['library']}, which wrote it, or export it anew")
        parts = [f"{engine}/{part}" for engine in ENGINES for part in facts["stages"].values()]
        for name in (FACTS, *facts["pictures"], *parts):
            if name not in listed:
                raise BundleError(f"{folder / SUMS}: does not list {name}; copy the bundle again")
        constants = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        given = {key: facts["preprocess"].pop(key) for key in constants}
        if given != constants:
            raise BundleError(f"{folder / FACTS}: normalises with {given}, this version with {constants}")
        # Bundles of before `levels` was known were exported with all 65536 of them.
        return cls(folder, facts, Preprocess(**({"levels": "full"} | facts["preprocess"])))

    @property
    def pictures(self) -> list[Path]:
        return [self.folder / name for name in self.facts["pictures"]]

    @property
    def on_way(self) -> list[Path]:
        """The JPEGs and the large one of its pictures; of a bundle of before these were known none."""
        return [self.folder / name for name in self.facts.get("whole_way", ())]

    def threshold(self, engine: str) -> float:
        """Scores above it are anomalous."""
        return self.facts["engines"][engine]["threshold"]

    def confidence(self, engine: str, score: float) -> float | None:
        """1 / (1 + exp(-(score - threshold) / s)), s the interquartile range of the scores of good pictures.

        It orders pictures of different bundles on one scale, 0.5 is the threshold, and it is no probability. Where s is
        0 it is 0, 0.5 or 1. None: the bundle is of before s was known.
        """
        spread, above = self.facts["engines"][engine].get("spread"), score - self.threshold(engine)
        if spread is None:
            return None
        if not spread:
            return (math.copysign(1, above) + 1) / 2 if above else 0.5
        return (1 + math.tanh(above / spread / 2)) / 2          # the same number; exp overflows far below

    def bands(self, engine: str) -> dict[str, dict[str, Any]]:
        """What good pictures look like, see `drift`; of a bundle of before this was known none."""
        return self.facts["engines"][engine].get("bands", {})

    def floor(self, engine: str) -> float:
        """What the map shows where nothing is: below any threshold."""
        return self.facts["engines"][engine]["floor"]

    @property
    def sigma(self) -> float:
        """Positions of the Gaussian over the map whose maximum is the score; 0 for none, as all but PaDiM have it."""
        return self.facts.get("sigma", 0.0)

    def image(self, file: Path) -> np.ndarray:
        """(1, 3, H, W) float32, or (1, 4, H, W), see `Preprocess.array`."""
        return self.preprocess.array(file)[None]

    def stages(self, engine: str, threads: int) -> Stages:
        """Name -> callable, from what `image` gives to Detection; opens the networks anew."""
        parts = {stage: self._part(self.folder / engine / file, threads)
                 for stage, file in self.facts["stages"].items()}
        locate = parts.pop("score", None)           # EfficientAD makes its map in this stage, the others before
        grid, rim = self.facts["grid"], self.facts["rim"]

        def score(outputs: Arrays) -> Detection:
            heat, *inside = locate(outputs) if locate else outputs
            heat = heat.reshape(grid)
            for counted in inside:
                heat = np.where(counted, heat, -np.inf).astype(heat.dtype)
            check_finite("the anomaly map", heat[heat > -np.inf][None])
            decides = gaussians.smoothed(heat, self.sigma)
            return Detection(float(decides.max()), np.pad(heat, rim, mode="edge"))

        return parts | {"score": score}

    def _part(self, file: Path, threads: int) -> Callable[[Any], Arrays]:
        """From a picture, or the list of arrays that the part before gave, to a list of arrays."""
        if file.suffix == ".npz":
            distances = gaussians.read(file)

            def compare(given: Arrays) -> Arrays:
                (patches,), *inside = given                                                 # (P, D)
                return [distances(patches), *inside]

            return compare

        if file.suffix == ".npy":
            bank = np.load(file, allow_pickle=False)
            rooted = self.facts["distance"] == "l2"

            def search(given: Arrays) -> Arrays:
                (patches,), *inside = given                                                 # (P, D)
                counted = inside[0].ravel() if inside else slice(None)
                squared, _ = nearest(patches[counted], bank)                                # (n, 1)
                distances = np.full(len(patches), -np.inf, squared.dtype)
                distances[counted] = np.sqrt(squared[:, 0]) if rooted else squared[:, 0]
                return [distances, *inside]

            return search

        network = session(file.read_bytes(), threads)
        names, tiles = [entry.name for entry in network.get_inputs()], self.facts.get("tiles")

        def run(given: np.ndarray | Arrays) -> Arrays:
            arrays = given if isinstance(given, list) else self._opened(given)
            taken, handed_on = arrays[:len(names)], arrays[len(names):]
            if tiles and not isinstance(given, list):           # only the network sees a picture
                found = stitched(lambda tile: network.run(None, {names[0]: np.ascontiguousarray(tile)}), taken[0],
                                 tuple(tiles), self.facts["strides"], np.concatenate)
            else:
                found = network.run(None, dict(zip(names, taken, strict=True)))
            return found + handed_on

        return run

    def _opened(self, image: np.ndarray) -> Arrays:
        """The colours (1, 3, H, W); and where not all of them count, which positions (h, w) of the map do."""
        if not self.preprocess.masked:
            return [image]
        inside = at_centres(image[0, 3], tuple(self.facts["grid"])) > 0
        if not inside.any():
            raise ThesisError("no position of its map lies inside; needs a larger picture")
        return [image[:, :3], inside]

    def parity(self, engine: str, threads: int) -> "Parity":
        """The scores here of the pictures that it carries, beside those at export."""
        expected, threshold = np.array(self.facts["engines"][engine]["scores"]), self.threshold(engine)
        stages = self.stages(engine, threads)
        scores = np.array([predict(stages, self.image(file)).score for file in self.pictures])
        # A share of how far a score, or the threshold where that is larger, lies above what the map shows of nothing.
        shares = np.abs(scores - expected) / (np.maximum(expected, threshold) - self.floor(engine))
        names, way = self.facts["pictures"], self.on_way
        on_way = np.array([file in way for file in self.pictures])
        flipped = ((scores > threshold) != (expected > threshold)).nonzero()[0]
        return Parity(float(shares[~on_way].max()), float(shares[on_way].max()) if way else None,
                      tuple(names[number] for number in flipped), len(names), len(way))


@dataclass(frozen=True)
class Parity:
    """How the scores of a bundle's pictures differ from those of the same engine at export, as shares."""

    difference: float           # largest, of pictures that are small already: of the network and what follows it
    whole_way: float | None     # of JPEGs and a large picture: of decoder and resizer, too; None: it has none
    flipped: tuple[str, ...]    # pictures with another verdict
    pictures: int               # all of them
    on_way: int                 # of these the JPEGs and the large one


def predict(stages: Stages, image: np.ndarray) -> Detection:
    """Picture (1, 3, H, W) through all stages."""
    x: Any = image
    for stage in stages.values():
        x = stage(x)
    return x


def sums(folder: Path) -> str:
    """Text of SHA256SUMS: every other file below the folder, as the program sha256sum writes and reads it."""
    listed = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS)
    return "".join(f"{files.digest_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in listed)


def _verify(folder: Path) -> set[str]:
    """Names of the files that are as they were written; BundleError at the first that is not."""
    try:
        *lines, _ = (folder / SUMS).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder / SUMS}: missing or damaged ({error}); copy the bundle again") from error
    names = set()
    for line in lines:
        digest, _, name = line.partition("  ")
        if not (folder / name).is_file():
            raise BundleError(f"{folder / (name or SUMS)}: missing, {SUMS} lists it; copy the bundle again")
        if files.digest_of(folder / name) != digest:
            raise BundleError(f"{folder / name}: not as exported, its checksum differs from {SUMS}; copy it again")
        names.add(name)
    return names


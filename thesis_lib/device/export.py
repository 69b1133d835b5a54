"""Fit on the desktop and write what a device needs into one folder; `bundle` says what is in it.

A detector, a category and its preprocessing go in, a folder comes out. Each stage becomes an ONNX model or an array,
in float32 and in int8, with a threshold of its own and the scores to expect of some pictures.
"""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike

from thesis_lib.core import stamp
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, Sample
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures, evenly, load_image
from thesis_lib.device import bundle, copies, drift
from thesis_lib.device.run import check_scores
from thesis_lib.evaluation import additions, crossfit, scores
from thesis_lib.evaluation.thresholds import Promise
from thesis_lib.methods.base import Detector, Prediction
from thesis_lib.methods.efficientad import EfficientAD, Outputs
from thesis_lib.methods.padim import PaDiM
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.methods.simplenet import SimpleNet
from thesis_lib.networks import backbones, engines, quantize
from thesis_lib.networks.maps import Extracted, Stored
from thesis_lib.networks.pdn import RIM
from thesis_lib.patches.embedding import OUTSIDE, Patches

PICTURES = 10           # small copies with expected scores
CANDIDATES = 50         # training pictures to take those next to a threshold from, where there are no test pictures
KNOWN = PatchCore, PaDiM, SimpleNet, EfficientAD    # methods that have a bundle
WITHOUT = {             # why the others have none
    "spade": "the feature maps of all training pictures would have to be on the device, about 2 MB each",
    "uninformed_students": "by default twelve networks run over every picture, and none of them in ONNX Runtime"}
Part = tuple[str, bytes | np.ndarray | dict[str, np.ndarray]]       # name of a file and its content


class ExportError(ThesisError):
    """This configuration does not go into a bundle; the message says which parameter, and what would."""


@dataclass(frozen=True)
class Made:
    """What goes into a bundle for one engine."""

    whole: Detector                             # its scores are those to expect
    nominal: np.ndarray                         # (n,) scores that decide the threshold, as `crossfit.plan` says
    floor: float                                # what the map shows where nothing is
    parts: Mapping[str, Part]                   # by stage
    grid: tuple[int, int]                       # (h, w) of the map without its rim
    rim: int = 0                                # positions around it, with the nearest values
    otherwise: np.ndarray | None = None         # (n,) the same scores from the other order of folds
    medians: ArrayLike = ()                     # (n,) of the maps that these scores belong to
    before: np.ndarray | None = None            # (n,) the scores without what was added
    without: Detector | None = None             # which has learned from none of what was added
    listed: Sequence[additions.Added] = ()      # what it says of that


def export(detector: Detector, category: Category, preprocess: Preprocess, folder: str | Path, *, batch_size: int = 8,
           false_alarms: float = 0.05, recall: float | None = None, order: str = "blocks",
           add: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Write the bundle of a PatchCore, PaDiM, SimpleNet or EfficientAD, float32 and int8; bundle.json is returned.

    Threshold: that of `thresholds.Promise`, from scores of nominal pictures that were not learned from, as
    `crossfit.plan` says. false_alarms, recall and order are those of `crossfit.promise`. PatchCore learns once for
    each fold and then from all pictures, PaDiM from all alone, on each engine. SimpleNet keeps back a fifth of
    them and learns once on each engine, EfficientAD once, in torch, and has held out pictures itself. Each engine has a
    threshold of its own.
    Expected scores are those of the library: torch, or its int8 network, and the search the detector names.
    add: pictures of good parts that are learned, too, and have no part in threshold and bands (`additions`).
    Raises ExportError for what a device cannot do, and BundleError where the finished bundle scores differently.
    """
    folder = Path(folder)
    if type(detector) not in KNOWN:
        raise ExportError(f"{detector.name}: has no bundle, as {WITHOUT[detector.name]}; needs "
                          f"{', '.join(method.name for method in KNOWN)}")
    preprocess = preprocess.decided(category.train)
    planned = crossfit.plan(detector, category.train, order)
    crossfit.check_asked(category, planned, detector, false_alarms, recall)
    make = _check(detector, category, preprocess, folder, planned)
    added = additions.check(detector, category, [Path(picture) for picture in add], preprocess) if add else ()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        work = Path(temporary) / "bundle"
        work.mkdir()
        chosen: Sequence[Sample] = category.subset(test=PICTURES).test or evenly(category.train, PICTURES)
        names = copies.small(chosen, preprocess, work)
        on_way = copies.whole_way(chosen, preprocess, work)
        example = load_image(work / names[0], preprocess)[None]
        facts: dict[str, Any] = {
            "format": bundle.FORMAT, "library": stamp.stamp()["library"],
            "preprocess": asdict(preprocess) | {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
            "score": "max", "pictures": [*names, *on_way], "whole_way": on_way, "added": [], "engines": {}}
        taken = sorted(category.train, key=crossfit.natural)
        light = [drift.of_picture(preprocess.array(sample.path)) for sample in taken]
        if isinstance(detector, PatchCore):
            facts["distance"] = detector.distance
        if isinstance(detector, PaDiM):
            facts["sigma"] = detector.sigma
        if tiles := getattr(detector, "tiles", None):
            _, strides = backbones.shapes(detector.backbone, detector.levels)
            facts |= {"tiles": tiles, "strides": [strides[level] for level in detector.levels]}
        learned = replace(category, train=(*category.train, *added))
        # Good ones first, as `tested` gives their scores.
        tried = sorted(category.test, key=lambda sample: sample.label) or evenly(category.train, CANDIDATES)
        of_medians = [category.train[number] for number in planned.held or range(len(category.train))]
        in_order = sorted(range(len(of_medians)), key=lambda number: crossfit.natural(of_medians[number]))
        wholes: dict[str, Detector] = {}
        scored: dict[str, np.ndarray] = {}
        for name, made in make(detector, category.train, preprocess, batch_size, example, planned, added):
            (work / name).mkdir()
            subject = scores.subject(_as_measured(detector, bundle.ENGINES[name]), learned, preprocess,
                                     seed=detector.seed)
            good, defective = crossfit.tested(made.whole, category, preprocess, batch_size=1)   # as a device sees them
            wholes[name] = made.whole
            scored[name] = np.concatenate([good, defective]) if category.test else crossfit.scores_of(
                map(made.whole.predict, Pictures(tried, preprocess, batch_size=1)))
            promised = Promise.of(made.nominal, false_alarms=false_alarms, recall=recall, defective=defective,
                                  good=good, made=planned.made)
            facts["engines"][name] = {
                **_promised(promised, made, order),
                "bands": drift.bands({value: [one[value] for one in light] for value in light[0]}
                                     | {drift.MAP: np.asarray(made.medians)[in_order]}),
                "scores": _scores(made.whole, facts["pictures"], work, preprocess),
                "subject": subject | {"engine": {"reduce_range": True} if name == "int8" else None}}
            if made.without is not None and made.before is not None:
                good, defective = crossfit.tested(made.without, category, preprocess, batch_size=1)
                earlier = Promise.of(made.before, false_alarms=false_alarms, recall=recall, defective=defective,
                                     good=good, made=planned.made)
                facts["added"] = [{"name": one.path.name, "sha256": one.sha256, "score": one.score,
                                   "region": one.region} for one in made.listed]
                facts["without_added"] = _found(earlier)
            for file, content in made.parts.values():
                if isinstance(content, bytes):
                    (work / name / file).write_bytes(content)
                elif isinstance(content, dict):
                    np.savez(work / name / file, **content)     # type: ignore[arg-type]   # of allow_pickle
                else:
                    np.save(work / name / file, content, allow_pickle=False)
            facts |= {"stages": {stage: file for stage, (file, _) in made.parts.items()},
                      "grid": made.grid, "rim": made.rim,
                      "threshold": {"rule": promised.rule, "wanted": promised.wanted, "n": promised.n,
                                    "of": len(category.train), "scores": planned.made, "order": order}}
        near = copies.near(_near(scored, facts, tried), preprocess, work)
        for name, whole in wholes.items():
            facts["engines"][name]["scores"] += _scores(whole, near, work, preprocess)
        facts |= {"pictures": [*facts["pictures"], *near], "near": near}
        (work / bundle.FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (work / bundle.SUMS).write_text(bundle.sums(work), encoding="utf-8")
        for name in bundle.ENGINES:
            check_scores(bundle.Bundle.open(work), name, torch.get_num_threads())
        work.rename(folder)
    return facts


def _check(detector: Detector, category: Category, preprocess: Preprocess, folder: Path,
           planned: crossfit.Plan) -> Callable[..., Iterator[tuple[str, Made]]]:
    """What makes the parts of this method; what can be refused is refused before a picture is read."""
    rule = getattr(detector, "score", "max")
    if rule not in bundle.SCORES:
        raise ExportError(f"score={rule}: a device knows {', '.join(bundle.SCORES)} only")
    if folder.exists():
        raise ExportError(f"{folder}: is there already; remove it, or write to another folder")
    engines.check_packages("int8")
    crossfit.check(detector, category.train, preprocess, planned)
    return _networks if isinstance(detector, EfficientAD) else _patches


def _as_measured(detector: Detector, engine: str) -> Detector:
    """With the parameters of the rows that a device measures."""
    if isinstance(detector, PatchCore):
        return replace(detector, engine=engine, search="numpy")
    return replace(detector, engine=engine)


def _promised(promised: Promise, made: Made, order: str) -> dict[str, Any]:
    """Of one engine: above the threshold a score is anomalous; what is known of it; and the floor of the map."""
    if not promised.threshold > made.floor:
        raise ExportError(f"{promised.rule}={promised.wanted:g}: gives the threshold {promised.threshold:.4g}, which "
                          f"is not above the median of the maps, {made.floor:.4g}; needs fewer false alarms or a lower "
                          "recall")
    low, high = promised.interval
    lines = list(promised.lines)
    if made.otherwise is not None:
        other = np.sort(made.otherwise)[promised.rank - 1]
        lines.append(f"folds of {crossfit.ORDERS[crossfit.other(order)]} would put the threshold at {other:.4f}; those "
                     "drawn at random put it too low where neighbouring pictures resemble each other")
    return _found(promised) | {
        "floor": made.floor, "spread": promised.spread, "rank": promised.rank, "promise": lines,
        "false_alarms": {"expected": promised.expected, "low": low, "high": high, "at_most": promised.at_most}}


def _found(promised: Promise) -> dict[str, Any]:
    """The threshold and what lies above it."""
    return {"threshold": promised.threshold,
            "defective_found": promised.found and [promised.found.count, promised.found.of],
            "good_flagged": promised.flagged and [promised.flagged.count, promised.flagged.of]}


def _patches(detector: PatchCore | PaDiM | SimpleNet, samples: Sequence[Sample], preprocess: Preprocess,
             batch_size: int, example: torch.Tensor, planned: crossfit.Plan,
             added: Sequence[Sample]) -> Iterator[tuple[str, Made]]:
    """Network and embedding, then a bank, Gaussians or a discriminator; for each engine the network sees the pictures
    once.
    """
    eager = cast(backbones.Backbone, replace(detector, engine="eager").network(detector.levels, ()))
    example = example[:, :3]                            # the shapes of what is converted: whatever counts of it
    _check_embedding(detector.embedding, eager(example))
    model = engines.export(eager)
    network: backbones.Backbone | engines.Exported = eager
    for name in bundle.ENGINES:
        # 1. The network of this engine, float first.
        if name == "int8":
            # Seven bits, whatever this processor has: the bundle may be read by one that needs them.
            calibration = Pictures(samples, preprocess, batch_size).evenly(detector.calibration)
            model = quantize.qdq(model, calibration, reduce_range=True)
            network = engines.Exported(eager.name, eager.layers, eager.weights, model).tiled(detector.tiles)
            detector = replace(detector, engine="int8")
        # 2. Scores of pictures that were not learned from, for the threshold, and the detector itself; float, too,
        # without what was added.
        kept, new = (Stored(Extracted(network, Pictures(chosen, preprocess, batch_size))) if chosen else None
                     for chosen in (samples, added))
        assert kept is not None
        whole, held, floor = _learned(detector, network, kept, new, planned)
        made = Made(whole, held[:, 0], floor, {}, (0, 0), medians=held[:, 1])
        if name == "float" and planned.folds:
            other = crossfit.plan(detector, samples, crossfit.other(planned.order))
            made = replace(made, otherwise=crossfit.cross_fitted(detector, network, kept, other.folds, new))
        if name == "float" and new is not None:
            without, before, _ = _learned(detector, network, kept, None, planned)
            made = replace(made, without=without, before=before[:, 0], listed=additions.listing(without, new))
        # 3. The stages of the whole one as files. `_convert` runs them at once, on the example's maps and patches.
        maps = network(example)
        patches: Patches = whole.stages["embedding"](maps)
        embedding = _convert(_embedding_of(whole), maps, f"embedding={detector.embedding}")
        search: Part
        if isinstance(whole, PatchCore):
            search = "bank.npy", whole.bank_.numpy()
        elif isinstance(whole, PaDiM):
            search = "gaussians.npz", {key: value.numpy() for key, value in whole.state().items() if key != "grid"}
        else:
            discriminator = _convert(_discriminator_of(whole, patches.grid), {"patches": patches.vectors},
                                     "discriminator")
            search = "discriminator.onnx", discriminator
        parts: dict[str, Part] = {"extraction": ("network.onnx", model), "embedding": ("embedding.onnx", embedding),
                                  "search": search}
        yield name, replace(made, parts=parts, grid=patches.grid)


def _learned(detector: Detector, network: backbones.Backbone | engines.Exported, kept: Stored, new: Stored | None,
             planned: crossfit.Plan) -> tuple[Detector, np.ndarray, float]:
    """The detector that has learned from its share of the kept maps and from the new ones; score and median of the map
    (n, 2) of pictures that were not learned from; and what the map shows where nothing is.
    """
    whole = crossfit.fitted(detector, network, crossfit.joined(crossfit.Part(kept, planned.learned), new))
    if planned.folds:
        return whole, crossfit.cross_fitted(detector, network, kept, planned.folds, new,
                                            crossfit.scores_and_medians), 0.0
    predicted = list(crossfit.predictions(whole, crossfit.Part(kept, planned.held)))
    return whole, crossfit.scores_and_medians(predicted), _median(predicted)


def _embedding_of(detector: Detector) -> Callable[..., torch.Tensor]:
    """The embedding as a function of one argument per level -> vectors (1, P, D)."""
    embed, levels = detector.stages["embedding"], detector.levels

    def embedding(*maps: torch.Tensor) -> torch.Tensor:
        return embed(dict(zip(levels, maps, strict=True))).vectors

    return embedding


def _discriminator_of(detector: Detector, grid: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The search of a SimpleNet as a function of vectors (1, P, D) alone -> map (1, h, w)."""
    search = detector.stages["search"]

    def discriminator(vectors: torch.Tensor) -> torch.Tensor:
        return search(Patches(vectors, grid))

    return discriminator


def _networks(detector: EfficientAD, samples: Sequence[Sample], preprocess: Preprocess, batch_size: int,
              example: torch.Tensor, planned: crossfit.Plan, added: Sequence[Sample]) -> Iterator[tuple[str, Made]]:
    """Three networks in one graph, and one that makes their map; learned once. `additions.check` lets none be added."""
    eager = replace(detector, engine="eager")
    collected = eager.collect(Pictures(samples, preprocess, batch_size))
    eager.learn(collected)
    held = [samples[number] for number in planned.held]
    for name, engine in bundle.ENGINES.items():
        exported = eager.on(engine, collected.images, seven_bits=True)
        assert exported.graph_ is not None                  # neither engine is eager
        outputs: Outputs = exported.stages["extraction"](example)
        maps = _convert(_combined_of(exported), outputs._asdict(), "maps")
        parts: dict[str, Part] = {"extraction": ("network.onnx", exported.graph_.model), "score": ("maps.onnx", maps)}
        height, width = outputs.teacher.shape[-2:]
        predicted = [exported.predict(image) for image in Pictures(held, preprocess, batch_size=1)]
        scored, medians = crossfit.scores_and_medians(predicted).T
        yield name, Made(eager if name == "float" else exported, scored, _median(predicted, RIM), parts,
                         (height, width), RIM, medians=medians)


def _combined_of(detector: EfficientAD) -> Callable[..., torch.Tensor]:
    """The combined map (1, h, w) as a function of what teacher, student and autoencoder say."""
    def combined(teacher: torch.Tensor, student: torch.Tensor, autoencoder: torch.Tensor) -> torch.Tensor:
        return detector.maps(Outputs(teacher, student, autoencoder))["combined"]

    return combined


def _check_embedding(name: str, maps: dict[int, torch.Tensor]) -> None:
    """An adaptive pooling converts to ONNX only where all its windows are equal, that of original_d never."""
    sides = list(dict.fromkeys(side for x in maps.values() for side in x.shape[-2:]))
    uneven = name.startswith("adaptive_") and any(side % int(name.removeprefix("adaptive_")) for side in sides)
    if uneven or name.startswith("original_"):
        raise ExportError(f"embedding={name}: has windows that ONNX lacks; needs avg_, max_, avgmax_, identity, or "
                          f"adaptive_n with an n that divides {', '.join(map(str, sides))}")


def _near(scored: Mapping[str, np.ndarray], facts: Mapping[str, Any], samples: Sequence[Sample]) -> list[Sample]:
    """Those of these pictures that are next to the threshold of an engine, by the scores (n,) of each engine."""
    numbers: set[int] = set()
    for name, scores_here in scored.items():
        one = facts["engines"][name]
        numbers |= set(copies.nearest(scores_here, one["threshold"], one["floor"]))
    return [samples[number] for number in sorted(numbers)]


def _scores(whole: Detector, names: Sequence[str], work: Path, preprocess: Preprocess) -> list[float]:
    """Those to expect of the pictures that a bundle carries."""
    return [whole.predict(load_image(work / name, preprocess)[None]).score.double().item() for name in names]


def _median(predicted: Sequence[Prediction], rim: int = 0) -> float:
    """Of the maps without their rim: what a map that has no zero shows where nothing is."""
    maps = torch.cat([prediction.map for prediction in predicted])
    height, width = maps.shape[-2:]
    inner = maps[:, rim:height - rim, rim:width - rim]
    return inner[inner > OUTSIDE].median().item()


class _Stage(torch.nn.Module):
    """A function of tensors as the module that torch's exporter wants."""

    def __init__(self, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        return self.call(*arrays)


def _convert(call: Callable[..., torch.Tensor], example: Mapping[Any, torch.Tensor], what: str) -> bytes:
    """A stage as an ONNX model, for one picture of the example's sides; inputs are named as the example is."""
    try:
        with warnings.catch_warnings():         # sides are constants in it, as they are in a bundle
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            return engines.convert(_Stage(call), tuple(example.values()), what, outputs=["out"],
                                   inputs=[name if isinstance(name, str) else f"level{name}" for name in example])
    except engines.EngineError as error:
        raise ExportError(f"{what}: does not convert ({error})") from error

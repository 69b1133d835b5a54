"""Fit on the desktop and write what a device needs into one folder; `bundle` says what is in it.

A detector, a category and its preprocessing go in, a folder comes out. Each stage becomes an ONNX model or an array,
in float32 and in int8, with a threshold of its own and the scores to expect of ten pictures.
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

from thesis_lib.core import stamp
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, Sample, read_rgb
from thesis_lib.data.folders import Category
from thesis_lib.data.pictures import Pictures, evenly, load_image
from thesis_lib.device import bundle
from thesis_lib.device.run import check_scores
from thesis_lib.evaluation import scores
from thesis_lib.methods.base import Detector, Prediction
from thesis_lib.methods.efficientad import EfficientAD, Outputs
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.methods.simplenet import SimpleNet
from thesis_lib.networks import backbones, engines, quantize
from thesis_lib.networks.maps import Extracted
from thesis_lib.networks.pdn import RIM
from thesis_lib.patches.embedding import OUTSIDE, Patches

HELD_OUT = 5            # every fifth training picture decides the threshold, where the method holds out none itself
PICTURES = 10           # with expected scores
# The pictures whose scores decide the threshold, as bundle.json says it.
RULES: dict[type[Detector], str] = {
    PatchCore: "every fifth, by a bank of the others", SimpleNet: "every fifth, by a training on the others",
    EfficientAD: "those held out of the training, whose maps also set its quantiles"}
Part = tuple[str, bytes | np.ndarray]               # name of a file and its content


class ExportError(ThesisError):
    """This configuration does not go into a bundle; the message says which parameter, and what would."""


@dataclass(frozen=True)
class Made:
    """What goes into a bundle for one engine."""

    whole: Detector                             # its scores are those to expect
    held: tuple[Prediction, ...]                # nominal pictures that have not been learned
    parts: Mapping[str, Part]                   # by stage
    grid: tuple[int, int]                       # (h, w) of the map without its rim
    rim: int = 0                                # positions around it, with the nearest values


def export(detector: Detector, category: Category, preprocess: Preprocess, folder: str | Path, *, batch_size: int = 8,
           quantile: float = 0.95) -> dict[str, Any]:
    """Write the bundle of a fitted PatchCore, SimpleNet or EfficientAD, float32 and int8; bundle.json is returned.

    Threshold: this quantile of the scores of nominal pictures that were not learned from; no test picture has a part in
    it. PatchCore and SimpleNet learn from four fifths of the training pictures to score the other fifth, as what was
    learned scores too low, and from all of them for the bundle; both on each engine. EfficientAD learns once, in torch,
    and has held out pictures itself. Each engine has a threshold of its own.
    Expected scores are those of the library: torch, or its int8 network, and the search the detector names.
    Raises ExportError for what a device cannot do, and BundleError where the finished bundle scores differently.
    """
    folder = Path(folder)
    preprocess = preprocess.decided(category.train)
    make = _check(detector, category, preprocess, folder, quantile)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        work = Path(temporary) / "bundle"
        work.mkdir()
        names = _copies(category, preprocess, work)
        images = [load_image(work / name, preprocess)[None] for name in names]
        facts: dict[str, Any] = {
            "format": bundle.FORMAT, "library": stamp.stamp()["library"],
            "preprocess": asdict(preprocess) | {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
            "score": "max", "pictures": names, "engines": {}}
        if isinstance(detector, PatchCore):
            facts["distance"] = detector.distance
        if tiles := getattr(detector, "tiles", None):
            _, strides = backbones.shapes(detector.backbone, detector.levels)
            facts |= {"tiles": tiles, "strides": [strides[level] for level in detector.levels]}
        for name, made in make(detector, category.train, preprocess, batch_size, images[0]):
            (work / name).mkdir()
            subject = scores.subject(_as_measured(detector, bundle.ENGINES[name]), category, preprocess,
                                     seed=detector.seed)
            facts["engines"][name] = {
                **_threshold(detector, made, quantile),
                "scores": [made.whole.predict(image).score.double().item() for image in images],
                "subject": subject | {"engine": {"reduce_range": True} if name == "int8" else None}}
            for file, content in made.parts.values():
                if isinstance(content, bytes):
                    (work / name / file).write_bytes(content)
                else:
                    np.save(work / name / file, content, allow_pickle=False)
            facts |= {"stages": {stage: file for stage, (file, _) in made.parts.items()},
                      "grid": made.grid, "rim": made.rim,
                      "threshold": {"rule": f"quantile of the scores of training pictures, {RULES[type(detector)]}",
                                    "quantile": quantile, "held_out": len(made.held), "of": len(category.train)}}
        (work / bundle.FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (work / bundle.SUMS).write_text(bundle.sums(work), encoding="utf-8")
        for name in bundle.ENGINES:
            check_scores(bundle.Bundle.open(work), name, torch.get_num_threads())
        work.rename(folder)
    return facts


def _check(detector: Detector, category: Category, preprocess: Preprocess, folder: Path,
           quantile: float) -> Callable[..., Iterator[tuple[str, Made]]]:
    """What makes the parts of this method; what can be refused is refused before a picture is read."""
    if type(detector) not in RULES:
        raise ExportError(f"{detector.name}: has no bundle yet, only {', '.join(method.name for method in RULES)} have")
    rule = getattr(detector, "score", "max")
    if rule not in bundle.SCORES:
        raise ExportError(f"score={rule}: a device knows {', '.join(bundle.SCORES)} only")
    if not 0 < quantile <= 1:
        raise ThesisError(f"quantile={quantile}: needs more than 0, at most 1")
    if folder.exists():
        raise ExportError(f"{folder}: is there already; remove it, or write to another folder")
    engines.check_packages("int8")
    learned_from = count = len(category.train)
    if not isinstance(detector, EfficientAD):       # which holds out pictures itself
        if count < HELD_OUT:
            raise ExportError(f"{count} training pictures: needs at least {HELD_OUT}, since one in {HELD_OUT} is held "
                              "out for the threshold")
        learned_from -= count // HELD_OUT
    detector.check_training(learned_from, preprocess)
    return _networks if isinstance(detector, EfficientAD) else _patches


def _as_measured(detector: Detector, engine: str) -> Detector:
    """With the parameters of the rows that a device measures."""
    if isinstance(detector, PatchCore):
        return replace(detector, engine=engine, search="numpy")
    return replace(detector, engine=engine)


def _threshold(detector: Detector, made: Made, quantile: float) -> dict[str, float]:
    """Above it a score is anomalous; and the floor, what the map shows where nothing is."""
    threshold = float(np.quantile([prediction.score.double().item() for prediction in made.held], quantile))
    h, w = made.grid
    maps = torch.cat([prediction.map[:, made.rim:made.rim + h, made.rim:made.rim + w] for prediction in made.held])
    floor = 0.0 if isinstance(detector, PatchCore) else maps[maps > OUTSIDE].median().item()
    if not threshold > floor:
        raise ExportError(f"quantile={quantile}: gives the threshold {threshold:.4g}, which is not above the median of "
                          f"the maps, {floor:.4g}; needs a higher one")
    return {"threshold": threshold, "floor": floor}


def _patches(detector: PatchCore | SimpleNet, samples: Sequence[Sample], preprocess: Preprocess, batch_size: int,
             example: torch.Tensor) -> Iterator[tuple[str, Made]]:
    """Network and embedding, then a bank or a discriminator; learned twice for each engine."""
    held = samples[HELD_OUT - 1::HELD_OUT]
    rest = [sample for sample in samples if sample not in held]
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
        # 2. Learned from four fifths, for the threshold, and from all.
        part = _fitted(detector, network, Pictures(rest, preprocess, batch_size))
        whole = _fitted(detector, network, Pictures(samples, preprocess, batch_size))
        # 3. The stages of the whole one as files. `_convert` runs them at once, on the example's maps and patches.
        maps = network(example)
        patches: Patches = whole.stages["embedding"](maps)
        embedding = _convert(_embedding_of(whole), maps, f"embedding={detector.embedding}")
        search: Part
        if isinstance(whole, PatchCore):
            search = "bank.npy", whole.bank_.numpy()
        else:
            discriminator = _convert(_discriminator_of(whole, patches.grid), {"patches": patches.vectors},
                                     "discriminator")
            search = "discriminator.onnx", discriminator
        parts: dict[str, Part] = {"extraction": ("network.onnx", model), "embedding": ("embedding.onnx", embedding),
                                  "search": search}
        yield name, Made(whole, _predictions(part, held, preprocess), parts, patches.grid)


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
              example: torch.Tensor) -> Iterator[tuple[str, Made]]:
    """Three networks in one graph, and one that makes their map; learned once."""
    eager = replace(detector, engine="eager")
    collected = eager.collect(Pictures(samples, preprocess, batch_size))
    eager.learn(collected)
    held = [samples[index] for index in eager.split(len(samples))[1]]
    for name, engine in bundle.ENGINES.items():
        exported = eager.on(engine, collected, seven_bits=True)
        assert exported.graph_ is not None                  # neither engine is eager
        outputs: Outputs = exported.stages["extraction"](example)
        maps = _convert(_combined_of(exported), outputs._asdict(), "maps")
        parts: dict[str, Part] = {"extraction": ("network.onnx", exported.graph_.model), "score": ("maps.onnx", maps)}
        height, width = outputs.teacher.shape[-2:]
        yield name, Made(eager if name == "float" else exported, _predictions(exported, held, preprocess), parts,
                         (height, width), RIM)


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


def _copies(category: Category, preprocess: Preprocess, work: Path) -> list[str]:
    """Copies of ten test pictures, or of training ones where there are none, no larger than they are resized to; whole
    where a region of interest is for their size.
    """
    samples: Sequence[Sample] = category.subset(test=PICTURES).test or evenly(category.train, PICTURES)
    (work / "pictures").mkdir()
    names = []
    for number, sample in enumerate(samples):
        picture = read_rgb(sample.path, preprocess.levels)
        if preprocess.roi is None:              # which is in pixels of the original
            picture.thumbnail(preprocess.resized)
        names.append(f"pictures/{number:02d}_{sample.defect}.png")
        picture.save(work / names[-1])
    return names


def _fitted(detector: Detector, network: backbones.Backbone | engines.Exported, pictures: Pictures) -> Detector:
    """A copy of the detector that has learned from these pictures, by this network."""
    fitted = replace(detector)
    fitted.backbone_ = network
    return fitted.learn(fitted.gather_nominal(Extracted(network, pictures)))


def _predictions(detector: Detector, samples: Sequence[Sample], preprocess: Preprocess) -> tuple[Prediction, ...]:
    """One picture at a time, as a device sees them."""
    return tuple(detector.predict(image) for image in Pictures(samples, preprocess, batch_size=1))


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

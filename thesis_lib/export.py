"""Fit on the desktop and write what a device needs into one folder; `bundle` says what is in it."""

import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from thesis_lib import bundle, device, engines, evaluation, quantize, stamp
from thesis_lib.data import Category, Pictures, Preprocess, Sample, evenly, read_rgb
from thesis_lib.features import Extracted
from thesis_lib.methods import Detector, PatchCore
from thesis_lib.preprocess import IMAGENET_MEAN, IMAGENET_STD

HELD_OUT = 5            # every fifth training picture decides the threshold
PICTURES = 10           # with expected scores


class ExportError(ValueError):
    """This configuration does not go into a bundle; the message says which parameter, and what would."""


def export(detector: Detector, category: Category, preprocess: Preprocess, folder: str | Path, *, batch_size: int = 8,
           quantile: float = 0.95) -> dict:
    """Write the bundle of a PatchCore fitted on all training pictures, float32 and int8; bundle.json is returned.

    Threshold: every fifth training picture is scored against a bank of the other four fifths, and this quantile of
    those scores is taken; no test picture has a part in it. Each engine has a bank and a threshold of its own.
    Expected scores are those of the library: torch, or its int8 network, and the search the detector names.
    Raises ExportError for what a device cannot do, and BundleError where the finished bundle scores differently.
    """
    folder = Path(folder)
    _check(detector, category, folder, quantile)
    train, held = list(category.train), list(category.train[HELD_OUT - 1::HELD_OUT])
    rest = [sample for sample in train if sample not in held]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        work = Path(temporary) / "bundle"
        work.mkdir()
        names = _copies(category, preprocess, work)
        images = [preprocess.image(work / name)[None] for name in names]
        network = replace(detector, engine="eager").network(detector.levels, ())
        _check_embedding(detector.embedding, network(images[0]))
        model = engines.export(network)
        facts = {"format": bundle.FORMAT, "library": stamp.stamp()["library"],
                 "preprocess": asdict(preprocess) | {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
                 "score": detector.score, "distance": detector.distance, "pictures": names,
                 "threshold": {"rule": "quantile of the scores of held out training pictures", "quantile": quantile,
                               "held_out": len(held), "of": len(train)}, "engines": {}}
        for name, engine in bundle.ENGINES.items():
            (work / name).mkdir()
            if engine == "int8":
                calibration = Pictures(train, preprocess, batch_size).evenly(detector.calibration)
                # Seven bits, whatever this processor has: the bundle may be read by one that needs them.
                model = quantize.qdq(model, calibration, reduce_range=True)
                network = engines.Exported(network.name, network.layers, network.weights, model)
            part, whole = (_fitted(detector, network, Pictures(samples, preprocess, batch_size))
                           for samples in (rest, train))
            patches = whole.stages["embedding"](network(images[0]))
            facts["grid"] = patches.grid
            subject = evaluation.subject(replace(detector, engine=engine, search="numpy"), category, preprocess,
                                         seed=detector.seed)
            facts["engines"][name] = {
                "threshold": float(np.quantile(_scores(part, Pictures(held, preprocess, batch_size)), quantile)),
                "scores": _scores(whole, images).tolist(),
                "subject": subject | {"engine": {"reduce_range": True} if engine == "int8" else None}}
            for file, content in zip(bundle.PARTS[:2], (model, _embedding(whole, network(images[0]))), strict=True):
                (work / name / file).write_bytes(content)
            np.save(work / name / bundle.PARTS[2], whole.bank_.numpy(), allow_pickle=False)
        (work / bundle.FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (work / bundle.SUMS).write_text(bundle.sums(work), encoding="utf-8")
        for name in bundle.ENGINES:
            device.check(bundle.Bundle.open(work), name, torch.get_num_threads())
        work.rename(folder)
    return facts


def _check(detector: Detector, category: Category, folder: Path, quantile: float) -> None:
    if not isinstance(detector, PatchCore):
        raise ExportError(f"{detector.name}: has no bundle yet, only patchcore has")
    if detector.score not in bundle.SCORES:
        raise ExportError(f"score={detector.score}: a device knows {', '.join(bundle.SCORES)} only")
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile={quantile}: needs more than 0, at most 1")
    if folder.exists():
        raise ExportError(f"{folder}: is there already; remove it, or write to another folder")
    if len(category.train) < HELD_OUT:
        raise ExportError(f"{len(category.train)} training pictures: needs at least {HELD_OUT}, since one in "
                          f"{HELD_OUT} is held out for the threshold")


def _check_embedding(name: str, maps: dict[int, torch.Tensor]) -> None:
    """An adaptive pooling converts to ONNX only where all its windows are equal, that of original_d never."""
    sides = list(dict.fromkeys(side for x in maps.values() for side in x.shape[-2:]))
    uneven = name.startswith("adaptive_") and any(side % int(name.removeprefix("adaptive_")) for side in sides)
    if uneven or name.startswith("original_"):
        raise ExportError(f"embedding={name}: has windows that ONNX lacks; needs avg_, max_, avgmax_, identity, or "
                          f"adaptive_n with an n that divides {', '.join(map(str, sides))}")


def _copies(category: Category, preprocess: Preprocess, work: Path) -> list[str]:
    """Copies of ten test pictures, or of training ones where there are none, no larger than they are resized to."""
    samples: Sequence[Sample] = category.subset(test=PICTURES).test or evenly(category.train, PICTURES)
    (work / "pictures").mkdir()
    names = []
    for number, sample in enumerate(samples):
        picture = read_rgb(sample.path)
        picture.thumbnail((preprocess.image_size, preprocess.image_size))
        names.append(f"pictures/{number:02d}_{sample.defect}.png")
        picture.save(work / names[-1])
    return names


def _fitted(detector: PatchCore, network, pictures: Pictures) -> PatchCore:
    own = replace(detector)
    own.backbone_ = network
    return own.learn(own.gather_nominal(Extracted(network, pictures)))


def _scores(detector: PatchCore, images) -> np.ndarray:
    return torch.cat([detector.predict(batch).score for batch in images]).double().numpy()


class _Embedding(torch.nn.Module):
    """The stage as a module of its own: maps of one picture in the order of the levels -> (1, P, D)."""

    def __init__(self, detector: PatchCore):
        super().__init__()
        self.layers, self.stage = detector.layers, detector.stages["embedding"]

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        return self.stage(dict(zip(self.layers, maps, strict=True))).vectors


def _embedding(detector: PatchCore, maps: dict[int, torch.Tensor]) -> bytes:
    """Activation, pooling, join and scaling as an ONNX model for maps of these sides."""
    module, example = _Embedding(detector), tuple(maps.values())
    try:
        with warnings.catch_warnings():         # sides are constants in it, as they are in a bundle
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            return engines.convert(module, example, f"embedding {detector.embedding}", outputs=["patches"],
                                   inputs=[f"level{level}" for level in maps])
    except engines.EngineError as error:
        raise ExportError(f"embedding={detector.embedding}: does not convert ({error})") from error

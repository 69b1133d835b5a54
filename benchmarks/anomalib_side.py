"""The other side of `bench_methods` and `bench_training`: anomalib, in an environment of its own, driven by pipes.

Runs under that environment's Python and imports nothing of this project. A line of JSON comes in, {"do": ..., ...}, a
line goes out, {"seconds": ..., ...}; tensors come and go as files that torch.save has written. Only the call itself is
timed, as whoever has the model and the pictures in memory would make it; no Lightning, no files, no progress bar.
"""

import importlib
import json
import logging
import sys
import time
import warnings

import torch
from torch import nn

OPERATORS = ("nms", "qnms")     # of torchvision, declared in Python where its library does not load
LEVEL = "layer{}"               # timm's name of a level


def with_torchvision() -> None:
    """Import torchvision; beside a CPU build of torch its wheel from PyPI does not load its operators."""
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_library"] = library             # declared as long as it lives
    importlib.import_module("torchvision")


def backbone(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Our weights in torchvision's names, which are timm's, too; levels that neither needs may be missing."""
    network = model.feature_extractor.feature_extractor
    given = {key: value for key, value in state.items() if key in network.state_dict()}
    missing, _ = network.load_state_dict(given, strict=False)
    if missing := [key for key in missing if not key.endswith("num_batches_tracked")]:
        raise ValueError(f"weights: without {missing[0]} and {len(missing) - 1} more")


class PatchCore:
    def __init__(self, given: dict) -> None:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        self.model = PatchcoreModel([LEVEL.format(level) for level in given["layers"]], given["backbone"],
                                    pre_trained=False, num_neighbors=1)
        backbone(self.model, given["weights"])
        self.rows = given["bank"]

    def fit(self, batches: list[torch.Tensor]) -> None:
        self.model.train()
        patches = sum(len(self.model(batch)) for batch in batches)
        # It takes int(n * ratio) rows, so half a row more, for the rounding.
        self.model.subsample_embedding((self.rows + 0.5) / patches)

    def adopt(self, learned: dict[str, torch.Tensor]) -> None:
        self.model.memory_bank = learned["bank"]

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.eval()(image).pred_score

    def plain(self, image: torch.Tensor) -> torch.Tensor:
        return self.predict(image)


class PaDiM:
    def __init__(self, given: dict) -> None:
        from anomalib.models.image.padim.torch_model import PadimModel

        self.model = PadimModel(given["backbone"], [LEVEL.format(level) for level in given["layers"]],
                                pre_trained=False, n_features=len(given["channels"]))
        backbone(self.model, given["weights"])
        self.model.idx = given["channels"]

    def fit(self, batches: list[torch.Tensor]) -> None:
        self.model.train()
        for batch in batches:
            self.model(batch)
        self.model.fit()

    def adopt(self, learned: dict[str, torch.Tensor]) -> None:
        """Its own Gaussians are those of the same channels already."""

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.eval()(image).pred_score

    def plain(self, image: torch.Tensor) -> torch.Tensor:
        """The largest distance, before anything is enlarged and smoothed."""
        model = self.model.eval()
        vectors = model.generate_embedding(model.feature_extractor(image))
        found = model.anomaly_map_generator.compute_distance(
            vectors, [model.gaussian.mean, model.gaussian.inv_covariance])
        return found.amax()


class EfficientAD:
    def __init__(self, given: dict) -> None:
        from anomalib.models.image.efficient_ad.lightning_model import EfficientAd

        self.given, self.whole = given, EfficientAd(model_size="small", pre_processor=False, post_processor=False,
                                                    evaluator=False, visualizer=False)
        self.model = self.whole.model
        self.model.teacher.load_state_dict({key: given["weights"][key] for key in self.model.teacher.state_dict()})
        self.model.teacher.requires_grad_(False)
        self.reset()

    def reset(self) -> None:
        """The networks as the training begins, and a new optimizer."""
        self.load(self.given["begin"])
        parameters = [*self.model.student.parameters(), *self.model.ae.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=self.whole.lr, weight_decay=self.whole.weight_decay)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, max(1, int(0.95 * self.given["steps"])), 0.1)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Student and autoencoder: the layers have other names, in the same order, and a batch of kernels each."""
        for name, part in (("student", self.model.student), ("autoencoder", self.model.ae)):
            values = [value for key, value in state.items() if key.startswith(f"{name}.")]
            for parameter, value in zip(part.parameters(), values, strict=True):
                if parameter.shape != value.shape:
                    raise ValueError(f"{name}: {tuple(value.shape)} for {tuple(parameter.shape)}")
                parameter.data = value.clone(memory_format=torch.contiguous_format)

    def statistics(self, state: dict[str, torch.Tensor]) -> None:
        for name in ("mean", "std"):
            self.model.mean_std[name].data = state[name].reshape(1, -1, 1, 1).clone()

    def fit(self, batches: list[torch.Tensor]) -> None:
        """What its Lightning module does in the course of a training: statistics of the teacher, steps, quantiles."""
        from types import SimpleNamespace

        self.reset()
        trained, held = self.given["trained"], self.given["held"]
        pictures = [SimpleNamespace(image=image[None], gt_label=[0]) for image in torch.cat(batches)]
        self.statistics(self.whole.teacher_channel_mean_std([pictures[number] for number in trained]))
        for step in range(self.given["steps"]):
            self.step(step, pictures[trained[step % len(trained)]].image, self.given["penalty"][step])
        self.model.eval()
        quantiles = self.whole.map_norm_quantiles([pictures[number] for number in held])
        for name, value in quantiles.items():
            self.model.quantiles[name].data = value

    def step(self, number: int, image: torch.Tensor, penalty: torch.Tensor,
             changed: torch.Tensor | None = None) -> dict[str, float]:
        self.model.train()
        self.model.teacher.eval()
        torch.manual_seed(self.given["seeds"][number])
        if changed is not None:                 # the same picture as ours, whatever the numbers drawn
            self.model.choose_random_aug_image = lambda image: changed
        losses = self.model(image, penalty)
        self.optimizer.zero_grad()
        sum(losses).backward()
        self.optimizer.step()
        self.schedule.step()
        return dict(zip(("hard+penalty", "autoencoder", "student_autoencoder"), (x.item() for x in losses),
                        strict=True))

    def adopt(self, learned: dict[str, torch.Tensor]) -> None:
        self.load(learned)
        self.statistics(learned)
        (self.qa_st, self.qb_st), (self.qa_ae, self.qb_ae) = learned["quantiles"].tolist()
        for name in ("qa_st", "qb_st", "qa_ae", "qb_ae"):
            self.model.quantiles[name].data = torch.tensor(getattr(self, name))

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.eval()(image).pred_score

    def plain(self, image: torch.Tensor) -> torch.Tensor:
        """The largest value of the combined map, before a rim is added and anything is enlarged."""
        model = self.model.eval()
        student, local = model.compute_student_teacher_distance(image)
        other = student[:, model.teacher_out_channels:] - model.ae(image, image.shape[-2:])
        st, ae = local.mean(1), other.square().mean(1)
        return (0.05 * (st - self.qa_st) / (self.qb_st - self.qa_st)
                + 0.05 * (ae - self.qa_ae) / (self.qb_ae - self.qa_ae)).amax()


METHODS = {"patchcore": PatchCore, "padim": PaDiM, "efficientad": EfficientAD}


def answer(asked: dict, held: dict) -> dict:
    """What one line asks for; held: the method, its pictures."""
    clock = {"wall": time.perf_counter, "processor": time.process_time}[asked["clock"]]

    def timed(call, *given):
        began = clock()
        value = call(*given)
        return clock() - began, value

    do = asked["do"]
    if do == "prepare":
        given = torch.load(asked["file"], weights_only=True)
        torch.set_num_threads(asked["threads"])
        held |= {"side": METHODS[asked["method"]](given), "given": given}
        return {}
    side, given = held["side"], held["given"]
    if do == "fit":
        return {"seconds": timed(side.fit, given["train"])[0]}
    if do == "adopt":
        side.adopt(torch.load(asked["file"], weights_only=True))
        return {}
    if do == "step":
        tensors = torch.load(asked["file"], weights_only=True)
        for layer in side.model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = asked["dropout"]
        seconds, losses = timed(side.step, asked["number"], tensors["image"], tensors["penalty"], tensors["changed"])
        return {"seconds": seconds, "losses": losses}
    image = given["test"][asked["number"]]
    with torch.no_grad():
        if do == "plain":
            return {"score": float(side.plain(image))}
        seconds, score = timed(lambda: float(side.predict(image)))
    return {"seconds": seconds, "score": score}


def main() -> None:
    # 1. The answers alone go to standard output, whatever else prints.
    out, sys.stdout, held = sys.stdout, sys.stderr, {}
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with_torchvision()
    version = importlib.import_module("anomalib").__version__
    # 2. One answer to every line, until there are no more.
    print(json.dumps({"anomalib": version, "torch": torch.__version__}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), held)), file=out, flush=True)


if __name__ == "__main__":
    main()

"""The bars of the thesis' figures as detectors, so that they can be measured again.

In comes the number of a figure of chapter 3.5, out come unfitted PatchCores by the labels of its bars.
"""

from typing import Any

from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation.thesis import NETWORKS, bars_of
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.networks import backbones

ACTIVATIONS = {"ReLU": "relu", "Leaky ReLU": "leaky_relu", "Identität": "identity", "Sigmoid": "sigmoid",
               "SoftMin": "softmin"}
SCALINGS = {"": "none", "N": "normalise", "N, W": "normalise_weight"}


def thesis_bars(figure: str, weights: str, **changes: Any) -> dict[str, PatchCore]:
    """One PatchCore per bar of a figure of chapter 3.5 of the thesis, by its label; `changes` apply to all of them.

    The ConvNeXt bars take the inner branch of the last block, as the thesis measured them.
    """
    detectors = {}
    for label, bar in bars_of(figure).set_index("label").iterrows():
        if bar["backbone"] not in NETWORKS:
            raise ThesisError(f"figure {figure}, bar {label}: network {bar['backbone']} is not one of "
                              f"{', '.join(NETWORKS)}")
        network = NETWORKS[bar["backbone"]]
        levels = None if network in backbones.PDNS else tuple(int(level) for level in bar["layers"].split("+"))
        embeddings = {"patchcore": f"original_d{bar['feature_dim']}", "none": "identity"}
        parameters: dict[str, Any] = {
            "backbone": network, "layers": levels, "weights": weights,
            "embedding": embeddings.get(bar["pooling"], bar["pooling"]),
            "bank": bar["bank"], "search": bar["search"]}
        if network in backbones.CONVNEXTS:
            parameters["tap"] = "branch"
        if "channel transform" in bar["notes"]:
            function, _, scaling = str(label).removesuffix(" (default)").partition(", ")
            parameters |= {"tap": "preactivation", "activation": ACTIVATIONS[function], "scaling": SCALINGS[scaling]}
        detectors[str(label)] = PatchCore(**parameters | changes)
    return detectors

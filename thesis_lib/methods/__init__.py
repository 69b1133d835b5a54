"""The detectors by name."""

from thesis_lib.methods.base import Detector, Prediction
from thesis_lib.methods.patchcore import PatchCore

METHODS: dict[str, type[Detector]] = {method.name: method for method in (PatchCore,)}

__all__ = ["METHODS", "Detector", "PatchCore", "Prediction"]

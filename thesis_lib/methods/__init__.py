"""Nominal pictures go in, a fitted detector with named stages comes out; what it is worth is for `evaluation`.

PatchCore is the one to begin with. PaDiM needs aligned pictures, SPADE is the slowest, and SimpleNet, EfficientAD and
Uninformed Students are trained by gradient descent.
"""

from thesis_lib.methods.base import Detector, Prediction
from thesis_lib.methods.efficientad import EfficientAD
from thesis_lib.methods.padim import PaDiM
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.methods.registry import METHODS
from thesis_lib.methods.simplenet import SimpleNet
from thesis_lib.methods.spade import SPADE
from thesis_lib.methods.uninformed_students import UninformedStudents

__all__ = ["METHODS", "SPADE", "Detector", "EfficientAD", "PaDiM", "PatchCore", "Prediction", "SimpleNet",
           "UninformedStudents"]

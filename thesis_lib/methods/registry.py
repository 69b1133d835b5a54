"""The detectors by name."""

from thesis_lib.methods.base import Detector
from thesis_lib.methods.efficientad import EfficientAD
from thesis_lib.methods.padim import PaDiM
from thesis_lib.methods.patchcore import PatchCore
from thesis_lib.methods.simplenet import SimpleNet
from thesis_lib.methods.spade import SPADE
from thesis_lib.methods.uninformed_students import UninformedStudents

METHODS: dict[str, type[Detector]] = {method.name: method
                                      for method in (PatchCore, SPADE, PaDiM, SimpleNet, UninformedStudents,
                                                    EfficientAD)}

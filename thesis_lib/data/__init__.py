"""A folder of pictures goes in, batches of normalised pictures come out; networks do not belong here.

Own folders and MVTec AD's are read by `scan`, the demo pictures are generated. `Preprocess` is handed on from core.
"""

from thesis_lib.core.preprocess import Preprocess
from thesis_lib.data.folders import Category, categories, demo, resolve, scan, some_categories, verify
from thesis_lib.data.pictures import Pictures, denormalise, evenly, load_image, normalise

__all__ = ["Category", "Pictures", "Preprocess", "categories", "demo", "denormalise", "evenly", "load_image",
           "normalise", "resolve", "scan", "some_categories", "verify"]

"""Pictures go in, feature maps come out: networks, their weights, what runs them, and maps kept on disk.

What is made of the maps, patches and scores, does not belong here.
"""

from thesis_lib.networks.backbones import Backbone, load
from thesis_lib.networks.engines import Exported, build
from thesis_lib.networks.maps import Extracted, Stored

__all__ = ["Backbone", "Exported", "Extracted", "Stored", "build", "load"]

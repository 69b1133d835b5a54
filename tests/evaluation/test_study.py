"""What a study recommends."""

from thesis_lib.device import export
from thesis_lib.evaluation import recommendation


def test_what_is_recommended_for_a_device_can_be_exported():
    assert set(recommendation.BUNDLED) == {method.name for method in export.KNOWN}

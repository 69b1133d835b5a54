"""The precision in which a test runs."""

import pytest
import torch

from tests.golden.recipe import float64


@pytest.fixture(scope="module")
def exact():
    """All tests of a module in float64."""
    with float64():
        yield


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    """As the references ran, and as the library runs."""
    if request.param is torch.float32:
        yield torch.float32
    else:
        with float64():
            yield torch.float64

import pytest

from tests.support.model_cases import NETWORKS


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param

import pytest


@pytest.fixture(autouse=True)
def _no_figure_stays():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    yield
    pyplot.close("all")

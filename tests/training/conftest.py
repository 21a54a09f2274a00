"""Bars that trainings are tried on: horizontal and vertical ones are known, diagonal ones are outliers."""

import pytest
from shapes import beside, shapes

KNOWN = ["horizontal", "vertical"]


@pytest.fixture(scope="session")
def id_images():
    return shapes(KNOWN, 160, seed=0)


@pytest.fixture(scope="session")
def validation():
    return shapes(KNOWN, 100, seed=1)


@pytest.fixture(scope="session")
def outliers():
    return shapes(["diagonal"], 160, seed=2, labelled=False)


@pytest.fixture(scope="session")
def pairs(id_images, outliers):
    return beside(id_images, outliers)

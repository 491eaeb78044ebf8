"""Fixtures of the contract tests."""

from collections.abc import Iterator

import pytest

from tests.contract.kinds import Kinds
from tests.contract.pipeline import Pipeline, running


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    """Return messages with every kind of field, generated as by `just gen`."""
    return Kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with running(tmp_path_factory.mktemp("pipeline")) as pipeline:
        yield pipeline

"""What the tests of the contracts share."""

import pytest

from tests.contract.kinds import Kinds


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    """Return messages with every kind of field, generated as `just gen` does."""
    return Kinds(tmp_path_factory.mktemp("kinds"))

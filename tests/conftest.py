"""What many tests share: the default model, loaded once a session."""

from __future__ import annotations

import os

import pytest

from kvbench.errors import FetchError
from kvbench.models.loading import LoadedModel, load


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The default model in fp32. Where it cannot be fetched its tests are skipped, but never in continuous integration."""
    try:
        return load("smollm2-135m-instruct-q4_1")
    except FetchError as error:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(f"the default model is needed in continuous integration: {error}")
        pytest.skip(f"NOT TESTED on the default model: {error}")

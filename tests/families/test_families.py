"""Every decoder family of the installed transformers is exact in fp64 or refused in one line, as the list says."""

from __future__ import annotations

import pytest
import transformers
from survey import EXACT, judge
from tiny_configs import FAMILIES

from kvbench.models.families import surveyed

pytestmark = pytest.mark.usefixtures("fp64", "one_thread")
ANEW = "say what has changed and run `make families`"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_exact_or_refused(family: str) -> None:
    verdict, errors = judge(family)
    assert all(error < EXACT for error in errors.values()), errors
    assert "\n" not in verdict.refused + verdict.before_rope
    assert surveyed()[1].get(family) == verdict, ANEW


def test_the_list_is_of_the_installed_transformers() -> None:
    version, families = surveyed()
    assert (version, sorted(families)) == (transformers.__version__, sorted(FAMILIES)), ANEW

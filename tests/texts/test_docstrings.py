"""The text that is made of installed packages' docstrings."""

from pathlib import Path

import pytest

from kvbench.errors import KvbenchError
from kvbench.texts import docstrings
from kvbench.texts.docstrings import read_packages
from kvbench.texts.splits import documents

SOURCE = '''"""What the module is for."""
raise SystemExit("imported")
def plain(): pass
class Thing:
    """A thing."""
    def does(self):
        """Does."""
        def inside(): "not read"
async def later():
    """Later."""
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("__init__", "part/__init__", "part/bare", "part/_impl", "part/tests/test_impl"):
        path = tmp_path / "madeup" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n" if name.endswith("bare") else SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    docstrings.read_packages.cache_clear()
    return tmp_path


def test_a_module_is_a_document_of_its_docstrings_and_is_never_imported(package: Path):
    modules = dict(read_packages(("madeup.part",)))
    assert [*modules] == ["madeup.part", "madeup.part._impl"]
    assert modules["madeup.part._impl"] == (
        "madeup.part._impl\n\nWhat the module is for.\n\nThing\n\nA thing.\n\nThing.does\n\nDoes.\n\nlater\n\nLater."
    )


@pytest.mark.parametrize("name", ["madeup.other", "notinstalled.part"])
def test_a_package_that_is_not_there_is_named(package: Path, name: str):
    with pytest.raises(KvbenchError, match=f"reads the sources of package {name}, which is not installed"):
        read_packages((name,))


def test_the_text_has_documents_enough_for_quoted_suites():
    """About 3.4 characters are a token of the default model: 20 documents of 4,096 tokens must be there to report."""
    assert sum(len(text) >= 4 * 4096 for text in documents("docstrings", "test")["text"]) >= 20

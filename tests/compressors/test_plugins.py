"""Compressors of other packages, found by entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
from default_specs import DEFAULT_SPECS

from kvbench.compressors import names, registry
from kvbench.compressors.compressor import parse
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError

Install = Callable[..., None]


@dataclass(frozen=True)
class Halver(Part):
    """A third party's compressor, all of it in one class."""

    name = "halver"
    family = "quantization"
    roles = ("quantizer",)

    times: int = 1
    loud: bool = False

    def apply(self, draft: Draft) -> None:
        pass


class NotAPart:
    pass


class Idle(Part):
    name, family, roles = "other", "quantization", ("quantizer",)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Pretend that a package with these entry points is installed."""

    def pretend(**points: str) -> None:
        offered = [EntryPoint(name, value, names.ENTRY_POINTS) for name, value in points.items()]
        monkeypatch.setattr(names, "entry_points", lambda group: offered if group == names.ENTRY_POINTS else [])
        names.plugins.cache_clear()

    yield pretend
    monkeypatch.undo()
    names.plugins.cache_clear()


def test_a_plugin_is_found_by_name(install: Install) -> None:
    install(halver=f"{__name__}:Halver")
    compressor = parse("halver:times=3,loud=true,recent=8")
    assert compressor.parts == (Halver(3, True),)
    assert str(compressor) == "halver:times=3,loud=true,recent=8"
    assert registry.names()[-1] == "halver"
    assert parse("pca:rank=0.5+halver").parts[1] == Halver()


def test_its_errors_are_kvbenchs(install: Install) -> None:
    install(halver=f"{__name__}:Halver")
    with pytest.raises(KvbenchError, match="unknown key of compressor 'halver': 'time'; did you mean 'times'"):
        parse("halver:time=3")
    with pytest.raises(KvbenchError, match="halver:loud='maybe' is not true or false"):
        parse("halver:loud=maybe")
    with pytest.raises(KvbenchError, match="did you mean 'halver'"):
        parse("halve")


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ({"other": f"{__name__}:NotAPart"}, "is no Part; subclass kvbench.compressors.part.Part"),
        ({"other": "no.such.module:Thing"}, "does not load: ModuleNotFoundError: No module named 'no'"),
        ({"other": f"{__name__}:Halver"}, "calls itself 'halver'; give both the same name"),
        ({"other": f"{__name__}:Idle"}, r"has no apply\(\) or is no dataclass"),
    ],
)
def test_broken_plugins_are_named_and_leave_the_others_alone(
    install: Install, points: dict[str, str], reason: str
) -> None:
    install(halver=f"{__name__}:Halver", **points)
    with pytest.raises(KvbenchError, match=reason):
        registry.find("other")
    assert registry.names()[-2:] == ["halver", "other"]
    assert registry.find("halver") is Halver


def test_no_plugin_takes_the_name_of_a_built_in(install: Install) -> None:
    install(pca=f"{__name__}:Halver")
    with pytest.raises(KvbenchError, match="takes the name of the built-in compressor 'pca'"):
        registry.names()


def test_every_compressor_has_a_default_spec_in_the_tests() -> None:
    assert set(registry.names()) == set(DEFAULT_SPECS), "add a row to tests/default_specs.py for a new method"
    for name, spec in DEFAULT_SPECS.items():
        assert spec.split("+")[0].partition(":")[0] == name
        parse(spec)


@pytest.mark.parametrize("name", DEFAULT_SPECS)
def test_every_compressor_describes_itself(name: str) -> None:
    cls = registry.find(name)
    assert cls.name == name
    assert cls.family and cls.roles and cls.__doc__ and not cls.__doc__.startswith(cls.__name__ + "(")
    assert all(len(setting) == 3 for setting in cls.settings())

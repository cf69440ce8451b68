"""Names of a package that are imported the first time that somebody asks for them."""

from __future__ import annotations

import pytest

from atlas_kit.lazy_names import lazy_names


def test_names_come_from_their_homes():
    getattr_, dir_ = lazy_names(
        "atlas_kit.formats", {"Finding": ".findings", "AtlasError": "atlas_kit.errors"}, "x"
    )
    from atlas_kit.errors import AtlasError
    from atlas_kit.formats.findings import Finding

    assert getattr_("Finding") is Finding
    assert getattr_("AtlasError") is AtlasError
    assert dir_() == ["AtlasError", "Finding", "x"]


def test_another_name_is_an_attribute_error():
    getattr_, _ = lazy_names("atlas_kit", {})
    with pytest.raises(AttributeError, match=r"^module 'atlas_kit' has no attribute 'nix'$"):
        getattr_("nix")


@pytest.mark.parametrize(
    "package", ["atlas_kit", "atlas_kit.llama", "atlas_kit.formats.gguf", "atlas_kit.widgets"]
)
def test_no_module_hides_a_public_name(package):
    """A module ``p/name.py`` would become the attribute ``p.name`` as soon as anything imports it."""
    import importlib.util
    from importlib import import_module

    homes = import_module(package)._HOMES
    shadowed = [name for name in homes if importlib.util.find_spec(f"{package}.{name}") is not None]
    assert shadowed == []

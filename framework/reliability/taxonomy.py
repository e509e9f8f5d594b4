"""The taxonomy of failures, a data file: symptoms, the domains where their causes may lie, and their transience."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from framework.errors import ConfigurationError, near

Likelihood: TypeAlias = Literal["likely", "rare", "doubtful"]
Transience: TypeAlias = Literal["transient", "permanent", "either", "unknown"]

FILE = Path(__file__).with_name("taxonomy.yaml")
"""The taxonomy that comes with the framework."""


@dataclass(frozen=True)
class Symptom:
    """What is seen of a failure.

    Attributes:
        name: Short name.
        title: In words.
        domains: How likely each domain is where its cause lies; domains that are not named are ruled out.
        transience: Whether it goes away by itself.
        mark: Which of the taxonomy's sources this is from.
    """

    name: str
    title: str
    domains: Mapping[str, Likelihood]
    transience: Transience
    mark: str


@dataclass(frozen=True)
class Taxonomy:
    """Symptoms and domains of failures.

    Attributes:
        sources: What a mark stands for.
        domains: Domains of causes, in words.
        symptoms: Symptoms by name.
    """

    sources: Mapping[str, str]
    domains: Mapping[str, str]
    symptoms: Mapping[str, Symptom]

    def candidates(self, seen: str, *more: str) -> set[str]:
        """Domains that remain when several symptoms are seen of one failure.

        Args:
            seen: Name of a symptom.
            more: Names of others.

        Raises:
            ConfigurationError: If there is no such symptom.
        """
        return set.intersection(*(set(self.symptom(name).domains) for name in (seen, *more)))

    def symptom(self, name: str) -> Symptom:
        """A symptom by its name.

        Args:
            name: As in the file.

        Raises:
            ConfigurationError: If there is none.
        """
        if name not in self.symptoms:
            known = near(name, self.symptoms) or f"; there are {', '.join(self.symptoms)}"
            raise ConfigurationError(f"symptom {name}: not in the taxonomy{known}")
        return self.symptoms[name]


def read_taxonomy(path: str | Path = FILE) -> Taxonomy:
    """Read and check a taxonomy.

    Args:
        path: YAML file with ``sources``, ``domains`` and ``symptoms``; by default ours.

    Raises:
        ConfigurationError: If the file cannot be read, or an entry is not as it should be, naming it.
    """
    from framework.configuration import load

    values = load(Path(path))
    _keys(values, {"sources", "domains", "symptoms"}, str(path))
    sources, domains = (_texts(values[key], f"{path}: {key}") for key in ("sources", "domains"))
    _mapping(values["symptoms"], f"{path}: symptoms")
    symptoms = {
        name: _symptom(name, entry, sources, domains, f"{path}: symptoms.{name}")
        for name, entry in values["symptoms"].items()
    }
    return Taxonomy(sources, domains, symptoms)


def _symptom(name: str, entry: Any, sources: Mapping[str, str], domains: Mapping[str, str], at: str) -> Symptom:
    _keys(entry, {"title", "domains", "transience", "mark"}, at)
    _texts({"title": entry["title"]}, at)
    _mapping(entry["domains"], f"{at}.domains")
    if not entry["domains"]:
        raise ConfigurationError(f"{at}.domains: at least one of {', '.join(domains)} is needed")
    for domain, likelihood in entry["domains"].items():
        _one_of(domain, domains, f"{at}.domains")
        _one_of(likelihood, get_args(Likelihood), f"{at}.domains.{domain}")
    _one_of(entry["transience"], get_args(Transience), f"{at}.transience")
    _one_of(entry["mark"], sources, f"{at}.mark")
    return Symptom(name, entry["title"], entry["domains"], entry["transience"], entry["mark"])


def _mapping(value: Any, at: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{at}: expected a mapping, got {value!r}")
    for key in value:
        if not isinstance(key, str):
            raise ConfigurationError(f"{at}: expected names, got {key!r}")


def _keys(value: Any, keys: set[str], at: str) -> None:
    _mapping(value, at)
    wrong = sorted(map(str, value.keys() ^ keys))
    if wrong:
        raise ConfigurationError(f"{at}: expected the keys {', '.join(sorted(keys))}; too many or missing: {wrong[0]}")


def _texts(value: Any, at: str) -> Mapping[str, str]:
    _mapping(value, at)
    for key, text in value.items():
        if not (isinstance(text, str) and text.strip()):
            raise ConfigurationError(f"{at}.{key}: expected words, got {text!r}")
    return dict(value)


def _one_of(value: Any, allowed: Any, at: str) -> None:
    if value not in tuple(allowed):
        raise ConfigurationError(
            f"{at}: expected one of {', '.join(allowed)}, got {value!r}{near(str(value), allowed)}"
        )

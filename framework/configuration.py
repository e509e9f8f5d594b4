"""Configuration in layers: YAML files and ``--key value`` pairs, merged left to right into one mapping.

All of this happens before torch is imported, so a slip is answered at once. What is decided here: which file a name
means, how layers merge (lists replaced, ``key+`` appends, a new ``class_path`` starts afresh), what short class names
stand for, interpolation (``${trainer.max_epochs}``), unknown keys and impossible numbers. Types are checked later,
against the signatures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from framework import registry
from framework.errors import ConfigurationError, near

#: Top-level keys of every command.
SECTIONS = (
    "about", "ckpt_path", "data", "lr_scheduler", "model", "name", "optimizer", "seed_everything", "threads", "trainer",
    "weights_only",
)  # fmt: skip
#: Keys that one command has beyond those.
OWN = {
    "fit": ("resumable", "test_after_fit"),
    "validate": ("verbose",),
    "test": ("verbose",),
    "predict": ("return_predictions",),
    "federate": ("federation", "test_after_fit"),
}
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_CLASSES = ("model", "data", "optimizer", "lr_scheduler")
_CLASS_PLACES = {
    *((name,) for name in _CLASSES),
    *(("federation", name) for name in ("partition", "skew", "strategy")),
}
"""Where a name alone stands for a class without arguments."""


def shipped() -> Path:
    """Folder of the configurations that come with the package."""
    return Path(__file__).resolve().parent.parent / "configs"


def names() -> dict[str, Path]:
    """Shipped configurations by name, such as ``lds/wine`` or ``overlays/wandb``."""
    root = shipped()
    return {str(file.relative_to(root).with_suffix("").as_posix()): file for file in sorted(root.rglob("*.yaml"))}


def find(given: str) -> Path:
    """File of a ``-c`` value: a path, or the name of a shipped configuration.

    Args:
        given: A file, or a name such as ``lds/wine``, ``lds/wine.yaml`` or ``configs/lds/wine.yaml``.

    Raises:
        ConfigurationError: If there is neither; the message names what comes close.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    known = names()
    name = re.sub(r"\.ya?ml$", "", path.as_posix().removeprefix("./").removeprefix("configs/"))
    if name in known:
        return known[name]
    inside = [each for each in known if each.startswith(f"{name}/")]
    if inside:
        raise ConfigurationError(f"-c {given}: a folder; it holds {', '.join(inside)}")
    raise ConfigurationError(
        f"-c {given}: no such file and no shipped configuration{near(name, known) or ' (fulgurite methods lists them)'}"
    )


def name_of(path: Path) -> str:
    """Name of a configuration file: its path below a folder called ``configs``, else its stem."""
    parts = path.resolve().with_suffix("").parts
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "configs":
            return "/".join(parts[i + 1 :])
    return parts[-1]


@cache
def _loader() -> Any:
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        """YAML 1.1 less its traps: ``1e-3`` is a number, a date is text, a key given twice is an error."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value} given twice", key.start_mark)
                seen.add(key.value)
            return dict(super().construct_mapping(node, deep))

    drop = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in pairs if tag not in drop]
        for first, pairs in base.yaml_implicit_resolvers.items()
    }
    number = r"[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*(?:[eE][-+]?\d+)?)"
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(rf"^(?:{number}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
        list("-+0123456789."),
    )
    return Loader


def load(path: Path) -> Any:
    """Load any YAML file, without the traps of YAML 1.1.

    Raises:
        ConfigurationError: If it cannot be read or is not YAML, such as with a key given twice; with file and line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{path}{line}: {error.problem or error.context}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: {' '.join(str(error).split())}") from error


def read(path: Path) -> dict[str, Any]:
    """Load one file of a configuration.

    Raises:
        ConfigurationError: If it cannot be read, is not YAML, or is not a mapping; the message has file and line.
    """
    loaded = load(path)
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigurationError(f"{path}: expected a mapping of {', '.join(SECTIONS)}, got {type(loaded).__name__}")
    return loaded


def pairs(args: list[str]) -> list[tuple[str, str]]:
    """Split ``--key value``, ``--key=value`` and ``-c file``; a key without a value means true.

    Args:
        args: What follows the command.

    Raises:
        ConfigurationError: If something else stands among them.
    """
    found = []
    rest = list(args)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not key.startswith("--") and key != "-c":
            raise ConfigurationError(f"unexpected {key}: options look like -c <file> or --<key> <value>")
        if not equals and key != "--print_config":
            if rest and not rest[0].startswith("--") and rest[0] != "-c":
                value = rest.pop(0)
            elif key in {"-c", "--config"}:
                raise ConfigurationError(f"{key} needs a file or the name of a configuration")
            else:
                value = "true"
        found.append((key, value))
    return found


class Configuration:
    """One configuration that layers and overrides are laid onto, in the order of the command line.

    Args:
        command: ``fit``, ``validate``, ``test``, ``predict`` or ``federate``: decides which top-level keys exist.

    Attributes:
        values: The merged mapping.
        files: The files read so far.
    """

    def __init__(self, command: str) -> None:
        self.keys = (*SECTIONS, *OWN[command])
        self.others = {key for keys in OWN.values() for key in keys} - set(self.keys)
        self.values: dict[str, Any] = {}
        self.files: list[Path] = []

    @classmethod
    def of(cls, command: str, given: Iterable[tuple[str, str]]) -> Configuration:
        """Layers and overrides of a command line, laid over one another from left to right.

        Args:
            command: The command.
            given: From :func:`pairs`.

        Raises:
            ConfigurationError: If a file or key does not exist.
        """
        configuration = cls(command)
        for key, value in given:
            if key in {"-c", "--config"}:
                configuration.layer(find(value))
            else:
                configuration.override(key.removeprefix("--"), value)
        return configuration

    def layer(self, path: Path) -> None:
        """Merge a YAML file onto what is there."""
        values = read(path)
        for key in values:
            bare = str(key).removesuffix("+")
            if bare not in self.keys and bare not in self.others:
                raise ConfigurationError(
                    f"{path}: no such key {key}{near(bare, self.keys) or '; it takes ' + ', '.join(self.keys)}"
                )
        # A configuration saved by another command may be used again: its own switches do not concern us.
        values = {key: value for key, value in values.items() if key not in self.others}
        for section in ("trainer", "model", "data"):
            if section in values and values[section] is None:
                del values[section]  # `trainer:` with every line below it commented out
        _merge(self.values, _named(values))
        self.files.append(path)

    def override(self, key: str, text: str) -> None:
        """Set one value, as ``--key text`` does.

        Args:
            key: Dotted key. ``init_args`` may be left out; a list is entered by number, or at its last item; a final
                ``+`` appends.
            text: A YAML list or mapping is read as such; anything else is read as the argument's type asks.

        Raises:
            ConfigurationError: If the first part of the key is unknown, or a part leads nowhere.
        """
        parts = key.split(".")
        if parts[0].removesuffix("+") not in self.keys:
            raise ConfigurationError(
                f"--{key}: no such option{near(parts[0], self.keys) or '; it takes ' + ', '.join(self.keys)}"
            )
        value: Any = text
        if text[:1] in "[{" and text:
            try:
                value = yaml.load(text, Loader=_loader())
            except yaml.YAMLError as error:
                raise ConfigurationError(f"--{key}: not YAML: {text}") from error
        node: Any = self.values
        for depth, part in enumerate(parts):
            holder = _holder(node, part, parts[:depth])
            if depth == len(parts) - 1:
                if isinstance(holder, list):
                    raise ConfigurationError(
                        f"--{key}: name an argument of the item, or use --{'.'.join(parts[:-1])}+ to append"
                    )
                _merge(holder, _named({part: value}, tuple(parts[:depth])))
            elif isinstance(holder, list):
                node = holder[int(part)]
            else:
                if not isinstance(holder.get(part), dict | list):
                    holder[part] = {}
                node = holder[part]

    def interpolated(self) -> dict[str, Any]:
        """The values with every ``${...}`` replaced.

        Raises:
            ConfigurationError: If a reference leads nowhere; the message names it and where it stands.
        """
        if not any("${" in text or text == "???" for _, text in _texts(self.values)):
            return deepcopy(self.values)
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            resolved = OmegaConf.to_container(OmegaConf.create(self.values), resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            reason = str(error.msg if hasattr(error, "msg") and error.msg else error).strip().splitlines()[0]
            place = getattr(error, "full_key", "") or ""
            wanted = re.search(r"Interpolation key '([^']*)' not found", reason)
            if wanted:
                known = [key for key, _ in _leaves(self.values)]
                reason = f"${{{wanted[1]}}} refers to a key that is not there{near(wanted[1], known)}"
            raise ConfigurationError(f"{place}: {reason}" if place else reason) from error
        assert isinstance(resolved, dict)
        return {str(key): value for key, value in resolved.items()}


def _named(values: dict[str, Any], at: tuple[str, ...] = ()) -> dict[str, Any]:
    """A layer with classes written in full: ``model: LDS`` becomes a ``class_path``, short names become dotted ones."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        bare = str(key).removesuffix("+")
        place = (*at, bare)
        if isinstance(value, str) and place in _CLASS_PLACES:
            value = {"class_path": value}
        elif place in {("trainer", "callbacks"), ("trainer", "logger")}:
            one_class = isinstance(value, dict) or (
                isinstance(value, str) and value.lower() not in {"true", "false", "null", "none"}
            )
            if one_class:
                value = [value]
            if isinstance(value, list):
                value = [{"class_path": item} if isinstance(item, str) else item for item in value]
        if key == "class_path" and isinstance(value, str):
            section = "callbacks" if at == ("trainer", "callbacks") else at[0] if len(at) == 1 else None
            value = registry.resolve(value, section)
        result[str(key)] = _deep(value, place)
    return result


def _deep(value: Any, place: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return _named(value, place)
    if isinstance(value, list):
        return [_deep(item, place) for item in value]
    return value


def _merge(old: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Lay ``new`` over ``old`` in place."""
    if _switched(old.get("class_path"), new.get("class_path")):
        for key in ("init_args", "dict_kwargs"):  # arguments of the class that is replaced
            old.pop(key, None)
    for key, value in new.items():
        if key.endswith("+"):
            bare = key[:-1]
            kept = old.get(bare)
            before = kept if isinstance(kept, list) else [kept] if isinstance(kept, dict) else []
            old[bare] = [*before, *deepcopy(value if isinstance(value, list) else [value])]
        elif isinstance(value, Mapping) and isinstance(old.get(key), dict):
            _merge(old[key], value)
        elif isinstance(value, Mapping):
            fresh: dict[str, Any] = {}
            _merge(fresh, value)  # a `+` further down appends to nothing
            old[key] = fresh
        else:
            old[key] = deepcopy(value)


def _switched(old: object, new: object) -> bool:
    if not isinstance(old, str) or not isinstance(new, str) or old == new:
        return False
    if "." in old and "." in new:
        return True
    return (
        old.rpartition(".")[2] != new.rpartition(".")[2]
    )  # EarlyStopping is lightning.pytorch.callbacks.EarlyStopping


def _holder(node: Any, part: str, before: list[str]) -> Any:
    """What ``part`` is looked up in: a list for a number, else a mapping (of a list, its last item)."""
    if isinstance(node, list):
        at = ".".join(before)
        if part.isdigit() and int(part) < len(node):
            return node
        if part.isdigit() or not node:
            raise ConfigurationError(f"--{at}.{part}: {at} has {len(node)} items")
        node = node[-1]
    return _inside(node, part, before)


def _inside(node: Any, part: str, before: list[str]) -> dict[str, Any]:
    """The mapping that holds ``part``: a class's arguments when ``part`` is one of them."""
    if not isinstance(node, dict):
        raise ConfigurationError(f"--{'.'.join([*before, part])}: {'.'.join(before)} is {node!r}, which has no keys")
    is_class = "class_path" in node or tuple(before) in _CLASS_PLACES
    if is_class and part not in _CLASS_KEYS:
        inner = node.setdefault("init_args", {})
        assert isinstance(inner, dict)
        return inner
    return node


def _texts(node: Any, at: str = "") -> Iterator[tuple[str, str]]:
    for key, value in _leaves(node, at):
        if isinstance(value, str):
            yield key, value


def _leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{at}.{key}" if at else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{at}[{i}]")
    else:
        yield at, node


#: Smallest sensible values of numbers that Lightning takes without a look, or refuses with a traceback.
_LEAST = {
    "max_epochs": -1, "min_epochs": 0, "max_steps": -1, "min_steps": 0, "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1, "log_every_n_steps": 0, "gradient_clip_val": 0, "fast_dev_run": 0,
    "overfit_batches": 0, "limit_train_batches": 0, "limit_val_batches": 0, "limit_test_batches": 0,
    "limit_predict_batches": 0,
    "num_sanity_val_steps": -1, "num_nodes": 1, "reload_dataloaders_every_n_epochs": 0,
}  # fmt: skip


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse numbers of the ``trainer`` section and of the top level that cannot be meant.

    Raises:
        ConfigurationError: Naming the key, the value and the smallest allowed one.
    """
    trainer = values.get("trainer")
    if trainer is not None and not isinstance(trainer, Mapping):
        raise ConfigurationError(f"trainer: expected a mapping, got {trainer!r}")
    checks = [(f"trainer.{key}", value, _LEAST[key]) for key, value in (trainer or {}).items() if key in _LEAST]
    checks.append(("threads", values.get("threads"), 1))
    for key, value, least in checks:
        if isinstance(value, bool) or value is None:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue  # another type: the signature decides
        if not number >= least:
            words = (
                "at least 0, or -1 for no limit"
                if key in {"trainer.max_epochs", "trainer.max_steps"}
                else f"at least {least}"
            )
            raise ConfigurationError(f"{key} must be {words}, got {value}")

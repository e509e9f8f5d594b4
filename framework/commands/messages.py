"""jsonargparse's long errors as one sentence."""

from __future__ import annotations

import re

_NOISE = ("<class 'NoneType'>", "NoneType")


def condense(message: str) -> str:
    """One sentence of a jsonargparse error.

    Args:
        message: Text of its exception, often a tree of a dozen lines.

    Returns:
        ``key: what was expected, got value``; the first lines on one line where the text has another form.
    """
    keys = re.findall(r"""(?:Parser key|Key|key) ["']([^"']+)["']""", message)
    place = ""
    for key in keys:
        place = key if not place or key.startswith(place) else f"{place}.init_args.{key}"
    missing = re.search(r"the following arguments are required: (.+)", message)
    owner = re.search(r"class_path '([^']+)'", message)
    if missing:
        return f"{place}: {owner[1].rpartition('.')[2] if owner else 'it'} needs {missing[1].strip()}"
    unknown = re.search(r"Option '([^']+)' is not accepted", message)
    if unknown:
        return f"{place}.init_args.{unknown[1]}: {owner[1] if owner else 'the class'} takes no such argument"
    got = re.findall(r"Got value: (.*)", message) or re.findall(r"Given value: (.*)", message)
    expected = [_plain(each) for each in re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", message, re.M)]
    expected = list(dict.fromkeys(each for each in expected if each not in _NOISE))
    if expected and got:
        return f"{place}: expected {' or '.join(expected)}, got {got[-1].strip()}"
    imported = re.search(
        r"(Problem with given class_path .+|No module named .+|.*not a subclass.*|.*[Uu]nable to import.*)", message
    )
    text = imported[1] if imported else message
    text = " ".join(text.split())
    return f"{place}: {text}" if place and place not in text else text


def _plain(words: str) -> str:
    words = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", words.strip())
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", words)
    return f"one of {literal[1]}" if literal else words

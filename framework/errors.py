"""What ``main`` tells in one line: a mistake of the user, why a run failed, or what it waits for."""


class ConfigurationError(ValueError):
    """Something in the command line or a configuration file is wrong; the message is one sentence for the user."""


class RunFailed(RuntimeError):
    """A run cannot go on, though its configuration may be right; the message is one sentence that says why.

    For what happens while it runs and is no fault of the program, such as clients of a federation that stay away.
    ``main`` prints the sentence without a traceback and ends with exit code 1.
    """


class Paused(Exception):
    """A run ends in good order because it waits for somebody; the message is one sentence that says for what.

    Before training a callback raises it, on all ranks, in ``setup`` or ``on_fit_start``. Later it would keep other
    callbacks from their last hooks: then the callback sets ``trainer.should_stop`` and puts a ``Paused`` into its
    attribute ``paused``. ``fulgurite fit`` prints the sentence, tests nothing, and ends with exit code 0.
    """


def near(wrong: str, known: object, count: int = 3) -> str:
    """Hint with the known names closest to a wrong one.

    Args:
        wrong: What was written.
        known: Iterable of names that would have been right.
        count: The most names to mention.

    Returns:
        ``"; did you mean a or b?"``, or an empty string when nothing is close.
    """
    from difflib import get_close_matches

    names = sorted({str(name) for name in known})  # type: ignore[attr-defined]
    found = get_close_matches(wrong, names, n=count, cutoff=0.6)
    lowered = wrong.lower()
    found += [name for name in names if len(lowered) > 3 and lowered in name.lower() and name not in found]
    return f"; did you mean {' or '.join(found[:count])}?" if found else ""

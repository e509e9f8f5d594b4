"""How much privacy each client asks for: the nine distributions and the batch sizes of the code of Robust-HDP.

Malekmohammadi, Yu, Cao, ICML 2024 (arXiv 2406.03519), code Saber-mm/HDPFL at b00c897. Distributions are lists of
numbers there, for 20, 40 and 60 clients; the 40 are the first of the 60.
"""

from __future__ import annotations

from collections.abc import Sequence

from framework.errors import near

CLIENTS = (20, 40, 60)
"""Numbers of clients for which there are lists."""


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split())


_TWENTY = {
    "Dist1": _numbers(
        "2.81 1.69 1.74 1.46 2.43 .85 2.87 1.62 2.16 1.88 2.73 .97 1.84 1.81 2.57 1.45 1.91 1.56 2.02 2.29"
    ),
    "Dist2": _numbers("5.45 1 1.15 .2 4.52 4.88 .98 .2 1.05 .93 1 .21 .21 1.27 .89 1.17 .96 .89 1.04 .84"),
    "Dist3": _numbers("2.2 3.66 .2 1.65 .9 .64 1.09 1.86 2.1 2.79 2.21 3.49 1.18 4.41 .33 3.42 2.2 2.88 .87 1.15"),
    "Dist4": _numbers(".57 .66 .42 3.97 3.27 .45 .55 2.58 1.82 .64 .19 2.38 .34 .44 .47 .5 .56 .51 .68 .19"),
    "Dist5": _numbers(".95 1.5 .2 .74 .46 .37 .54 .82 .91 1.17 .95 1.43 .57 1.78 .25 1.41 .95 1.21 .45 .56"),
    "Dist6": _numbers(".5 .46 .39 .44 .21 .36 .19 .51 1.12 .2 .49 .19 .19 .2 .2 .18 .61 .15 .38 .53"),
    "Dist7": _numbers(".26 .82 .55 .78 .98 .63 .6 .26 .41 .6 .74 .84 .5 .25 .43 .93 .37 .56 .94 .22"),
    "Dist8": _numbers(".2 .2 .19 .44 .21 .19 .19 .51 .62 .2 .2 .19 .19 .2 .2 .18 .61 .17 .38 .53"),
    "Dist9": _numbers(".45 .25 .22 .31 .28 .36 .29 .29 .23 .27 .48 .28 .42 .46 .44 .26 .25 .21 .21 .26"),
}
_SIXTY = {
    "Dist1": _TWENTY["Dist1"]
    + _numbers(
        "1.12 1.84 2.26 1.01 1.66 1.76 1.36 .81 .58 1.85 1.73 4.23 .25 2.11 2.37 3.36 2.5 1.16 2 2.54 1.69 "
        "2.77 .25 3.73 3.47 1.66 2.61 2.05 1.17 2.09 3 1.62 1.62 1.93 2.43 3.28 1.37 2.51 2.22 .25"
    ),
    "Dist2": _TWENTY["Dist2"]
    + _numbers(
        "6 1 .83 .81 1.01 .21 .97 .21 1.14 .21 .78 .2 5.2 .71 1.11 .96 1.06 .18 .99 .76 1.04 .2 .89 1.06 .9 "
        "5.49 1.08 1.06 1.02 1.08 .98 1.08 1.04 .21 1.3 .93 1 1 .19 .21"
    ),
    "Dist3": _numbers(
        "2.29 .32 2.84 2.29 2.22 1.79 1.18 3.17 1.64 1.48 3.18 2.74 .85 2.67 1.09 3.97 4.3 2.57 4.26 .58 2.63 "
        ".51 2.25 .66 .81 3.06 1.28 .71 1.26 1.88 2.45 1.17 3.27 2.52 2.63 2.06 4.01 2.98 .98 3.56 4.83 2.6 "
        "4.47 1.84 2.92 2.25 2.3 3.93 2.77 4.78 2.81 .59 1.96 4.28 2.15 .33 1.39 .52 4.97 4.86"
    ),
    "Dist4": _numbers(
        ".5 .46 .39 .44 .57 .36 .19 .51 3.21 .2 .49 .19 .19 .2 .45 .29 .61 .15 .38 .53 3 .5 .33 .31 .51 .21 "
        ".47 .21 .64 .21 .28 .2 2.2 .21 .61 .46 .56 .18 .49 .26 .54 .2 .39 .56 .4 2.49 .58 .56 .52 .58 .48 "
        ".58 .54 .21 .8 .43 .5 .5 .19 .21"
    ),
    "Dist5": _numbers(
        ".98 .25 1.19 .98 .96 .79 .57 1.31 .74 .68 1.32 1.15 .44 1.12 .53 1.61 1.74 1.09 1.72 .34 1.11 .32 "
        ".97 .37 .43 1.27 .61 .39 .6 .83 1.04 .56 1.35 1.07 1.11 .9 1.63 1.24 .49 1.46 1.94 1.1 1.8 .81 1.22 "
        ".97 .99 1.6 1.16 1.92 1.18 .35 .86 1.73 .93 .25 .64 .32 1.99 1.95"
    ),
    "Dist6": _TWENTY["Dist6"]
    + _numbers(
        "1.1 .5 .33 .31 .51 .21 .47 .21 .21 .21 .18 .2 1.02 .21 .21 .46 .56 .18 .49 .26 .54 .2 .39 .56 .4 "
        "1.05 .58 .56 .2 .58 .2 .58 .54 .21 .8 .43 .2 .2 .19 .21"
    ),
    "Dist7": _numbers(
        ".55 .22 .64 .55 .54 .46 .36 .7 .44 .41 .7 .62 .31 .61 .35 .83 .88 .6 .88 .26 .6 .25 .54 .28 .3 .68 "
        ".38 .29 .38 .48 .57 .36 .71 .59 .6 .51 .83 .66 .33 .76 .97 .6 .91 .47 .65 .54 .55 .82 .63 .96 .64 "
        ".27 .49 .88 .53 .22 .4 .25 1 .98"
    ),
    "Dist8": _TWENTY["Dist8"]
    + _numbers(
        ".6 .2 .18 .31 .2 .21 .2 .21 .21 .21 .18 .2 .52 .17 .21 .46 .21 .18 .49 .18 .2 .2 .19 .21 .4 .55 .58 "
        ".21 .2 .21 .2 .21 .54 .21 .23 .43 .2 .2 .19 .21"
    ),
    "Dist9": _numbers(
        ".33 .21 .36 .33 .33 .3 .26 .39 .29 .28 .39 .36 .24 .35 .26 .44 .46 .35 .45 .22 .35 .22 .33 .23 .24 "
        ".38 .27 .23 .27 .3 .34 .26 .39 .34 .35 .32 .44 .37 .25 .41 .49 .35 .47 .3 .37 .33 .33 .43 .36 .49 "
        ".36 .22 .31 .46 .32 .21 .27 .22 .5 .49"
    ),
}
_BATCHES = tuple(
    int(number)
    for number in _numbers(
        "32 64 16 32 16 16 16 32 32 64 32 64 16 128 16 64 32 64 16 16 128 128 32 64 128 128 16 16 16 128 16 "
        "32 128 64 64 32 64 128 16 128 128 64 32 128 16 32 128 32 32 16 16 64 16 32 32 16 64 16 64 64"
    )
)
NAMES = tuple(_SIXTY)
"""The distributions; privacy gets stricter from the first to the last, by and large."""


def epsilons(given: float | str | Sequence[float], clients: int, what: str = "epsilon") -> tuple[float, ...]:
    """The privacy budget of each client.

    Args:
        given: The same number for all, a number for each, or ``Dist1`` to ``Dist9``.
        clients: Number of clients.
        what: What errors call it.

    Returns:
        Positive numbers.

    Raises:
        ValueError: If there is no such distribution, it has no list for so many clients, or a number is not positive.
    """
    if not isinstance(given, str):
        return _each(given, clients, what)
    if given not in _SIXTY:
        raise ValueError(f"no distribution of epsilons is called {given}{near(given, NAMES)}; there are Dist1 to Dist9")
    _check_listed(clients, given)
    return _TWENTY[given] if clients == CLIENTS[0] else _SIXTY[given][:clients]


def batch_sizes(given: int | str | Sequence[int], clients: int) -> tuple[int, ...]:
    """The batch size of each client.

    Args:
        given: The same number for all, a number for each, or ``paper`` for the list of the paper's code.
        clients: Number of clients.

    Returns:
        Numbers of at least 1.

    Raises:
        ValueError: As ``epsilons``.
    """
    if not isinstance(given, str):
        return tuple(int(number) for number in _each(given, clients, "batch size"))
    if given != "paper":
        raise ValueError(f"batch sizes must be a number, a number for each client, or paper, got {given!r}")
    _check_listed(clients, "the paper's batch sizes")
    return _BATCHES[:clients]


def _each(given: float | Sequence[float], clients: int, what: str) -> tuple[float, ...]:
    found = tuple(given) if isinstance(given, Sequence) else (given,) * clients
    if len(found) != clients:
        raise ValueError(f"there must be one {what} for each of the {clients} clients, got {len(found)}")
    for client, number in enumerate(found):
        if not 0 < number < float("inf"):
            raise ValueError(f"the {what} of client {client} must be positive and finite, got {number}")
    return found


def _check_listed(clients: int, what: str) -> None:
    if clients not in CLIENTS:
        raise ValueError(f"{what} is for 20, 40 or 60 clients, got {clients}: give a number for each instead")

"""Labels from people: the items of a round go to a file, the run stops, and goes on once they are labelled.

In a folder: ``round_000.jsonl`` (the initial set), ``round_001.jsonl`` and so on, with an empty ``label`` per item;
``state.json``, which says what was asked in which round; ``README.txt`` for the person who labels. An item is known by
its index in the data that active learning chooses from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from framework import rundir
from framework.active.items import (
    Describable,
    Labelable,
    as_class,
    describe,
    fingerprint,
    is_labelled,
    set_labels,
    takes_own_labels,
)
from framework.active.label_files import Record, as_text, records_of

__all__ = ["SKIP", "Describable", "LabelFolder", "Labelable", "Pending", "describe", "is_labelled", "set_labels"]

SKIP = "[skip]"
"""What stands in place of a label that nobody can give: the item is paid for, and not trained on."""

OWN = ("id", "fingerprint", "score", "suggestion", "label")
"""Fields of a record that are ours; those of the data with such a name are written as ``data.<name>``."""

README = """Labels for a model that is being trained
========================================

Each round_*.{format} in this folder is a round of items that the model would learn most from.

1. Open the newest one and fill in the empty `label` of every item{example}.
   `suggestion`, if there is one, is what the model believes; it is often wrong, or the item would not be here.
   Write [skip] where nobody can tell: the item is left out of the training.
2. Save it under the same name. Leave `id` and `fingerprint` as they are; order does not matter.
3. Start the training again with the same command and --ckpt_path last.

{allowed}
Labels may be filled in piece by piece: the training waits until a round has all of them, and says how many are missing.
Do not edit state.json, which says what was asked. Corrected labels of earlier rounds are read at the next start.
"""


class Pending(NamedTuple):
    """A round that waits for labels.

    Attributes:
        round: Its number.
        file: Its file.
        items: Items asked for.
        missing: Items still without a label.
    """

    round: int
    file: Path
    items: int
    missing: int

    def __str__(self) -> str:
        return (
            f"waiting for labels: {self.missing} of {self.items} items in {self.file} have none; "
            "fill in `label` and start again with --ckpt_path last"
        )


class LabelFolder:
    """A folder through which a run asks people for labels.

    With several processes the first alone calls :meth:`write`; all of them call :meth:`pending` and :meth:`read` after
    a barrier and see the same.

    Args:
        path: The folder; made when first written to.
        format: ``jsonl``, a JSON object per line; or ``csv`` for spreadsheets, where a label of tokens is their tags
            with spaces between. Rounds already asked for are read in the format they are in.
        class_names: Names of the classes or tags, where known: people may then write names, and read suggestions as
            names.
        classes: Number of classes, where known.

    Attributes:
        skipped: Indices of the items that :meth:`read` last found to be skipped.

    Raises:
        ValueError: If ``format`` is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        format: Literal["jsonl", "csv"] = "jsonl",
        class_names: Sequence[str] | None = None,
        classes: int | None = None,
    ) -> None:
        if format not in ("jsonl", "csv"):
            raise ValueError(f"format must be jsonl or csv, got {format!r}")
        self.path = Path(path).expanduser()
        self.format = format
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.classes = classes
        self.skipped: set[int] = set()
        self._places: dict[int, str] = {}

    # -- asking -------------------------------------------------------------------------------------------------------

    def write(
        self,
        round: int,
        dataset: Any,
        indices: Sequence[int],
        scores: Sequence[float] | None = None,
        suggestions: Sequence[Any] | None = None,
    ) -> Path | None:
        """Ask for labels of items that have not been asked for yet, in a new file that appears as a whole.

        Whoever asks twice, after a kill or as another run on the same folder, gets the labels that are there already.

        Args:
            round: Number of the round, at least 0; 0 is the initial set. Where the folder has gone further, the file
                takes the next number there.
            dataset: What the indices count in.
            indices: The items, in the order in which people should label them.
            scores: How unsure the model is of each.
            suggestions: The model's own label of each: a class number, a list of tag numbers, or names; None where it
                has none.

        Returns:
            The file; None if all items have been asked for.

        Raises:
            ValueError: If an argument is out of range, or a stray file of that name holds labels.
        """
        ids = self._checked(round, dataset, indices, scores, suggestions)
        rounds = self._rounds()
        known = {index for _, asked in rounds.values() for index in asked}
        new = [k for k, index in enumerate(ids) if index not in known]
        if not new:
            return None
        round = max(round, self.next_round())
        path = self.path / f"round_{round:03d}.{self.format}"
        if path.is_file() and any(record.label is not None for record in records_of(path)):
            raise ValueError(f"{path} holds labels that {self.path / 'state.json'} knows nothing of: move it away")
        records = []
        for k in new:
            index = ids[k]
            shown = {f"data.{name}" if name in OWN else name: each for name, each in describe(dataset, index).items()}
            record = {"id": index, "fingerprint": fingerprint(dataset, index), **shown}
            if scores is not None:
                record["score"] = float(f"{float(scores[k]):.4g}")  # digits that help a person
            if suggestions is not None:
                record["suggestion"] = self._named(suggestions[k])
            records.append(record | {"label": None})
        # A round is asked for once its file is whole: killed before, it is written again.
        rundir.write(path, as_text(records, path.suffix))
        rounds[round] = (path, [ids[k] for k in new])
        state = {str(number): {"file": file.name, "ids": asked} for number, (file, asked) in sorted(rounds.items())}
        rundir.write(self.path / "state.json", json.dumps({"rounds": state}) + "\n")
        rundir.write(self.path / "README.txt", self._readme("tokens" in records[0]))
        return path

    def next_round(self) -> int:
        """The number after the highest round asked for; 0 in a new folder."""
        return max(self._rounds(), default=-1) + 1

    # -- reading ------------------------------------------------------------------------------------------------------

    def pending(self) -> Pending | None:
        """The first round that lacks labels, or None if every item asked for has one or is skipped.

        Raises:
            ValueError: If a file is malformed; the message begins with ``file:line``.
            FileNotFoundError: If a round's file is gone.
        """
        for number, (path, asked) in sorted(self._rounds().items()):
            filled = {record.item for record in records_of(path) if record.label is not None}
            missing = len(set(asked) - filled)
            if missing:
                return Pending(number, path, len(asked), missing)
        return None

    def read(self, dataset: Any) -> dict[int, Any]:
        """Labels of all rounds, checked.

        Args:
            dataset: What the indices count in.

        Returns:
            Labels by index, by round, without those skipped: class numbers; lists of tags for items described by
            ``tokens``; what was written where the data set has a ``set_labels`` of its own.

        Raises:
            ValueError: If a file is malformed, an id is unknown, was not asked for in that round or stands there twice,
                the data are not those that were asked about, a label is missing, no class, or of the wrong length. The
                message names file and line.
            FileNotFoundError: If a round's file is gone.
        """
        own, labels = takes_own_labels(dataset), {}
        self._places, self.skipped = {}, set()
        for number, (path, asked) in sorted(self._rounds().items()):
            wanted = set(asked)
            for record in records_of(path):
                place, index = record.place, record.item
                if index not in wanted or not 0 <= index < len(dataset):
                    raise ValueError(f"{place}: id {index} {self._stranger(index, len(dataset), number)}")
                if index in self._places:
                    raise ValueError(f"{place}: id {index} stands there twice, first in {self._places[index]}")
                self._places[index] = place
                if record.label is None:
                    continue
                if record.fingerprint not in ("", fingerprint(dataset, index)):
                    raise ValueError(
                        f"{place}: id {index} is another item in these data than the one that was labelled "
                        f"(fingerprint {record.fingerprint}): give the run the data and the split it began with"
                    )
                if isinstance(record.label, str) and record.label.lower() == SKIP:
                    self.skipped.add(index)
                else:
                    labels[index] = self._label(dataset, record, own)
            missing = [index for index in asked if index not in labels and index not in self.skipped]
            if missing:
                raise ValueError(
                    f"{path}: {len(missing)} of {len(asked)} items have no label yet, the first is id {missing[0]}"
                )
        return labels

    def apply(self, dataset: Any, labels: Mapping[int, Any]) -> None:
        """Fill labels into the data set; see :func:`framework.active.items.set_labels`.

        Raises:
            TypeError: If the data set keeps its labels where they cannot be changed.
            ValueError: If the data set refuses a label; the message names file and line, or the folder where the labels
                are not those of :meth:`read`.
        """
        try:
            set_labels(dataset, labels)
        except ValueError:
            for index, label in labels.items():  # the data set knows neither file nor id: find the one it refuses
                try:
                    set_labels(dataset, {index: label})
                except ValueError as error:
                    raise ValueError(f"{self._places.get(index, self.path)}: id {index}: {error}") from None
            raise

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _rounds(self) -> dict[int, tuple[Path, list[int]]]:
        """File and items of every round asked for."""
        file = self.path / "state.json"
        if not file.is_file():
            for stray in sorted([*self.path.glob("round_*.jsonl"), *self.path.glob("round_*.csv")]):
                if any(record.label is not None for record in records_of(stray)):
                    raise ValueError(f"{stray} holds labels, but {file}, which says what was asked, is gone")
            return {}
        try:
            rounds = json.loads(file.read_text(encoding="utf-8"))["rounds"]
            return {int(r): (self.path / each["file"], [int(i) for i in each["ids"]]) for r, each in rounds.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged ({error}): take it back from a copy") from None

    @staticmethod
    def _checked(
        round: int,
        dataset: Any,
        indices: Sequence[int],
        scores: Sequence[float] | None,
        suggestions: Sequence[Any] | None,
    ) -> list[int]:
        ids = [int(index) for index in indices]
        if round < 0:
            raise ValueError(f"round must be at least 0, got {round}")
        if not ids:
            raise ValueError("indices must not be empty: there would be nothing to label")
        if min(ids) < 0 or max(ids) >= len(dataset):
            bad = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(f"indices must be in [0, {len(dataset)}), got {bad}")
        if len(set(ids)) < len(ids):
            raise ValueError(f"indices must be different, got {next(i for i in ids if ids.count(i) > 1)} twice")
        for field, given in (("scores", scores), ("suggestions", suggestions)):
            if given is not None and len(given) != len(ids):
                raise ValueError(f"{field} must be one per item: {len(given)} for {len(ids)} items")
        return ids

    def _named(self, suggestion: Any) -> Any:
        """A suggestion as people read it: names of classes where they are known."""
        plain = suggestion.tolist() if hasattr(suggestion, "tolist") else suggestion
        if isinstance(plain, list | tuple):
            return [self._named(each) for each in plain]
        if isinstance(plain, int) and self.class_names is not None and 0 <= plain < len(self.class_names):
            return self.class_names[plain]
        return plain

    def _stranger(self, index: int, items: int, number: int) -> str:
        if not 0 <= index < items:
            return f"does not exist: the data have {items} items"
        for other, (path, asked) in self._rounds().items():
            if index in asked:
                return f"was asked for in round {other} ({path.name}), not in round {number}"
        return "was asked for in no round"

    def _label(self, dataset: Any, record: Record, own: bool) -> Any:
        if not own:
            try:
                return as_class(record.label, self.class_names, self.classes)
            except ValueError as error:
                raise ValueError(f"{record.place}: id {record.item}: {error}") from None
        tokens = describe(dataset, record.item).get("tokens")
        if not isinstance(tokens, list):
            return record.label
        tags = record.label.split() if isinstance(record.label, str) else record.label
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ValueError(f"{record.place}: id {record.item}: label must be a tag per token, got {tags!r}")
        if len(tags) != len(tokens):
            raise ValueError(f"{record.place}: id {record.item} has {len(tokens)} tokens, but {len(tags)} tags")
        return tags

    def _readme(self, tokens: bool) -> str:
        example = {"jsonl": ", which is null", "csv": ""}[self.format]
        if tokens:
            allowed = "A label is one tag per token, with spaces between" + (
                ', or a JSON list: "label": ["O", "O"].' if self.format == "jsonl" else "."
            )
        else:
            allowed = "A label is the name or the number of a class."
        if self.class_names is not None:
            title = "Tags" if tokens else "Classes"
            allowed += f"\n{title}: {', '.join(self.class_names)}."
        return README.format(format=self.format, example=example, allowed=allowed + "\n")

"""Named entities in CoNLL's columns: public corpora by name, and anybody's own files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from datamodules._corpora import CORPORA, corpus_files, own_files
from framework.text.buckets import LengthBuckets
from framework.text.conll import Annotated, read_conll, read_plain
from framework.text.pieces import encode_pieces, load_tokenizer
from framework.text.sentences import Sentences, collate
from framework.text.tags import SCHEMES, Scheme, tag_names
from framework.text.vectors import ppmi_vectors, read_vectors
from framework.text.vocabulary import Vocabulary


class Conll(LightningDataModule):
    """Sentences with named entities, one token per line: a public corpus by name, or a folder of your own.

    A batch is a :class:`framework.text.batch.TokenBatch` of sentences of similar length. Tags of any scheme are read
    and become IOBES. The vocabulary is that of the whole training text, labelled or not, chosen or not, so that numbers
    of words stay the same whatever is bought, left out or shared.

    Args:
        data: ``btc`` (Broad Twitter Corpus), ``wnut17`` (emerging entities) or ``wikineural`` (English WikiNEuRal):
            ``train.conll.gz``, ``dev.conll.gz`` and ``test.conll.gz`` in their folder of ``data_dir``.
        path: Instead of ``data``, a folder with files ``train``, ``dev`` (or ``valid``) and perhaps ``test``, ending in
            ``.conll``, ``.txt``, ``.tsv`` and so on, gzipped or not; or CoNLL-2003's ``eng.train``, ``eng.testa``,
            ``eng.testb``.
        data_dir: Folder of the public corpora. None means the environment variable ``FULGURITE_DATA``, else ``data``.
        tag_column: Column of the tags from 0, negative from the end.
        token_column: Column of the tokens, likewise.
        scheme: ``auto`` takes tags of any scheme; ``iob1``, ``iob2`` or ``iobes`` make tags that break it an error.
        types: Entity types; None for those in the files. Needed where nothing is labelled yet.
        genres: Train on sentences of these genres only (comments ``# genre = x``); None for all.
        exclude_genres: Train without sentences of these genres.
        share: Share of the words left after that to train on, drawn by sentence, in (0, 1]; smaller shares of the same
            seed are parts of larger ones.
        seed: Seed of ``share``.
        batch_size: Most sentences of a training batch, at least 1.
        min_batches: Training batches shrink, down to one sentence, where there would be fewer than this.
        eval_batch_size: Sentences per batch elsewhere, at least 1.
        lower: Whether words are numbered regardless of case; characters always keep theirs.
        min_count: Words that occur less often in the training text are unknown.
        max_word_length: Characters of a word beyond this are cut off.
        vectors: What :meth:`word_vectors` gives: ``random`` nothing, ``ppmi`` vectors derived from the training text,
            otherwise a file in GloVe's text format.
        vector_dim: Numbers per word; None means 100 for ``ppmi``, and whatever a file has.
        cache_dir: Folder to keep derived vectors in; None for ``fulgurite/vectors`` in the user's cache folder.
        tokenizer: Name or folder of a Hugging Face tokenizer, for taggers that want sub-word pieces.
        predict_path: Sentences to predict; None for the test sentences.
        predict_format: ``conll``, ``text`` (a sentence per line), or ``auto``: ``text`` if the name ends in ``.txt``.
        predict_tokens: How a line of text becomes tokens: ``whitespace``, or ``words`` as
            :func:`framework.text.conll.tokenize` does.
        test_with_validation: Whether validation goes through the test sentences as well, as a second loader.
        num_workers: Processes that load batches; 0 is quickest, the data are in memory.

    Attributes:
        words: Number of word ids (reads the files when first asked, as the next three do).
        characters: Number of character ids.
        tags: IOBES names of the tags, by number.
        vocabulary: Words with their counts, and characters.

    Raises:
        ValueError: If an argument is out of range; when the data are first needed, if a file is malformed.
        FileNotFoundError: When the data are first needed, if a file is missing; the message says where it comes from.
    """

    def __init__(
        self,
        data: Literal["btc", "wnut17", "wikineural"] | None = None,
        path: str | None = None,
        data_dir: str | None = None,
        tag_column: int = -1,
        token_column: int = 0,
        scheme: Literal["auto", "iob1", "iob2", "iobes"] = "auto",
        types: list[str] | None = None,
        genres: list[str] | None = None,
        exclude_genres: list[str] | None = None,
        share: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
        min_batches: int = 10,
        eval_batch_size: int = 128,
        lower: bool = True,
        min_count: int = 1,
        max_word_length: int = 20,
        vectors: str = "random",
        vector_dim: int | None = None,
        cache_dir: str | None = None,
        tokenizer: str | None = None,
        predict_path: str | None = None,
        predict_format: Literal["auto", "conll", "text"] = "auto",
        predict_tokens: Literal["whitespace", "words"] = "whitespace",
        test_with_validation: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if (data is None) == (path is None):
            raise ValueError(f"give either data or path, got data={data!r} and path={path!r}")
        for field, value, allowed in (
            ("data", data, (None, *CORPORA)),
            ("scheme", scheme, ("auto", *SCHEMES)),
            ("predict_format", predict_format, ("auto", "conll", "text")),
            ("predict_tokens", predict_tokens, ("whitespace", "words")),
        ):
            if value not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(filter(None, allowed))}, got {value!r}")
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")
        for field, number in (
            ("batch_size", batch_size),
            ("min_batches", min_batches),
            ("eval_batch_size", eval_batch_size),
            ("min_count", min_count),
            ("max_word_length", max_word_length),
            ("vector_dim", 1 if vector_dim is None else vector_dim),
        ):
            if number < 1:
                raise ValueError(f"{field} must be at least 1, got {number}")
        self.save_hyperparameters()

    @cached_property
    def corpus(self) -> dict[str, Annotated]:
        """Sentences of the parts ``train``, ``dev`` and, if there is one, ``test``; read once, when first needed."""
        return {part: self._read(file) for part, file in self._files().items()}

    @cached_property
    def types(self) -> list[str]:
        """Entity types: those given, else all in the files, sorted."""
        found = sorted({kind for part in self.corpus.values() for kind in part.types})
        given: list[str] | None = self.hparams["types"]
        if given is not None and set(found) - set(given):
            raise ValueError(f"types must name every type in the files: {', '.join(found)}, got {', '.join(given)}")
        if not (given or found):
            raise ValueError("types must be given because no sentence in the files has an entity")
        return list(given or found)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Words and characters of the whole training text."""
        return Vocabulary(self.corpus["train"].tokens, self.hparams["lower"], self.hparams["min_count"])

    @property
    def words(self) -> int:
        """Number of word ids."""
        return len(self.vocabulary.words)

    @property
    def characters(self) -> int:
        """Number of character ids."""
        return self.vocabulary.character_count

    @property
    def tags(self) -> list[str]:
        """IOBES names of the tags, by number."""
        return tag_names(self.types)

    def word_vectors(self) -> Tensor | None:
        """Vectors to begin with, for models that embed words.

        Returns:
            Shape ``(words, numbers per word)``, float32; None for ``vectors: random``.
        """
        return self._vectors

    @cached_property
    def train(self) -> Sentences:
        """Sentences to train on."""
        return self._sentences(self.corpus["train"].take(self._chosen()))

    @cached_property
    def dev(self) -> Sentences:
        """Sentences to validate on."""
        return self._evaluated("dev")

    @cached_property
    def test(self) -> Sentences:
        """Sentences to test on."""
        return self._evaluated("test")

    @cached_property
    def predict(self) -> Sentences:
        """Sentences to predict."""
        if self.hparams["predict_path"] is None:
            return self.test
        path = Path(self.hparams["predict_path"]).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"predict_path is not a file: {path}")
        form = self.hparams["predict_format"]
        if form == "text" or (form == "auto" and path.name.removesuffix(".gz").endswith(".txt")):
            return self._sentences(read_plain(path, self.hparams["predict_tokens"]))
        return self._sentences(self._read(path))

    def prepare_data(self) -> None:
        self._files()
        if self.hparams["vectors"] == "ppmi":
            self.word_vectors()  # by one process, for all of them to find
        if self.hparams["tokenizer"] is not None:
            load_tokenizer(self.hparams["tokenizer"])

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            _ = self.train
        if stage in (None, "fit", "validate"):
            _ = self.dev
        if stage == "test" or (stage in ("fit", "validate") and self.hparams["test_with_validation"]):
            _ = self.test
        if stage == "predict":
            _ = self.predict

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = RandomSampler(self.train)
        buckets = LengthBuckets(sampler, self.train.words, self.hparams["batch_size"], self.hparams["min_batches"])
        return self._loader(self.train, buckets)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [
            self._in_order(self.dev),
            *([self._in_order(self.test)] if self.hparams["test_with_validation"] else []),
        ]

    def test_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self.test)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._in_order(self.predict)

    def state_dict(self) -> dict[str, Any]:
        """What the numbers in a batch mean; goes into checkpoints."""
        return {"vocabulary": self.vocabulary.fingerprint, "tags": self.tags}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint whose numbers mean something else."""
        if state_dict["tags"] != self.tags:
            was, now = ", ".join(state_dict["tags"]), ", ".join(self.tags)
            raise ValueError(f"the checkpoint was made for the tags {was}, and the data have {now}")
        if state_dict["vocabulary"] != self.vocabulary.fingerprint:
            raise ValueError(
                "the checkpoint was made with another vocabulary: it needs the same training text, "
                f"lower and min_count (now lower={self.hparams['lower']}, min_count={self.hparams['min_count']})"
            )

    @cached_property
    def _vectors(self) -> Tensor | None:
        vectors, dim = self.hparams["vectors"], self.hparams["vector_dim"]
        if vectors == "random":
            return None
        if vectors == "ppmi":
            text = self.corpus["train"].tokens
            return ppmi_vectors(text, self.vocabulary, dim or 100, cache=self.hparams["cache_dir"])
        if not Path(vectors).expanduser().is_file():
            raise FileNotFoundError(f"vectors must be random, ppmi or a file that exists, got {vectors!r}")
        return read_vectors(vectors, self.vocabulary, dim)

    def _files(self) -> dict[str, Path]:
        p = self.hparams
        return own_files(p["path"]) if p["data"] is None else corpus_files(p["data"], p["data_dir"])

    def _read(self, file: Path) -> Annotated:
        scheme: Literal["auto"] | Scheme = self.hparams["scheme"]
        return read_conll(file, self.hparams["tag_column"], self.hparams["token_column"], scheme)

    def _chosen(self) -> list[int]:
        """Which of the training sentences to train on."""
        train, p = self.corpus["train"], self.hparams
        known = sorted(set(train.genres) - {""})
        for field in ("genres", "exclude_genres"):
            unknown = sorted(set(p[field] or ()) - set(known))
            if unknown:
                has = f"are {', '.join(known)}" if known else "has the training file none"
                raise ValueError(f"{field}: unknown genres {', '.join(unknown)}, known {has}")
        wanted, unwanted = set(p["genres"] or train.genres), set(p["exclude_genres"] or ())
        kept = [i for i, genre in enumerate(train.genres) if genre in wanted - unwanted]
        if not kept:
            raise ValueError(f"genres {p['genres']} without exclude_genres {p['exclude_genres']} leave no sentence")
        if p["share"] == 1:
            return kept
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(p["seed"]))
        bought = torch.tensor([len(train.tokens[kept[i]]) for i in order.tolist()]).cumsum(0)
        count = int((bought < p["share"] * bought[-1]).sum()) + 1
        return sorted(kept[i] for i in order[:count].tolist())

    def _evaluated(self, part: str) -> Sentences:
        if part not in self.corpus:
            raise ValueError(f"path has no file of {part}: {self.hparams['path']}")
        data = self._sentences(self.corpus[part])
        if not data.is_labelled().any():
            raise ValueError(f"the {part} file must have labels to measure by")
        return data

    def _sentences(self, annotated: Annotated) -> Sentences:
        p, pieces = self.hparams, None
        if p["tokenizer"] is not None:
            pieces = encode_pieces(load_tokenizer(p["tokenizer"]), annotated.tokens)
        return Sentences(annotated, self.vocabulary, self.tags, p["max_word_length"], pieces)

    def _in_order(self, data: Sentences) -> DataLoader[Any]:
        return self._loader(data, LengthBuckets(SequentialSampler(data), data.words, self.hparams["eval_batch_size"]))

    def _loader(self, data: Sentences, buckets: LengthBuckets) -> DataLoader[Any]:
        return DataLoader(data, batch_sampler=buckets, collate_fn=collate, num_workers=self.hparams["num_workers"])

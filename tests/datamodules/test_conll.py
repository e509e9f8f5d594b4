"""Conll: corpora by name and files of one's own, what is trained on, and loaders under Lightning, alone and in twos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import make_tiny
import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from datamodules.conll import Conll
from framework.loaders import Pool, TrainPath, reindex
from framework.text.tags import spans


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(make_tiny.tiny_conll(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def own(tmp_path):
    """Write files of one's own; text by name."""

    def own(**files: str) -> str:
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        return str(tmp_path)

    return own


def seen(loader: DataLoader) -> list[int]:
    return [i for batch in loader for i in batch.index.tolist()]


class Seen(LightningModule):
    """Notes the sentences of the batches it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[int]] = {}

    def note(self, stage: str, batch) -> None:
        self.seen.setdefault(stage, []).extend(batch.index.tolist())

    def training_step(self, batch, batch_idx):
        self.note(f"train{self.current_epoch}", batch)
        return self.weight * 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.note(f"val{dataloader_idx}", batch)

    def test_step(self, batch, batch_idx):
        self.note("test", batch)

    def predict_step(self, batch, batch_idx):
        self.note("predict", batch)
        assert batch.tokens[0], "batches carry tokens"

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


# -- what is read


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        ("btc", ["LOC", "ORG", "PER"]),
        ("wnut17", ["corporation", "creative-work", "group", "location", "person", "product"]),
        ("wikineural", ["LOC", "MISC", "ORG", "PER"]),
    ],
)
def test_corpora_by_name(tiny, data, kinds):
    conll = Conll(data, data_dir=tiny)
    assert (conll.types, len(conll.tags)) == (kinds, 4 * len(kinds) + 1)  # before setup
    assert conll.words == len(conll.vocabulary.words)
    conll.setup("fit")
    conll.setup("test")
    assert [len(part) for part in (conll.train, conll.dev, conll.test)] == [240, 60, 60]
    batch = next(iter(conll.train_dataloader()))
    assert (len(batch.index), batch.tags.shape) == (24, batch.mask.shape)  # 240 sentences make 10 batches
    assert batch.words.max() < conll.words
    assert batch.chars.max() < conll.characters
    assert set(conll.train.genres) == (set(make_tiny.TEMPLATES) if data == "btc" else {""})
    held_out = {token for part in (conll.dev, conll.test) for tokens in part.tokens for token in tokens}
    held_out -= {token for tokens in conll.train.tokens for token in tokens}
    assert len(held_out) > 20, "names held out of training"


def test_the_real_corpora(data_root_or_skip):
    if not (data_root_or_skip / "btc").is_dir():
        pytest.skip(f"no btc in {data_root_or_skip}")
    conll = Conll("btc", data_dir=str(data_root_or_skip), exclude_genres=["g"])
    conll.setup("fit")
    assert len(conll.train) == 7005 - 1607
    assert conll.words > 20_000, "the vocabulary is that of all genres"
    assert conll.tags[:5] == ["O", "B-LOC", "I-LOC", "E-LOC", "S-LOC"]
    assert sum(len(spans(conll.dev.tags_of(i))) for i in range(len(conll.dev))) == 1461
    assert max(batch.chars.shape[1] for batch in conll.train_dataloader()) == 22


def test_files_of_ones_own(own):
    path = own(
        eng_train="-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nhas VBZ I-VP O\n",
        eng_testa="Ann NNP I-NP I-PER\nLee NNP I-NP I-PER\nBob NNP I-NP B-PER\n",
    )
    conll = Conll(path=path, scheme="iob1")
    assert conll.types == ["ORG", "PER"]
    assert conll.dev.tags_of(0) == ["B-PER", "E-PER", "S-PER"]
    with pytest.raises(ValueError, match="path has no file of test"):
        conll.setup("test")
    with pytest.raises(ValueError, match=r"eng.train:3: I-ORG breaks the rules of scheme iob2"):
        _ = Conll(path=path, scheme="iob2").tags


def test_an_unlabelled_pool_needs_types(own):
    path = own(train_txt="Ann\nsleeps\n\nBob\n", dev_txt="Eve\tS-PER\n")
    conll = Conll(path=path, types=["LOC", "PER"])
    assert conll.tags[1] == "B-LOC"
    assert not conll.train.is_labelled().any()
    assert next(iter(conll.train_dataloader())).tags.unique().tolist() == [-100]
    conll.train.set_labels({1: "B-PER"})
    conll.setup("fit")
    assert conll.train.is_labelled().tolist() == [False, True], "setup keeps labels given by hand"
    with pytest.raises(ValueError, match="types must name every type in the files: PER, got LOC"):
        _ = Conll(path=path, types=["LOC"]).tags
    own(dev_txt="Eve\n")
    with pytest.raises(ValueError, match="types must be given because no sentence in the files has an entity"):
        _ = Conll(path=path).tags
    with pytest.raises(ValueError, match="the dev file must have labels to measure by"):
        Conll(path=path, types=["LOC"]).setup("fit")


def test_missing_files_are_named(tmp_path, own):
    with pytest.raises(
        FileNotFoundError, match=r"data wnut17 needs files .*wnut17: train.conll.gz, dev.*github.com/leon"
    ):
        Conll("wnut17", data_dir=str(tmp_path)).prepare_data()
    with pytest.raises(FileNotFoundError, match="path is not a folder"):
        Conll(path=str(tmp_path / "no")).prepare_data()
    path = own(train_conll="a\tO\n")
    with pytest.raises(FileNotFoundError, match=r"path has no file of dev \(dev or valid or val"):
        Conll(path=path).prepare_data()
    own(valid_txt="a\tO\n", dev_tsv="a\tO\n")
    with pytest.raises(ValueError, match=r"path must hold one file of dev, got dev.tsv, valid.txt in "):
        Conll(path=path).prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "give either data or path, got data=None and path=None"),
        ({"path": "x"}, "give either data or path, got data='btc' and path='x'"),
        ({"data": "conll"}, "data must be one of btc, wnut17, wikineural, got 'conll'"),
        ({"scheme": "bio"}, "scheme must be one of auto, iob1, iob2, iobes, got 'bio'"),
        ({"predict_format": "csv"}, "predict_format must be one of auto, conll, text, got 'csv'"),
        ({"predict_tokens": "chars"}, "predict_tokens must be one of whitespace, words, got 'chars'"),
        ({"share": 0}, r"share must be in \(0, 1\], got 0"),
        ({"share": 1.1}, r"share must be in \(0, 1\], got 1.1"),
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("batch_size", "min_batches", "eval_batch_size", "min_count", "max_word_length", "vector_dim")
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Conll(**({"data": "btc"} | options))


# -- what is trained on


def test_genres_are_chosen_or_left_out(tiny):
    every = Conll("btc", data_dir=tiny)
    some = Conll("btc", data_dir=tiny, genres=["g", "a"], exclude_genres=["a"])
    assert set(some.train.genres) == {"g"}
    without = Conll("btc", data_dir=tiny, exclude_genres=["g"])
    assert len(without.train) + len(some.train) == len(every.train)
    assert without.vocabulary.fingerprint == every.vocabulary.fingerprint
    with pytest.raises(ValueError, match="exclude_genres: unknown genres x, known are a, b, e, f, g, h"):
        Conll("btc", data_dir=tiny, exclude_genres=["x"]).setup("fit")
    with pytest.raises(ValueError, match="genres: unknown genres a, known has the training file none"):
        Conll("wnut17", data_dir=tiny, genres=["a"]).setup("fit")
    with pytest.raises(ValueError, match=r"genres \['a'\] without exclude_genres \['a'\] leave no sentence"):
        Conll("btc", data_dir=tiny, genres=["a"], exclude_genres=["a"]).setup("fit")


def test_shares_are_random_and_nested(tiny):
    def sentences(share: float, seed: int = 0) -> tuple[list[str], int]:
        data = Conll("btc", data_dir=tiny, share=share, seed=seed).train
        return [" ".join(tokens) for tokens in data.tokens], int(data.words.sum())

    whole, words = sentences(1)
    half, half_words = sentences(0.5)
    assert 0.5 * words <= half_words < 0.5 * words + 20, "one sentence more than the share at most"
    remaining = iter(whole)
    assert all(sentence in remaining for sentence in half), "in the order of the file"
    assert set(sentences(0.2)[0]) <= set(half)
    assert sentences(0.5, seed=1)[0] != half
    assert len(sentences(1e-6)[0]) == 1


# -- loaders


def test_loaders_serve_everything_once(tiny):
    conll = Conll("btc", data_dir=tiny, test_with_validation=True, eval_batch_size=25)
    assert sorted(seen(conll.train_dataloader())) == list(range(240))
    dev, test = conll.val_dataloader()
    for loader, data in ((dev, conll.dev), (test, conll.test), (conll.test_dataloader(), conll.test)):
        order = seen(loader)
        assert sorted(order) == list(range(60))
        assert torch.equal(data.words[order], data.words.sort().values), "from short to long"
        assert [len(batch.index) for batch in loader] == [25, 25, 10]
    assert len(Conll("btc", data_dir=tiny).val_dataloader()) == 1
    workers = Conll("btc", data_dir=tiny, num_workers=1)
    assert sorted(seen(workers.test_dataloader())) == list(range(60))


def test_a_pool_is_followed(tiny):
    conll = Conll("btc", data_dir=tiny)
    loader = reindex(conll.train_dataloader(), [7, 3, 200])
    assert sorted(seen(loader)) == [3, 7, 200]
    assert len(loader) == 3, "a tiny pool makes batches of one sentence"


def test_under_lightning_with_a_pool(tiny):
    conll, module = Conll("btc", data_dir=tiny, test_with_validation=True), Seen()
    path = TrainPath.on(conll).add(Pool([5, 9, 100, 200]))
    trainer = Trainer(max_epochs=2, accelerator="cpu", reload_dataloaders_every_n_epochs=1, **QUIET)
    trainer.fit(module, conll)
    path.remove(path.stages[0])
    assert sorted(module.seen["train0"]) == sorted(module.seen["train1"]) == [5, 9, 100, 200]
    assert set(module.seen["val0"]) == set(module.seen["val1"]) == set(range(60))
    trainer.predict(module, conll, return_predictions=False)
    assert sorted(module.seen["predict"]) == list(range(60))


TWO_RANKS = """
import json, os, sys
sys.path[:0] = {paths!r}
import torch
from lightning import Trainer
from datamodules.conll import Conll
from framework.loaders import Pool, TrainPath
from test_conll import QUIET, Seen

def run(name, pool):
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))  # ranks need not agree for every item to come once
    conll, module = Conll("btc", data_dir={tiny!r}, batch_size=7), Seen()
    if pool:
        TrainPath.on(conll).add(Pool(pool))
    trainer = Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1, **QUIET)
    trainer.fit(module, conll)
    trainer.test(module, conll, verbose=False)
    trainer.predict(module, conll, return_predictions=False)
    with open({out!r} + f"/{{name}}{{trainer.global_rank}}.json", "w") as file:
        json.dump(module.seen, file)

run("all", [])
run("pool", [5, 9, 100, 200, 201])
"""


@pytest.mark.process
def test_two_ranks_share_every_sentence(tiny, tmp_path):
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1]), str(here.parent / "data")]
    (tmp_path / "script.py").write_text(TWO_RANKS.format(paths=paths, tiny=tiny, out=str(tmp_path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, items in (("all", list(range(240))), ("pool", [5, 9, 100, 200, 201])):
        ranks = [json.loads((tmp_path / f"{name}{rank}.json").read_text()) for rank in range(2)]
        for stage, whole in (("train0", items), ("train1", items), ("test", range(60)), ("predict", range(60))):
            first, second = (rank[stage] for rank in ranks)
            assert set(first) | set(second) == set(whole), (name, stage)
            assert len(set(first) & set(second)) <= len(whole) % 2, "each rank has its own share"
            assert abs(len(first) - len(second)) <= 1
        assert ranks[0]["train0"] != ranks[0]["train1"], "another order in another epoch"


# -- vectors, checkpoints, prediction


def test_word_vectors(tiny, tmp_path):
    assert Conll("btc", data_dir=tiny).word_vectors() is None
    derived = Conll("btc", data_dir=tiny, vectors="ppmi", vector_dim=12, cache_dir=str(tmp_path))
    derived.prepare_data()
    assert len(list(tmp_path.iterdir())) == 1
    assert derived.word_vectors().shape == (derived.words, 12)
    some = Conll("btc", data_dir=tiny, vectors="ppmi", vector_dim=12, cache_dir=str(tmp_path), share=0.1)
    assert torch.equal(some.word_vectors(), derived.word_vectors()), "from the whole pool's text"
    file = tmp_path / "glove.txt"
    file.write_text("happy 1 2 3\nlol 4 5 6\n")
    read = Conll("btc", data_dir=tiny, vectors=str(file))
    assert read.word_vectors()[read.vocabulary.words.index("lol")].tolist() == [4, 5, 6]
    with pytest.raises(FileNotFoundError, match="vectors must be random, ppmi or a file that exists, got 'glove'"):
        Conll("btc", data_dir=tiny, vectors="glove").word_vectors()


def test_a_checkpoint_of_other_data_is_refused(tiny, tmp_path):
    trainer = Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    trainer.fit(Seen(), Conll("btc", data_dir=tiny))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)

    def resume(**options) -> None:
        resumed = Trainer(max_epochs=2, accelerator="cpu", **QUIET)
        resumed.fit(Seen(), Conll(data_dir=tiny, **options), ckpt_path=str(tmp_path / "a.ckpt"))

    resume(data="btc", share=0.5)
    with pytest.raises(ValueError, match=r"another vocabulary: .* lower and min_count .now lower=False, min_count=1"):
        resume(data="btc", lower=False)
    with pytest.raises(ValueError, match=r"made for the tags O, B-LOC, .*, and the data have O, B-corp") as caught:
        resume(data="wnut17")
    assert "\n" not in str(caught.value)


def test_sentences_to_predict(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("Ann's home .\n\nHi\n")
    (tmp_path / "a.conll").write_text("Ann O\nsleeps O\n")

    def tokens(name: str, **options) -> list[list[str]]:
        conll = Conll("btc", data_dir=tiny, predict_path=str(tmp_path / name), **options)
        conll.setup("predict")
        assert sorted(seen(conll.predict_dataloader())) == list(range(len(conll.predict)))
        return conll.predict.tokens

    assert tokens("a.txt") == [["Ann's", "home", "."], ["Hi"]]
    assert tokens("a.txt", predict_tokens="words")[0] == ["Ann", "'s", "home", "."]
    assert tokens("a.conll") == [["Ann", "sleeps"]]
    assert tokens("a.conll", predict_format="text") == [["Ann", "O"], ["sleeps", "O"]]
    with pytest.raises(FileNotFoundError, match="predict_path is not a file"):
        tokens("b.txt")


def test_pieces_come_with_the_batches(tiny, tmp_path):
    transformers = pytest.importorskip("transformers")
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    conll = Conll("btc", data_dir=tiny, tokenizer=str(tmp_path))
    conll.prepare_data()
    batch = next(iter(conll.train_dataloader()))
    assert batch.first_piece.shape == batch.mask.shape
    spelled = [vocabulary[piece] for piece in batch.pieces.gather(1, batch.first_piece)[batch.mask].tolist()]
    assert spelled == [token[0].lower() for tokens in batch.tokens for token in tokens]

"""Predicted tags as a file: order, comments, schemes, two ranks."""

import os
import subprocess
import sys
from pathlib import Path

import make_tiny
import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from callbacks.conll_output import WriteConll
from datamodules.conll import Conll
from framework.text.conll import read_conll
from framework.text.tags import convert
from modules.ner.module import Tagger

PLAIN = """Anna visited Lotenburg with #fun today
lol

see you in Karaburg , Anna and Milovoson !
"""
COLUMNS = """# id = 1
# genre = news
pray\tO
for\tO
Karaburg\tS-LOC

lol\tO

#sad\tO

# id = 4
Anna\tB-PER
Vocorp\tE-PER
slept\tO
"""


@pytest.fixture
def corpora(tmp_path):
    return str(make_tiny.tiny_conll(tmp_path / "corpora", sentences=(60, 10, 10)))


def tagger(data):
    seed_everything(0, verbose=False)
    small = {"word_filters": 16, "decoder_units": 8, "char_filters": 8, "word_dim": 8}
    return Tagger(data.words, data.characters, data.tags, **small)


def predict(folder, module, data, **options):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[WriteConll(str(folder), **options)]
    )
    trainer.predict(module, data, return_predictions=False)
    return folder / "predictions.conll"


def test_plain_text_gets_the_tags_of_a_direct_call(tmp_path, corpora):
    (tmp_path / "a.txt").write_text(PLAIN)
    data = Conll("btc", data_dir=corpora, predict_path=str(tmp_path / "a.txt"), eval_batch_size=2)
    module = tagger(data)
    file = predict(tmp_path / "out", module, data, scheme="iobes")
    assert os.listdir(tmp_path / "out") == ["predictions.conll"]
    blocks = [[line.split("\t") for line in block.split("\n")] for block in file.read_text().strip().split("\n\n")]
    lines = [line.split() for line in PLAIN.splitlines() if line]
    assert [[token for token, _, _ in block] for block in blocks] == lines
    with torch.no_grad():
        decisions = module.eval()(data.predict.batch(torch.arange(3)))
    seen = set()
    for block, log_probs, chosen in zip(blocks, decisions.log_probs, decisions.chosen.tolist(), strict=True):
        assert [tag for _, tag, _ in block] == convert([data.tags[tag] for tag in chosen[: len(block)]], "iobes")
        for row, tag, (_, name, confidence) in zip(log_probs, chosen, block, strict=False):
            assert float(confidence) == pytest.approx(row[tag].exp().item(), abs=1e-4)
            seen.add(name)
    assert len(seen) > 1


def test_columns_keep_their_order_and_comments(tmp_path, corpora):
    (tmp_path / "a.conll").write_text(COLUMNS)
    data = Conll("btc", data_dir=corpora, predict_path=str(tmp_path / "a.conll"), eval_batch_size=1)
    module = tagger(data)
    file = predict(tmp_path / "iob2", module, data)
    found, given = read_conll(file, tag_column=1, scheme="iob2"), read_conll(tmp_path / "a.conll")
    assert (found.tokens, found.comments, found.genres) == (given.tokens, given.comments, given.genres)
    other = read_conll(predict(tmp_path / "iobes", module, data, scheme="iobes"), tag_column=1, scheme="iobes")
    assert other.tags == found.tags


def test_several_loaders_follow_one_another(tmp_path, corpora):
    class Both(Conll):
        def predict_dataloader(self):
            return [self._in_order(self.dev), self._in_order(self.test)]

    data = Both("btc", data_dir=corpora)
    file = predict(tmp_path / "out", tagger(data), data)
    found = read_conll(file, tag_column=1)
    assert found.tokens == data.dev.tokens + data.test.tokens
    assert found.genres == data.dev.genres + data.test.genres


def test_what_does_not_tag_tokens_is_refused(tmp_path):
    class Sign(LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch > 0

    with pytest.raises(TypeError, match=r"Sign has no prediction_order \('sentence', 'position'\), which WriteConll"):
        predict(tmp_path / "out", Sign(), DataLoader(torch.arange(3)))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="scheme must be one of iob1, iob2, iobes, got 'bio'"):
        WriteConll(scheme="bio")


TWO_RANKS = """
import sys
sys.path[:0] = {paths!r}
from lightning import Trainer
from callbacks.conll_output import WriteConll
from callbacks.predictions import WritePredictions
from datamodules.conll import Conll
from test_conll_output import tagger

data = Conll("btc", data_dir={corpora!r}, eval_batch_size=3)
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
    callbacks=[WriteConll({out!r}), WritePredictions({out!r})])
trainer.predict(tagger(data), data, return_predictions=False)
"""


@pytest.mark.process
def test_two_ranks_write_what_one_would(tmp_path, corpora):
    here, script = Path(__file__).parent, tmp_path / "two.py"
    paths = [str(here), str(here.parents[1]), str(here.parent / "data")]
    script.write_text(TWO_RANKS.format(paths=paths, corpora=corpora, out=str(tmp_path / "two")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    data = Conll("btc", data_dir=corpora, eval_batch_size=4)
    one = predict(tmp_path / "one", tagger(data), data)
    assert (tmp_path / "two" / "predictions.conll").read_text() == one.read_text()
    assert sorted(os.listdir(tmp_path / "two")) == ["predictions.conll", "predictions.csv"]
    words = [line.split(",")[2:3] for line in (tmp_path / "two" / "predictions.csv").read_text().splitlines()[1:]]
    assert len(words) == sum(map(len, data.test.tokens))

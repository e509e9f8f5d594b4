"""The Lightning module: it learns, it reports the truth, labels stay unseen where they must, checkpoints."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from seqeval.metrics import f1_score

from framework.active.decisions import Embeddable, Scorable
from modules.ner.module import Tagger
from modules.ner.tagger import TaggerNetwork

SMALL = {
    "word_filters": 32,
    "decoder_units": 32,
    "word_units": 16,
    **dict.fromkeys(("input_dropout", "encoder_dropout", "decoder_dropout", "unk_rate"), 0.1),
}


def quiet(**kwargs) -> Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(off, False), **kwargs})


def make(data, **options) -> Tagger:
    return Tagger(**data.sizes, **{**SMALL, **options})


@pytest.mark.parametrize("decoder", ["lstm", "crf", "softmax"])
@pytest.mark.parametrize("encoder", ["cnn", "lstm"])
def test_a_grammar_is_learned_in_seconds(data, encoder, decoder):
    module = make(data, char_encoder=encoder, word_encoder=encoder, decoder=decoder, lr=1e-2)
    trainer = quiet(max_epochs=8, gradient_clip_val=5.0)
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    assert result["test/f1"] > 0.95
    whole = data.batch("test", range(60))
    with torch.no_grad():
        predicted = module.eval()(whole).chosen
        loss = module.network.loss(whole).sum() / whole.mask.sum()
    names = [
        [[data.tags[tag] for tag in row[:n]] for row, n in zip(tags.tolist(), whole.lengths.tolist(), strict=True)]
        for tags in (whole.tags, predicted)
    ]
    assert result["test/f1"] == pytest.approx(f1_score(*names))
    assert result["test/loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)


def test_what_is_logged(make_data):
    data = make_data(second=True)
    module, trainer = make(data), quiet()
    trainer.fit(module, data)
    scores = [f"{stage}/{name}" for stage in ("val", "test") for name in ("loss", "precision", "recall", "f1")]
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert set(logged) == {"train/loss", *scores}
    trainer.validate(module, data.loader("val"), verbose=False)
    again = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert set(again) == {name for name in scores if name.startswith("val")}
    (tested,) = trainer.test(module, data, verbose=False)
    for name, value in {**again, **tested}.items():
        assert logged[name] == pytest.approx(value, rel=1e-5), name


def test_a_third_validation_loader_is_refused(data):
    loaders = [data.loader("val"), data.loader("test"), data.loader("test")]
    with pytest.raises(ValueError, match="two validation loaders at most"):
        quiet().validate(make(data), loaders, verbose=False)


@pytest.mark.parametrize("reduction", ["sum", "sentence", "token"])
def test_reductions_of_the_loss(data, reduction):
    module, batch = make(data, loss_reduction=reduction).eval(), data.batch()
    batch.tags[:5] = -100
    losses = module.network.loss(batch)
    by = {"sum": 1, "sentence": 27, "token": int(batch.mask[5:].sum())}[reduction]
    torch.testing.assert_close(module.training_step(batch, 0), losses.sum() / by)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("reduction", ["sum", "sentence", "token"])
def test_sentences_without_an_entity_weigh_less(data, reduction, weight):
    module, batch = make(data, loss_reduction=reduction, empty_weight=weight).eval(), data.batch()
    batch.tags[:5] = -100
    losses, lengths, outside = module.network.loss(batch).tolist(), batch.lengths.tolist(), data.tags.index("O")
    total = divisor = 0.0
    for row in range(5, 32):
        w = weight if all(tag == outside for tag in batch.tags[row, : lengths[row]].tolist()) else 1.0
        total += w * losses[row]
        divisor += w * {"sum": 0, "sentence": 1, "token": lengths[row]}[reduction]
    assert module.training_step(batch, 0).item() == pytest.approx(total / (divisor or 1), rel=1e-5)


def test_a_batch_of_no_weight_moves_nothing(data):
    module, batch = make(data, empty_weight=0.0), data.batch()
    batch.tags.fill_(data.tags.index("O"))
    module.training_step(batch, 0).backward()
    assert not any(p.grad.any() for p in module.parameters() if p.grad is not None)


def test_a_batch_without_labels_moves_nothing(data):
    module = make(data, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    data.data["train"].tags.fill_(-100)
    before = [parameter.clone() for parameter in module.parameters()]
    trainer = quiet(limit_val_batches=0)
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/loss"].isnan()  # the mean of nothing
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_labels_of_the_pool_do_not_reach_its_scores(data):
    module, batch = make(data).eval(), data.batch()
    assert isinstance(module, Scorable)
    assert isinstance(module, Embeddable)
    other = batch._replace(tags=batch.tags[torch.randperm(32)])
    none = batch._replace(tags=torch.full_like(batch.tags, -100))
    with torch.inference_mode():
        expected = module.acquisition_scores(batch)
        for changed in (other, none):
            for a, b in zip(expected, module.acquisition_scores(changed), strict=True):
                assert torch.equal(a, b)
        assert module.acquisition_embedding(batch).shape == (32, 100)


def test_word_vectors_of_the_data_start_the_embeddings_once(make_data, tmp_path):
    data = make_data()
    data.vectors = torch.randn(data.words, 100)
    module = make(data, lr=1e-9)
    assert not torch.allclose(module.network.embedding.weight, data.vectors)
    trainer = quiet()
    trainer.fit(module, data)
    torch.testing.assert_close(module.network.embedding.weight.data, data.vectors, atol=1e-6, rtol=0)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    learned, data.vectors = data.vectors, torch.randn(data.words, 100)
    quiet().fit(module, data)  # goes on from what it has learned
    torch.testing.assert_close(module.network.embedding.weight.data, learned, atol=1e-6, rtol=0)
    loaded = Tagger.load_from_checkpoint(tmp_path / "a.ckpt", optimizer=torch.optim.SGD, lr=1e-9)
    quiet().fit(loaded, data)
    torch.testing.assert_close(loaded.network.embedding.weight.data, learned, atol=1e-6, rtol=0)


def test_word_vectors_of_another_width_are_refused(make_data):
    data = make_data()
    data.vectors = torch.randn(data.words, 50)
    with pytest.raises(ValueError, match=rf"\({data.words}, 100\), got \({data.words}, 50\): set word_dim to 50"):
        quiet().fit(make(data), data)


def test_predictions_are_rows_of_tokens(data):
    module = make(data)
    data.data["test"].tags[: len(data.data["test"].tokens[0])] = -100
    batches = quiet().predict(module, data)
    columns = {name: [value for batch in batches for value in batch[name]] for name in batches[0]}
    assert list(columns) == ["sentence", "position", "token", "target", "prediction", "confidence"]
    tokens = data.data["test"].tokens
    assert columns["token"] == [token for sentence in tokens for token in sentence]
    assert columns["sentence"] == [number for number, sentence in enumerate(tokens) for _ in sentence]
    assert columns["position"] == [place for sentence in tokens for place in range(len(sentence))]
    first = len(tokens[0])
    assert columns["target"][:first] == [None] * first
    assert columns["target"][first:] == [tag for tags in data.parts["test"].tags[1:] for tag in tags]
    assert set(columns["prediction"]) <= set(data.tags)
    with torch.no_grad():
        log_probs, chosen, mask = module.eval()(data.batch("test", range(60)))
    confidence = log_probs.exp().amax(2)[mask]  # greedy: the likeliest
    torch.testing.assert_close(torch.tensor(columns["confidence"]), confidence, atol=1e-5, rtol=0)
    assert columns["prediction"] == [data.tags[tag] for tag in chosen[mask].tolist()]


def test_checkpoints_load_with_weights_only(data, tmp_path):
    module = make(data, optimizer=torch.optim.SGD, lr=0.1)
    trainer = quiet()
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = Tagger.load_from_checkpoint(tmp_path / "a.ckpt")
    batch = data.batch()
    torch.testing.assert_close(again.eval()(batch).log_probs, module.eval()(batch).log_probs)


def test_figures_after_validation_and_test(data):
    module = make(data)
    assert module.figures() == {}
    trainer = quiet()
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    figures = module.figures()
    assert set(figures) == {f"{name}_{stage}" for name in ("confusion", "scores") for stage in ("val", "test")}
    axes = figures["confusion_test"].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["O", "LOC", "PER"]
    assert sum(int(text.get_text()) for text in axes.texts) == data.data["test"].words.sum()
    kinds = [tick.get_text().split("\n") for tick in figures["scores_test"].axes[0].get_xticklabels()]
    true = [tag[2:] for tags in data.parts["test"].tags for tag in tags if tag[0] in "BS"]
    assert kinds == [["all", f"({len(true)})"], *([kind, f"({true.count(kind)})"] for kind in ("LOC", "PER"))]
    for figure in figures.values():
        figure.savefig(io.BytesIO())


def test_the_learning_rate_wins_and_a_plateau_watches_f1(data):
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max")

    made = make(data, lr=0.02, optimizer=torch.optim.SGD, scheduler=plateau).configure_optimizers()
    assert made["optimizer"].param_groups[0]["lr"] == 0.02
    assert made["lr_scheduler"]["monitor"] == "val/f1"


def test_arguments_of_the_network_are_those_of_the_module(data):
    options = {"char_layers": 2, "word_width": 5, "beam": 2, "constrained": True, "residual": True, "tag_dim": 7}
    module = make(data, **options)
    expected = TaggerNetwork(**data.sizes, **SMALL, **options)
    shapes = {name: value.shape for name, value in expected.state_dict().items()}
    assert {name: value.shape for name, value in module.network.state_dict().items()} == shapes
    assert (module.network.decoder.beam, module.network.decoder.constrained) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"loss_reduction": "mean"}, "loss_reduction must be sum, sentence or token, got 'mean'"),
        ({"empty_weight": 1.5}, r"empty_weight must be in \[0, 1\], got 1.5"),
        ({"word_filters": 0}, "word_filters must be at least 1, got 0"),
    ],
)
def test_bad_arguments(data, options, message):
    with pytest.raises(ValueError, match=message):
        make(data, **options)


TWO_PROCESSES = """
import sys
import torch
from lightning import seed_everything
from seqeval.metrics import f1_score
sys.path.insert(0, sys.argv[1])
from conftest import Grammar
from test_module import make, quiet
data = Grammar()
seed_everything(0, verbose=False)
module = make(data)
trainer = quiet(strategy="ddp", devices=2)
(result,) = trainer.test(module, data, verbose=False)
whole = data.batch("test", range(60))
with torch.no_grad():
    chosen, loss = module.eval()(whole).chosen, module.network.loss(whole).sum() / whole.mask.sum()
names = [
    [[data.tags[tag] for tag in row[:n]] for row, n in zip(tags.tolist(), whole.lengths.tolist(), strict=True)]
    for tags in (whole.tags, chosen)
]
assert abs(result["test/f1"] - f1_score(*names)) < 1e-6 and result["test/f1"] > 0, result
assert abs(result["test/loss"] - loss) < 1e-5, (result, loss)
assert int(module.confusion_counts["test"].sum()) == int(whole.mask.sum())
assert module.figures()
print("rank done")
"""


@pytest.mark.process
def test_two_processes_report_what_one_would(tmp_path):
    root, script = Path(__file__).parents[3], tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"]
    command = [*command, "--rdzv_endpoint=localhost:0", str(script), str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rank done") == 2

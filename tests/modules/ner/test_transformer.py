"""Transformer tagger with a tiny BERT made here: alignment, padding, windows, learning, checkpoints, bad input."""

from __future__ import annotations

import make_tiny
import pytest
import torch
from lightning import Trainer

from framework.text.encoders import load_pretrained, make_encoder, positions, read_config
from framework.text.pieces import encode_pieces, load_tokenizer
from framework.text.sentences import Sentences, collate
from framework.text.vocabulary import Vocabulary
from modules.ner.transformer import TransformerTagger

transformers = pytest.importorskip("transformers")

WORDS = ["visited", "with", "in", "met", "of", "nothing", "happened", "here", "today", "slept", "An", "##na", "Rome"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT with weights; a long word has many pieces, and the longest sentences more than one window."""
    place = make_tiny.tiny_encoder(tmp_path_factory.mktemp("tiny"), WORDS, positions=24)
    torch.manual_seed(1)
    transformers.BertModel(transformers.BertConfig.from_pretrained(place)).save_pretrained(place)
    return str(place)


@pytest.fixture
def data(make_data, folder):
    """The grammar, with pieces."""
    made = make_data()
    tokenizer = load_tokenizer(folder)
    for name, part in made.parts.items():
        pieces = encode_pieces(tokenizer, part.tokens)
        made.data[name] = Sentences(part, Vocabulary(part.tokens), made.tags, pieces=pieces)
    return made


def make(folder, data, **options) -> TransformerTagger:
    torch.manual_seed(0)
    return TransformerTagger(folder, data.tags, **options)


def quiet(**kwargs) -> Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(off, False), **kwargs})


def test_words_have_the_vectors_of_their_first_pieces(folder, data):
    """Against the pieces of each word one by one, the encoder's window after window."""
    module, batch = make(folder, data).eval(), data.batch()
    tokenizer, encoder = load_tokenizer(folder), transformers.BertModel.from_pretrained(folder).eval()
    assert batch.pieces.shape[1] > 24
    with torch.no_grad():
        got, means = module.network(batch), module.acquisition_embedding(batch)
        for row, tokens in enumerate(batch.tokens):
            ids, first = [tokenizer.cls_token_id], []
            for token in tokens:
                first.append(len(ids))
                ids += tokenizer.convert_tokens_to_ids(tokenizer.tokenize(token))
            ids.append(tokenizer.sep_token_id)
            read = [encoder(torch.tensor([ids[k : k + 24]])).last_hidden_state[0] for k in range(0, len(ids), 24)]
            wanted = torch.cat(read)[first]
            torch.testing.assert_close(got[row, : len(tokens)], wanted, atol=1e-5, rtol=0)
            torch.testing.assert_close(means[row], wanted.mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("decoder", ["softmax", "crf", "lstm"])
def test_padding_changes_nothing(folder, data, decoder):
    module, items = make(folder, data, decoder=decoder).eval(), data.data["train"]
    together = collate([items[k] for k in range(32)])
    with torch.no_grad():
        log_probs, chosen, _ = module.acquisition_scores(together)
        losses = module.network.decoder.loss(module.network(together), together.tags, together.mask)
        for k in range(32):
            alone = collate([items[k]])
            one, n = module.acquisition_scores(alone), len(items[k].tokens)
            torch.testing.assert_close(one.log_probs[0], log_probs[k, :n], atol=1e-5, rtol=0)
            assert torch.equal(one.chosen[0], chosen[k, :n])
            loss = module.network.decoder.loss(module.network(alone), alone.tags, alone.mask)
            torch.testing.assert_close(loss[0], losses[k], atol=1e-4, rtol=0)


def test_windows_pass_gradients(folder, data):
    module = make(folder, data)
    module.training_step(data.batch(), 0).backward()
    gradients = {name: each.grad for name, each in module.network.named_parameters() if each.requires_grad}
    assert all(each is not None and each.isfinite().all() for each in gradients.values())  # DDP waits for all of them
    assert gradients["encoder.embeddings.word_embeddings.weight"].any()


@pytest.mark.parametrize("decoder", ["softmax", "crf", "lstm"])
def test_a_grammar_is_learned_from_scratch(folder, data, decoder):
    module = make(folder, data, decoder=decoder, pretrained=False, lr=5e-3, decoder_units=32)
    trainer = quiet(max_epochs=15, gradient_clip_val=1.0)
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    assert result["test/f1"] > 0.95
    predicted = [tag for batch in quiet().predict(module, data) for tag in batch["prediction"]]
    whole = data.batch("test", range(60))
    with torch.no_grad():
        chosen = module.eval()(whole).chosen[whole.mask]
    assert predicted == [data.tags[tag] for tag in chosen.tolist()]


def test_a_checkpoint_needs_neither_folder_nor_network(tmp_path, data, folder):
    place = make_tiny.tiny_encoder(tmp_path, WORDS, positions=24)
    module = make(str(place), data, pretrained=False)
    trainer = quiet()
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    place.rename(tmp_path / "elsewhere")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    batch = data.batch()
    again = TransformerTagger.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(batch).log_probs, module.eval()(batch).log_probs)


def test_weights_are_those_of_the_folder_unless_from_scratch(folder, data):
    stored = transformers.BertModel.from_pretrained(folder).state_dict()
    for pretrained in (True, False):
        loaded = make(folder, data, pretrained=pretrained).network.encoder.state_dict()
        name = "embeddings.word_embeddings.weight"
        assert loaded.keys() == stored.keys()
        assert torch.equal(loaded[name], stored[name]) is pretrained


def test_dropout_of_the_encoder_is_on_in_training_and_goes_with_the_module(folder, data):
    module, batch = make(folder, data, dropout=0.0), data.batch()
    assert not torch.equal(module.network(batch), module.network(batch))
    module.eval()
    assert torch.equal(module.network(batch), module.network(batch))


@pytest.mark.parametrize(("freeze", "still"), [("none", 0), ("embeddings", 1), ("encoder", None)])
def test_what_is_frozen_stays(folder, data, freeze, still):
    module = make(folder, data, freeze=freeze, lr=0.1, optimizer=torch.optim.SGD)
    before = {name: each.clone() for name, each in module.network.named_parameters() if "pooler" not in name}
    quiet(max_steps=1, limit_val_batches=0).fit(module, data)
    same = [name for name, each in module.network.named_parameters() if name in before and before[name].equal(each)]
    expected = [name for name in before if name.startswith("encoder.")]
    # Keys move no softmax: their bias has a gradient of nothing but rounding.
    same = [name for name in same if "key.bias" not in name] if still is not None else same
    assert len(same) == (len(expected) if still is None else still), same


def test_learning_rates_and_warm_up(folder, data):
    def warm_up(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=3)

    module = make(folder, data, lr=0.02, encoder_lr=0.01, scheduler=warm_up, scheduler_interval="step")
    seen = []
    module.on_train_batch_start = lambda *_: seen.append([g["lr"] for g in module.optimizers().param_groups])
    quiet(limit_train_batches=5, limit_val_batches=0).fit(module, data)
    rates = [0.1, 0.4, 0.7, 1.0, 1.0]
    assert seen == [[pytest.approx(0.01 * rate), pytest.approx(0.02 * rate)] for rate in rates]
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))
    assert len(groups[1]["params"]) == 2
    (group,) = make(folder, data).configure_optimizers().param_groups
    assert group["lr"] == 1e-3  # AdamW's own


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (transformers.BertConfig(max_position_embeddings=20), 20),
        (transformers.RobertaConfig(max_position_embeddings=20, pad_token_id=1), 18),
        (transformers.DistilBertConfig(max_position_embeddings=20), 20),
        (transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2), None),
    ],
)
def test_other_encoders_and_how_many_pieces_they_read(config, limit):
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    small |= {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16} if config.model_type == "distilbert" else {}
    if limit is not None:
        config.update({name: value for name, value in small.items() if hasattr(config, name)})
    encoder = make_encoder(config.to_dict()).eval()
    assert positions(encoder) == limit
    pieces = torch.full((1, limit or 40), 7)
    with torch.no_grad():
        found = encoder(input_ids=pieces, attention_mask=torch.ones_like(pieces))
    assert found.last_hidden_state.shape == (1, limit or 40, 16)


def test_data_without_pieces_are_refused_before_training(folder, data, make_data):
    message = "a transformer reads sub-word pieces, and the data have none: set data.tokenizer"
    module = make(folder, data)
    with pytest.raises(ValueError, match=message):
        module(make_data().batch())
    data.save_hyperparameters({"tokenizer": None})
    with pytest.raises(ValueError, match=message):
        quiet().fit(module, data)


class Offline:
    """Nothing is in the cache, and there is no network."""

    @staticmethod
    def from_pretrained(name, **options):
        raise OSError("We couldn't connect to 'https://huggingface.co'.\nCheck your internet connection.")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda folder, data: load_pretrained("encoder", Offline, "bert-base-cased"),
            r"encoder 'bert-base-cased' cannot be loaded: We couldn't connect to 'h.*'\. It is no folder either",
        ),
        (lambda folder, data: read_config(folder + "/../empty"), r"encoder '.*/empty' cannot be loaded: "),
        (lambda folder, data: make(folder, data, freeze="all"), "freeze must be one of none, embeddings, encoder, got"),
        (
            lambda folder, data: make(folder, data, decoder="hmm"),
            "decoder must be one of lstm, crf, softmax, got",
        ),
        (lambda folder, data: make(folder, data, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda folder, data: make(folder, data, beam=2), "beam must be 1 with decoder softmax"),
        (lambda folder, data: make(folder, data, encoder_lr=0.0), "encoder_lr must be positive, got 0.0"),
        (lambda folder, data: make(folder, data, scheduler_interval="x"), "scheduler_interval must be epoch or step"),
    ],
)
def test_bad_input_ends_in_one_line(folder, data, call, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        call(folder, data)
    assert "\n" not in str(caught.value)

"""Parameters of real architectures divided into layers, and what trains or travels then."""

import pytest
import torch
from torch import nn

from framework.federated.layer_groups import LayerGroups


class Residual(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x):
        return x + self.norm(self.linear(x)).relu()


def residual_net():
    return nn.Sequential(nn.Linear(3, 4), *(Residual() for _ in range(3)), nn.LayerNorm(4), nn.Linear(4, 2))


def divided(module, groups):
    """Checks that each parameter and each key lies in exactly one group, and gives the groups' parameters."""
    every = [*groups.names, "common", "frozen"]
    assert sorted(name for group in every for name in groups.parameters(group)) == sorted(
        name for name, _ in module.named_parameters()
    )
    keys = [key for group in every for key in groups.keys(group)]
    aliases = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    assert len(keys) == len(set(keys))
    assert set(module.state_dict()) - aliases <= set(keys) <= set(module.state_dict())
    assert sum(groups.sizes.values()) == sum(p.numel() for p in module.parameters())
    return {group: groups.parameters(group) for group in every}


SMALL = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=5, **SMALL))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=16, **SMALL))


def clip():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=4, **SMALL))


@pytest.mark.parametrize(
    ("make", "common", "frozen"),
    [
        (vit, {"layernorm", "classifier"}, {"embeddings"}),
        (bert, {"pooler", "classifier"}, {"embeddings"}),
        # As the official code has it: post-norm and projection are common, embeddings and pre-norm frozen.
        (clip, {"post_layernorm", "visual_projection"}, {"embeddings", "pre_layrnorm"}),
    ],
)
def test_transformers_fall_into_blocks_head_and_embeddings(make, common, frozen):
    module = make()
    groups = LayerGroups.of(module)
    members = divided(module, groups)
    assert len(groups.names) == 3
    assert [name.rpartition(".")[2] for name in groups.names] == ["0", "1", "2"]
    for name in groups.names:
        assert members[name] == tuple(n for n, _ in module.named_parameters() if n.startswith(f"{name}."))
    for group, expected in (("common", common), ("frozen", frozen)):
        assert {part for part in expected if any(part in n.split(".") for n in members[group])} == expected
        assert all(expected & set(n.split(".")) for n in members[group])


def test_plain_torch_encoders_are_found():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 8)
            self.positions = nn.Parameter(torch.zeros(5, 8))
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4)
            self.out = nn.Linear(8, 3)

    module = Tagger()
    groups = LayerGroups.of(module)
    members = divided(module, groups)
    assert groups.names == tuple(f"encoder.layers.{i}" for i in range(4))
    assert members["common"] == ("out.weight", "out.bias")
    assert members["frozen"] == ("positions", "embedding.weight")
    bare = LayerGroups.of(module.encoder)
    assert bare.names == tuple(f"layers.{i}" for i in range(4))
    assert bare.parameters("common") == ()


def test_a_sequential_of_residual_blocks_has_a_stem_and_a_head():
    module = residual_net()
    groups = LayerGroups.of(module)
    members = divided(module, groups)
    assert groups.names == ("1", "2", "3")
    assert members["frozen"] == ("0.weight", "0.bias")
    assert members["common"] == ("4.weight", "4.bias", "5.weight", "5.bias")
    assert groups.buffers["2"] == ("2.norm.running_mean", "2.norm.running_var", "2.norm.num_batches_tracked")
    assert groups.keys("2") == tuple(key for key in module.state_dict() if key.startswith("2."))
    assert groups.sizes == {"1": 28, "2": 28, "3": 28, "common": 18, "frozen": 16}


def test_the_last_of_plain_layers_is_the_head():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    groups = LayerGroups.of(module)
    assert groups.names == ("1", "3")
    assert divided(module, groups)["common"] == ("5.weight", "5.bias")
    assert LayerGroups.of(module, common=[]).names == ("1", "3", "5")


def test_experts_inside_blocks_are_no_blocks():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)) for _ in range(8))

    module = nn.ModuleDict({"stem": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    module["layers"] = nn.ModuleList(Mixture() for _ in range(2))
    module["classifier"] = nn.Linear(2, 2)
    groups = LayerGroups.of(module)
    assert groups.names == ("layers.0", "layers.1")
    divided(module, groups)


def test_a_head_that_is_registered_first_is_known_by_its_name():
    module = nn.ModuleDict({"classifier": nn.Linear(4, 2), "embed": nn.Linear(3, 4)})
    module["blocks"] = nn.ModuleList(Residual() for _ in range(2))
    groups = LayerGroups.of(module)
    assert groups.parameters("common") == ("classifier.weight", "classifier.bias")
    assert groups.parameters("frozen") == ("embed.weight", "embed.bias")


def test_patterns_are_matched_from_the_start_of_a_name():
    module = residual_net()
    groups = LayerGroups.of(module, {"late": r"3\.", "early": ["1", r"2\.linear"]}, common=r"5\.", frozen="0")
    members = divided(module, groups)
    assert groups.names == ("late", "early")  # in the order given
    assert members["late"][0] == "3.linear.weight"
    assert members["early"] == (
        *(n for n, _ in module[1].named_parameters(prefix="1")),
        "2.linear.weight",
        "2.linear.bias",
    )
    assert members["common"] == ("5.weight", "5.bias")
    assert set(members["frozen"]) == {"0.weight", "0.bias", "2.norm.weight", "2.norm.bias", "4.weight", "4.bias"}
    # A buffer follows the pattern that matches it, or else the parameters beside it.
    assert "1.norm.running_mean" in groups.buffers["early"]
    assert "2.norm.running_mean" in groups.buffers["frozen"]
    assert LayerGroups.of(module, {"a": r"1\.", "b": r"2\."}).parameters("common")[0] == "3.linear.weight"  # after b


def test_patterns_take_precedence_over_blocks_and_head():
    module = residual_net()
    groups = LayerGroups.of(module, frozen=[r"1\.", r".*norm\."], common=[r"0\.", r"5\.bias"])
    assert groups.names == ("2", "3")
    assert groups.parameters("2") == ("2.linear.weight", "2.linear.bias")
    assert groups.parameters("common") == ("0.weight", "0.bias", "5.bias")
    divided(module, groups)


def test_tied_parameters_lie_in_one_group_and_count_once():
    from transformers import BertConfig, BertForMaskedLM

    module = BertForMaskedLM(BertConfig(vocab_size=20, max_position_embeddings=16, **SMALL))
    tied = "bert.embeddings.word_embeddings.weight"
    assert "cls.predictions.decoder.weight" in module.state_dict()
    groups = LayerGroups.of(module)
    assert tied in divided(module, groups)["frozen"]
    # A pattern may use any of its names; two groups cannot both have it.
    by_alias = LayerGroups.of(module, common=[r"cls\."])
    assert tied in divided(module, by_alias)["common"]
    assert by_alias.keys_to_send([]).count(tied) == 1
    with pytest.raises(ValueError, match=r"overlap: parameter cls\.predictions\.decoder\.weight is matched by embed"):
        LayerGroups.of(module, {"embed": r"bert\.embeddings", "head": r"cls\."})
    twice = nn.ModuleDict({"layers": nn.ModuleList(Residual() for _ in range(2))})
    twice["layers"].append(twice["layers"][0])  # a block applied twice
    assert LayerGroups.of(twice).names == ("layers.0", "layers.1")
    divided(twice, LayerGroups.of(twice))


def test_only_selected_and_common_groups_train_until_restored():
    module = residual_net()
    module[5].bias.requires_grad_(False)
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    groups = LayerGroups.of(module)
    restore = groups.set_trainable(module, ["3", "1"])
    on = {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert on == {"1", "3", "4", "5"}
    assert all(p.requires_grad == (name.split(".")[0] in on) for name, p in module.named_parameters())
    restore.close()
    assert before == {name: p.requires_grad for name, p in module.named_parameters()}
    with groups.set_trainable(module, []):
        assert not any(p.requires_grad for p in module[1].parameters())
        assert module[5].weight.requires_grad
    assert before == {name: p.requires_grad for name, p in module.named_parameters()}


def test_a_step_moves_what_is_selected_and_nothing_else():
    torch.manual_seed(0)
    module = residual_net()
    groups = LayerGroups.of(module)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with groups.set_trainable(module, ["2"]):
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], weight_decay=0.5)
        module(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {*groups.parameters("2"), *groups.parameters("common")}


def test_what_is_sent_are_selected_and_common_keys_in_order():
    module = residual_net()
    groups = LayerGroups.of(module)
    assert groups.keys_to_send(["3", "1"]) == groups.keys("1") + groups.keys("3") + groups.keys("common")
    assert groups.keys_to_send([]) == groups.keys("common")
    received = residual_net()
    before = {key: value.clone() for key, value in received.state_dict().items()}
    state = module.state_dict()
    received.load_state_dict({key: state[key] for key in groups.keys_to_send(["2"])}, strict=False)
    for key, value in received.state_dict().items():
        expected = state if key.split(".")[0] in ("2", "4", "5") else before
        assert torch.equal(value, expected[key]), key


def test_masks_name_groups():
    groups = LayerGroups.of(residual_net())
    assert groups.chosen([True, False, True]) == ("1", "3")
    with pytest.raises(ValueError, match=r"one entry for each of the 3 groups, got shape \(2,\)"):
        groups.chosen([True, False])


def two_stacks():
    return nn.ModuleDict({name: nn.Sequential(*(Residual() for _ in range(2))) for name in ("first", "second")})


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (
            residual_net,
            {"groups": {"a": "1", "b": r".*bias"}},
            r"overlap: parameter 1\.linear\.bias is matched by a and by b",
        ),
        (residual_net, {"groups": {"a": "1"}, "frozen": "1.linear.w"}, "overlap: parameter .* by a and by frozen"),
        (
            residual_net,
            {"groups": {"a": "linear"}},
            "pattern 'linear' of group a matches no parameter .*start of the name",
        ),
        (residual_net, {"common": ["5.wieght"]}, r"'5.wieght' of group common matches no.*did you mean 5\.weight"),
        (residual_net, {"groups": {"a": "(1"}}, r"pattern '\(1' of group a is no regular expression"),
        (residual_net, {"groups": {"common": "1"}}, "a layer group cannot be named 'common'"),
        (residual_net, {"groups": {}}, "at least one layer group, got none"),
        (residual_net, {"frozen": "[123]"}, "every block.*none is left"),
        (lambda: nn.Linear(2, 3), {}, "Linear has no blocks"),
        (two_stacks, {}, "ModuleDict has several lists of blocks, first and second: name the layers yourself"),
        (
            lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True),
            {},
            "several lists of blocks, encoder.layers and decoder.layers",
        ),
    ],
)
def test_bad_divisions_are_named(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerGroups.of(make(), **arguments)


def test_unknown_groups_are_named_with_those_there_are():
    module = bert()
    groups = LayerGroups.of(module)
    for call in (
        lambda name: groups.keys_to_send([name]),
        lambda name: groups.set_trainable(module, [name]),
        lambda name: groups.keys(name),
        lambda name: groups.parameters(name),
    ):
        with pytest.raises(
            ValueError, match=r"unknown layer group 'bert.encoder.layers.1'; did you mean bert.encoder.layer.1"
        ):
            call("bert.encoder.layers.1")
    with pytest.raises(ValueError, match=r"unknown layer group 'common'; there are bert\.encoder\.layer\.0, "):
        groups.keys_to_send(["common"])
    with pytest.raises(ValueError, match="must be a list of layer groups, got the string"):
        groups.keys_to_send("bert.encoder.layer.1")
    with pytest.raises(ValueError, match="module has other parameters"):
        groups.set_trainable(residual_net(), [])

"""The separable network is the lesson's concatenating one, written apart."""

import pytest
import torch
from torch import nn

from models.networks.concat_mlp import ConcatMlp, ConcatMlpConfig

CONFIG = ConcatMlpConfig(num_conditions=4, hidden=24, embedding_dim=8)


class ConditionalNoisePredictor(nn.Module):
    """The lesson's network as printed, but for the drop: given as a mask instead of drawn."""

    def __init__(self, data_dim, cond_dim, hidden, time_emb_dim):
        super().__init__()
        self.time_mlp = nn.Sequential(
            nn.Linear(1, time_emb_dim),
            nn.SiLU(),
            nn.Linear(time_emb_dim, time_emb_dim),
        )
        self.cond_mlp = nn.Sequential(
            nn.Linear(cond_dim, time_emb_dim),
            nn.SiLU(),
            nn.Linear(time_emb_dim, time_emb_dim),
        )
        self.net = nn.Sequential(
            nn.Linear(data_dim + 2 * time_emb_dim, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, data_dim),
        )
        self.null_cond = nn.Parameter(torch.zeros(time_emb_dim))

    def forward(self, x, t, cond, drop):
        t_emb = self.time_mlp(t.float().unsqueeze(-1) / 1000)
        c_emb = self.cond_mlp(cond)
        c_emb[drop] = self.null_cond
        return self.net(torch.cat([x, t_emb, c_emb], dim=-1))


@pytest.fixture
def network():
    """An untrained network whose null embedding is not zero."""
    torch.manual_seed(0)
    network = ConcatMlp(CONFIG)
    nn.init.normal_(network.null_cond)
    return network


def rows(count=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 2, generator=generator)
    t = torch.randint(1000, (count,), generator=generator)
    one_hot = torch.eye(4)[torch.arange(count) % 4]
    return x, t, one_hot, torch.arange(count) % 3 == 0


def separable(network, x, t, one_hot, drop):
    film = network.time_part(t) + network.condition_part(torch.empty(len(x), 0), one_hot, drop)
    return network.denoise(x[:, None], film)[:, 0]


def test_it_is_the_network_of_the_lesson_weight_for_weight(network):
    lesson = ConditionalNoisePredictor(2, 4, CONFIG.hidden, CONFIG.embedding_dim)
    lesson.load_state_dict(network.state_dict())
    x, t, one_hot, drop = rows()
    torch.testing.assert_close(
        separable(network, x, t, one_hot, drop),
        lesson(x, t, one_hot, drop),
    )


def test_it_starts_as_the_lesson_does():
    torch.manual_seed(3)
    ours = ConcatMlp(CONFIG)
    torch.manual_seed(3)
    lesson = ConditionalNoisePredictor(2, 4, CONFIG.hidden, CONFIG.embedding_dim)
    for name, value in lesson.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_a_dropped_condition_is_the_null_embedding_whatever_it_was(network):
    one_hot = torch.eye(4)
    dropped = network.condition_part(torch.empty(4, 0), one_hot, torch.ones(4, dtype=torch.bool))
    by_hand = network.net[0].weight[:, -CONFIG.embedding_dim :] @ network.null_cond
    torch.testing.assert_close(dropped, by_hand.expand(4, -1))


def test_conditions_differ_from_each_other_and_from_none(network):
    one_hot = torch.eye(4)
    kept = network.condition_part(torch.empty(4, 0), one_hot, torch.zeros(4, dtype=torch.bool))
    dropped = network.condition_part(torch.empty(1, 0), one_hot[:1], torch.tensor([True]))
    parts = torch.cat([kept, dropped])
    distances = torch.cdist(parts, parts) + torch.eye(5)
    assert distances.min() > 0.01


def test_the_observation_is_not_looked_at(network):
    _, _, one_hot, drop = rows()
    without = network.condition_part(torch.empty(12, 0), one_hot, drop)
    assert torch.equal(network.condition_part(torch.randn(12, 3), one_hot, drop), without)


@pytest.mark.parametrize("field", ["num_conditions", "hidden", "embedding_dim"])
def test_sizes_are_checked_by_name(field):
    sizes = {"num_conditions": 4, field: 0}
    with pytest.raises(ValueError, match=field):
        ConcatMlpConfig(**sizes)

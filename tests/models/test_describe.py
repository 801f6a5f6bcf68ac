"""Counts of parameters and operations, beside formulas worked out by hand, and the command."""

import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from models.__main__ import main
from models.describe import NetworkCost
from models.networks.film_mlp import FilmMlpConfig
from models.networks.kinds import KINDS
from models.networks.transformer import TransformerConfig
from models.networks.unet1d import Unet1dConfig
from tests.policies import CAMERA_SPEC, TINY_VISION, make_policy, save_checkpoint

H, A, OBS, INSTRUCTION = 8, 3, 6, 5


def mlp(*sizes):
    """(parameters, multiply-adds) of linear layers one after another."""
    products = sum(a * b for a, b in pairwise(sizes))
    return products + sum(sizes[1:]), products


def film_parts(film_dim, condition_dim, features):
    """(parameters of both parts and the null embedding, multiply-adds of the condition part)."""
    time, instruction = mlp(128, 128, film_dim), mlp(INSTRUCTION, features, features)
    condition = mlp(OBS + features, condition_dim, condition_dim, film_dim)
    return time[0] + instruction[0] + condition[0] + features, instruction[1] + condition[1]


def test_film_mlp():
    config = FilmMlpConfig(H, A, OBS, INSTRUCTION, 10, 2, condition_dim=7, instruction_features=4)
    layers = mlp(H * A, 10, 10, 10, 10, 10, H * A)
    parts = film_parts(40, 7, 4)
    assert NetworkCost.of(config) == NetworkCost(
        layers[0] + parts[0], 40, 2 * layers[1], 2 * parts[1]
    )


def conv(channels_in, channels, taps, length):
    return channels * (channels_in * taps + 1), channels_in * channels * taps * length


def test_unet1d():
    config = replace(Unet1dConfig(H, A, OBS, INSTRUCTION), widths=(8, 16), kernel=3)
    a_block = {  # its two norms: the first has weights, the second none
        (c_in, c, length): [conv(c_in, c, 3, length), conv(c, c, 3, length), (2 * c_in, 0)]
        for c_in, c, length in [(8, 8, H), (16, 16, H // 2), (16, 8, H)]
    }
    parts = [
        conv(A, 8, 3, H),
        *2 * a_block[8, 8, H],
        conv(8, 16, 3, H // 2),
        *4 * a_block[16, 16, H // 2],
        (8 * (16 * 4) + 8, 16 * 8 * 4 * H // 2),  # transposed: four taps for each of its inputs
        *a_block[16, 8, H],
        conv(16, 8, 1, H),  # its shortcut
        *a_block[8, 8, H],
        (2 * 8, 0),
        conv(8, A, 3, H),
    ]
    film_dim = 2 * (4 * 8 + 4 * 16)
    conditioning = film_parts(film_dim, 256, 64)
    assert NetworkCost.of(config) == NetworkCost(
        sum(p for p, _ in parts) + conditioning[0],
        film_dim,
        2 * sum(m for _, m in parts),
        2 * conditioning[1],
    )


def test_transformer():
    width, tokens = 12, 3
    config = TransformerConfig(H, A, OBS, INSTRUCTION, 2, width, num_blocks=1, num_heads=2)
    linear = [mlp(width, 3 * width), *3 * [mlp(width, width)], mlp(width, 4 * width, width)]
    linear += [mlp(A, width), mlp(width, A)]
    attention = 2 * H * (H + tokens) * width  # q·k and weights·v, over actions and over tokens
    observation, instruction = mlp(OBS // 2, width, width), mlp(INSTRUCTION, width, width)
    keys_values = mlp(width, 2 * width)
    parameters = [
        *(p for p, _ in linear),
        3 * 2 * width,  # norms: before the cross-attention, the last, that of the tokens
        (H + 2 + 1) * width,  # positions and the null embedding
        mlp(128, 128, 4 * width)[0],
        observation[0] + instruction[0] + keys_values[0],
    ]
    condition = 2 * observation[1] + instruction[1] + tokens * keys_values[1]
    assert NetworkCost.of(config) == NetworkCost(
        sum(parameters),
        4 * width + 2 * tokens * width,
        2 * (H * sum(m for _, m in linear) + attention),
        2 * condition,
    )


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["models", *map(str, arguments)])
    main()
    return capsys.readouterr().out


def test_without_a_checkpoint_every_kind_is_described_for_both_tasks(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "describe").splitlines()
    for kind in KINDS:
        assert sum(line.split()[:1] == [kind] for line in lines) == 2
    assert sum("x_t [n, 16, 4], observation [n, 26]" in line for line in lines) == 1
    assert sum("x_t [n, 16, 2], observation [n, 12]" in line for line in lines) == 1


def test_a_checkpoint_is_described_by_its_own_network(monkeypatch, capsys, tmp_path):
    policy = make_policy()
    save_checkpoint(tmp_path, policy)
    output = run(monkeypatch, capsys, "describe", tmp_path)
    cost = NetworkCost.of(policy.network.config)
    assert cost.parameters == sum(p.numel() for p in policy.network.parameters())
    assert "tiny: x_t [n, 8, 2], observation [n, 6], instruction [n, 5] → [n, 8, 2]" in output
    assert f"{cost.parameters:,}" in output
    assert "unet1d" not in output


def test_the_cameras_of_a_checkpoint_are_described(monkeypatch, capsys, tmp_path):
    save_checkpoint(tmp_path, make_policy(spec=CAMERA_SPEC, vision=TINY_VISION))
    output = run(monkeypatch, capsys, "describe", tmp_path)
    layers = [(25 * 3 * 8, 3 * 3), (9 * 8 * 16, 2 * 2), (16 * 4, 2 * 2), (8 * 3, 1)]
    mflop = 2 * sum(weights * places for weights, places in layers) + 2 * 2 * 4 * 4 * 2
    parameters = sum(weights for weights, _ in layers) + 3 * 8 + 3 * 16 + 3
    expected = (
        f"5 × 6 of 8 × 10 pixels → 3 numbers: {parameters:,} parameters, {mflop / 1e6:.2f} MFLOP"
    )
    assert f"left: {expected}" in output
    assert "right: 5 × 6 of 6 × 6 pixels" in output


def test_a_damaged_checkpoint_is_not_described(monkeypatch, capsys, tmp_path):
    save_checkpoint(tmp_path, make_policy())
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: .*model\.safetensors: altered"):
        run(monkeypatch, capsys, "describe", tmp_path)

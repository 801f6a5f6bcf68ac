"""Networks from a command line's words."""

import dataclasses

import pytest

from client.sims.pusht.spec import PUSHT_SPEC
from models.networks.film_mlp import FilmMlpConfig
from models.networks.kinds import KINDS
from models.networks.sizes import sized_config
from models.networks.unet1d import Unet1dConfig


@pytest.mark.parametrize("kind", KINDS)
def test_without_words_a_network_has_its_default_sizes(kind):
    assert sized_config(kind, (), PUSHT_SPEC, 1) == KINDS[kind].for_spec(PUSHT_SPEC, 1)


def test_words_change_what_they_name_and_nothing_else():
    mlp = sized_config("film_mlp", ["num_blocks=5", "width=64"], PUSHT_SPEC, 3)
    assert mlp == FilmMlpConfig(16, 2, 12, 3, width=64, num_blocks=5)
    unet = sized_config("unet1d", ["widths=32,64"], PUSHT_SPEC, 1)
    assert unet == Unet1dConfig(16, 2, 12, 1, widths=(32, 64))
    one = sized_config("unet1d", ["widths=32"], PUSHT_SPEC, 1)
    assert one == dataclasses.replace(unet, widths=(32,))


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("gru", [], r"kind: expected one of film_mlp, unet1d.*'gru'"),
        ("film_mlp", ["widths=8"], r"expected each of .*width, num_blocks.*'widths=8'"),
        ("film_mlp", ["width=8", "width=9"], "once at most"),
        ("film_mlp", ["horizon=8"], "expected each of"),
        ("film_mlp", ["width"], "expected width=NUMBER.*'width'"),
        ("film_mlp", ["width=8,9"], "expected one number"),
        ("film_mlp", ["width=1.5"], "expected width=NUMBER"),
        ("film_mlp", ["width=0"], r"FilmMlpConfig\.width: expected at least 1, got 0"),
        ("unet1d", ["kernel=4"], r"Unet1dConfig\.kernel"),
    ],
)
def test_words_that_fit_no_size_are_refused(kind, words, message):
    with pytest.raises(ValueError, match=message):
        sized_config(kind, words, PUSHT_SPEC, 1)

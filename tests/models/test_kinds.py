"""Names of networks in manifests: new ones, old ones without, and wrong ones."""

import json

import pytest

from models import checkpoint
from models.checkpoint import CheckpointError
from models.networks.film_mlp import FilmMlpConfig
from tests.policies import make_policy, save_checkpoint


def edit(folder, **network):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["network"] = {k: v for k, v in (manifest["network"] | network).items() if v != "gone"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_that_names_no_kind_is_a_film_mlp(tmp_path):
    """As written before there were others; the bundled desk policy is one."""
    save_checkpoint(tmp_path, make_policy())
    edit(tmp_path, kind="gone")
    manifest, _ = checkpoint.load(tmp_path)
    assert manifest.network == make_policy().network.config
    desk = checkpoint.load(checkpoint.PRETRAINED / "desk")[0].network
    assert isinstance(desk, FilmMlpConfig)
    assert (desk.width, desk.num_blocks) == (384, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "unet"}, "network.kind: expected one of film_mlp, unet1d.*, got 'unet'"),
        ({"kind": "unet1d"}, "unexpected keyword argument 'width'"),
        ({"width": -1}, "FilmMlpConfig.width: expected at least 1, got -1"),
        ({"horizon": 4}, "horizon, action_dim, observation_dim: expected"),
    ],
)
def test_a_network_that_makes_no_sense_is_refused(tmp_path, change, message):
    save_checkpoint(tmp_path, make_policy())
    edit(tmp_path, **change)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path)

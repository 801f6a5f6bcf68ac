"""int8 beside float32, on a small policy of a robot that is simulated here."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.precision import PrecisionConfig, float64_chunks, main
from client.sims.desk.spec import DESK_SPEC, TASKS
from models.instruction_encoder import INSTRUCTION_DIM
from models.networks.film_mlp import FilmMlpConfig
from models.sampling import Sampling, sample_chunks
from tests.policies import make_policy, save_checkpoint

# wide enough for products that are worth to be in int8
SMALL = replace(FilmMlpConfig.for_spec(DESK_SPEC, 5), width=256, num_blocks=2, condition_dim=16)


@pytest.fixture(scope="module")
def policy():
    return make_policy(spec=DESK_SPEC, network=SMALL)


def test_every_backend_has_its_row(tmp_path, policy):
    save_checkpoint(tmp_path / "policy", policy)
    config = PrecisionConfig(
        checkpoints=(tmp_path / "policy",), episodes=1, num_steps=2, repeats=2, out=tmp_path
    )
    main(config)
    rows = json.loads((tmp_path / "precision.json").read_text())["rows"]
    assert [row["backend"] for row in rows] == ["torch", "onnx", "onnx-int8"]
    assert {row["episodes"] for row in rows} == {len(TASKS)}
    errors = [row["chunk_error_rms"] for row in rows]
    assert max(errors[:2]) < 1e-5
    assert 1e-4 < errors[2] < 0.2
    assert all(row["chunk_error_rms"] <= row["chunk_error_max"] for row in rows)
    with np.load(tmp_path / "precision_samples.npz") as file:
        samples = dict(file)
    exact = samples["tiny/torch/score"]
    for row in rows:
        mine = f"tiny/{row['backend']}"
        assert row["step_p50_s"] == np.median(samples[f"{mine}/step of 1"])
        assert row["success_rate"] == samples[f"{mine}/score"].mean()
        assert row["change"] == pytest.approx((samples[f"{mine}/score"] - exact).mean())


@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
def test_float64_chunks_are_those_of_the_sampler_that_needs_no_server(policy, guidance_scale):
    rng = np.random.default_rng(0)
    observation = {
        name: rng.standard_normal((3, *array.shape), np.float32)
        for name, array in DESK_SPEC.observation.items()
    }
    instruction = rng.standard_normal((3, INSTRUCTION_DIM), np.float32)
    sampling = Sampling(4, eta=0.5, guidance_scale=guidance_scale)
    args = (policy, observation, instruction, sampling, [1, 2, 3])
    np.testing.assert_allclose(float64_chunks(*args), sample_chunks(*args), atol=1e-4)


def test_a_bad_field_is_named():
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        PrecisionConfig(repeats=0)
    with pytest.raises(ValueError, match=r"seed: expected 0\.\.99"):
        PrecisionConfig(seed=100)
    with pytest.raises(ValueError, match="checkpoints: expected at least one"):
        PrecisionConfig(checkpoints=())

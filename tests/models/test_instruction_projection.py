"""Fisher's discriminants against their closed form for two classes, and what they are for."""

import numpy as np
import pytest
import torch

from client.sims.desk.phrasings import known, load
from models.instruction_encoder import INSTRUCTION_DIM, InstructionEncoder
from models.instruction_projection import SHRINKAGE, InstructionProjection


def test_two_classes_equal_the_closed_form():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6))
    one, two = (rng.standard_normal((40, 6)) @ mixing + rng.standard_normal(6) for _ in range(2))
    projection = InstructionProjection(6, 1)
    projection.fit([torch.from_numpy(one), torch.from_numpy(two)])
    within = (np.cov(one.T, bias=True) + np.cov(two.T, bias=True)) / 2
    within = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / 6 * np.eye(6)
    direction = np.linalg.solve(within, one.mean(0) - two.mean(0))  # Fisher 1936
    ours = projection.matrix[:, 0].numpy()
    cosine = ours @ direction / np.linalg.norm(ours) / np.linalg.norm(direction)
    assert abs(cosine) == pytest.approx(1, abs=1e-6)
    assert ours @ within @ ours == pytest.approx(1, rel=1e-5)  # unit variance within a class
    middle = (one.mean(0) + two.mean(0)) / 2
    np.testing.assert_allclose(projection(torch.from_numpy(middle).float()), [0], atol=1e-5)


def test_the_number_of_tasks_must_fit():
    with pytest.raises(ValueError, match="expected 3 tasks, got 2"):
        InstructionProjection(6, 2).fit([torch.zeros(4, 6)] * 2)


def test_it_tells_held_out_wordings_apart():
    """The nearest task, by the projection alone, for words that nobody fitted it to."""
    encoder = InstructionEncoder()
    some = {task: texts[::3] for task, texts in known().items()}  # encoding all takes half a minute
    fitted = {task: torch.from_numpy(encoder.encode(texts)) for task, texts in some.items()}
    projection = InstructionProjection(INSTRUCTION_DIM, len(fitted) - 1)
    projection.fit(list(fitted.values()))
    centres = torch.stack([projection(embeddings).mean(0) for embeddings in fitted.values()])
    right, total = 0, 0
    for index, texts in enumerate(load("validation").values()):
        distance = torch.cdist(projection(torch.from_numpy(encoder.encode(texts))), centres)
        right += int((distance.argmin(1) == index).sum())
        total += len(texts)
    assert right / total >= 0.93

"""From sentence embeddings to what tells instructions apart: Fisher's linear discriminants.

Opposite instructions are nearly the same vector ("turn it left", "turn it right"), and most of what
differs between two sentences is wording. The discriminants (Fisher 1936; Rao 1948, for several
classes) are the few directions in which tasks differ most, measured in units of how much the
phrasings of one task differ. They are fitted in closed form to the training phrasings, before the
network sees any, and generalise to new wordings better than a projection trained by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SHRINKAGE = 0.1
"""Share of the within-task covariance that is replaced by a multiple of the identity: there are
more dimensions than phrasings of a task, so the sample covariance alone would be overfitted."""


class InstructionProjection(nn.Module):
    """Affine map [..., embedding_dim] → [..., num_features], saved with the weights.

    The phrasings of one task have about unit variance in every feature.
    """

    offset: Tensor
    matrix: Tensor

    def __init__(self, embedding_dim: int, num_features: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(embedding_dim))
        self.register_buffer("matrix", torch.zeros(embedding_dim, num_features))

    def fit(self, phrasings: Sequence[Tensor]) -> None:
        """Fit to embeddings, one tensor [n_i, embedding_dim] a task; every phrasing counts alike.

        Raises:
            ValueError: there are not exactly num_features + 1 tasks.
        """
        num_features = self.matrix.shape[1]
        if len(phrasings) != num_features + 1:
            msg = f"phrasings: expected {num_features + 1} tasks, got {len(phrasings)}"
            raise ValueError(msg)
        means = torch.stack([embeddings.double().mean(0) for embeddings in phrasings])
        centred = torch.cat([e.double() - mean for e, mean in zip(phrasings, means, strict=True)])
        within = centred.T @ centred / len(centred)
        identity = torch.eye(len(within), dtype=within.dtype)
        within = (1 - SHRINKAGE) * within + SHRINKAGE * within.trace() / len(within) * identity
        values, vectors = torch.linalg.eigh(within)
        whiten = vectors / values.sqrt()
        offset = means.mean(0)
        _, _, directions = torch.linalg.svd((means - offset) @ whiten, full_matrices=False)
        self.offset.copy_(offset)
        self.matrix.copy_(whiten @ directions[:num_features].T)

    def forward(self, embedding: Tensor) -> Tensor:
        """[..., embedding_dim] → [..., num_features]."""
        return (embedding - self.offset) @ self.matrix

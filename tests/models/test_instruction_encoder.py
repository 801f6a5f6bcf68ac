"""The sentence encoder against Hugging Face transformers on the same weights."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

from models.instruction_encoder import POOLED_LAYERS, InstructionEncoder, weights_folder

TEXTS = ["open the drawer", "Könntest du, bitte: PUSH the lever *down*?!", "a", "tap " * 400]


@pytest.fixture(scope="module")
def encoder():
    return InstructionEncoder()


def test_equals_transformers(encoder):
    folder = weights_folder()
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.inference_mode():
        hidden = model(**tokens, output_hidden_states=True).hidden_states
    mask = tokens["attention_mask"][:, :, None].float()
    pooled = [(hidden[layer] * mask).sum(1) / mask.sum(1) for layer in POOLED_LAYERS]
    np.testing.assert_allclose(encoder.encode(TEXTS), torch.cat(pooled, -1), atol=2e-5)


def test_a_text_is_the_same_alone_and_in_a_batch(encoder):
    together = encoder.encode(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], row, atol=2e-5)

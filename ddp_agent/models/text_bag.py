"""A bag of embeddings for texts."""

import torch
from torch import Tensor, nn

from ddp_agent.config.fields import Decay, PositiveInt
from ddp_agent.models.common.blocks import text_length

INITIAL_EMBEDDING_STD = 0.1


class TextBag(nn.Module):
    """A sum of embeddings and one linear layer (fastText; Joulin et al. 2017, arXiv:1607.01759)."""

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        outputs: int,
        vocabulary: int,
        width: PositiveInt,
        token_dropout: Decay,
        dropout: Decay,
    ) -> None:
        """`token_dropout`: share of a text's tokens that a training step leaves out."""
        super().__init__()
        text_length(input_shape, "TextBag")
        self.token_dropout = token_dropout
        self.embedding = nn.EmbeddingBag(vocabulary, width, mode="sum", padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=INITIAL_EMBEDDING_STD)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training and self.token_dropout:
            tokens = tokens * (torch.rand(tokens.shape, device=tokens.device) >= self.token_dropout)
        # The norm of a sum of unrelated embeddings grows with the root of their number.
        count = (tokens != 0).sum(1, keepdim=True).clamp(min=1)
        outputs: Tensor = self.classifier(self.embedding(tokens) / count.sqrt())
        return outputs

"""A small transformer encoder for whole texts."""

import torch
from torch import Tensor, nn

from ddp_agent.config.fields import Decay, Layers, PositiveInt
from ddp_agent.models.common.blocks import INITIAL_STD, Block, check_heads, text_length


class TextTransformer(nn.Module):
    """Small transformer encoder: embeddings of tokens and positions, blocks, the mean over tokens, one linear layer."""

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        outputs: int,
        vocabulary: int,
        width: PositiveInt,
        layers: Layers,
        heads: PositiveInt,
        token_dropout: Decay,
        dropout: Decay,
    ) -> None:
        """`token_dropout`: share of a text's tokens that a training step hides."""
        super().__init__()
        check_heads(width, heads)
        self.token_dropout = token_dropout
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(text_length(input_shape, "TextTransformer"), width))
        for weight in (self.tokens.weight, self.places):
            nn.init.normal_(weight, std=INITIAL_STD)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens != 0
        if self.training and self.token_dropout:
            mask &= torch.rand(tokens.shape, device=tokens.device) >= self.token_dropout
        mask[:, 0] = True  # attention to no token at all would be NaN
        stream = self.dropout(self.tokens(tokens) + self.places)
        for block in self.blocks:
            stream = block(stream, mask)
        share = mask / mask.sum(1, keepdim=True)
        outputs: Tensor = self.classifier(torch.einsum("btw,bt->bw", self.norm(stream), share))
        return outputs

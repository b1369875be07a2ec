"""A small language model of the GPT kind."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddp_agent.config.fields import Decay, Layers, PositiveInt
from ddp_agent.models.common.blocks import INITIAL_STD, Block, check_heads, text_length

_MULTIPLIER, _PRIME = 1_000_003, 2**31 - 1  # of the hash; products stay far below 2^63


class GPT(nn.Module):
    """Small GPT: a causal transformer that sees each token with its hashed n-grams."""

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        vocabulary: int,
        width: PositiveInt,
        layers: Layers,
        heads: PositiveInt,
        ngrams: PositiveInt,
        buckets: PositiveInt,
        ngram_width: PositiveInt,
        dropout: Decay,
    ) -> None:
        """`ngrams`: length of the longest n-gram; 1 for none. Each length has `buckets` rows of `ngram_width`.

        The last few tokens carry most of the information about the next one. A lookup of hashed n-grams (Pagnoni et
        al. 2024, arXiv:2412.09871, section 3.2) costs no arithmetic, and attention need not learn them first.
        """
        super().__init__()
        check_heads(width, heads)
        self.ngrams, self.buckets = ngrams, buckets
        self.table = nn.Embedding((ngrams - 1) * buckets, ngram_width) if ngrams > 1 else None
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(text_length(input_shape, "GPT"), width))
        self.join = nn.Linear((ngrams - 1) * ngram_width, width, bias=False) if ngrams > 1 else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        for part in (self.table, self.tokens, self.output):
            if part is not None:
                nn.init.normal_(part.weight, std=INITIAL_STD)
        nn.init.normal_(self.places, std=INITIAL_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each next token, [batch, length, vocabulary], for `tokens` [batch, length]."""
        stream = self.tokens(tokens) + self.places[: tokens.shape[1]]
        if self.table is not None and self.join is not None:
            stream = stream + self.join(self.table(self.hashed(tokens)).flatten(2))
        stream = self.dropout(stream)
        for block in self.blocks:
            stream = block(stream, causal=True)
        outputs: Tensor = self.output(self.norm(stream))
        return outputs

    def hashed(self, tokens: Tensor) -> Tensor:
        """Return a row of the table for the last 2, 3, … tokens at each position: [batch, length, ngrams - 1]."""
        rows, code, earlier = [], tokens, tokens
        for length in range(self.ngrams - 1):
            earlier = F.pad(earlier, (1, -1), value=-1)  # -1 stands for positions before the first token
            code = (code * _MULTIPLIER + earlier + 2) % _PRIME
            rows.append(code % self.buckets + length * self.buckets)
        return torch.stack(rows, -1)

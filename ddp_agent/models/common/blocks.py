"""Checks of shapes, and a transformer block, that several models share."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_STD = 0.02  # of weights in a transformer


def image_shape(input_shape: tuple[int, ...], model: str) -> tuple[int, int, int]:
    """Return `input_shape` as (channels, height, width). Raises ValueError for data that are no images."""
    if len(input_shape) != 3:
        raise ValueError(f"{model}: found data of shape {input_shape}, expected images (channels, height, width)")
    channels, height, width = input_shape
    return channels, height, width


def text_length(input_shape: tuple[int, ...], model: str) -> int:
    """Return the number of tokens of a text. Raises ValueError for data that are no texts."""
    if len(input_shape) != 1:
        raise ValueError(f"{model}: found data of shape {input_shape}, expected texts (tokens,)")
    return input_shape[0]


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError when attention heads cannot share `width`."""
    if width % heads:
        raise ValueError(f"heads: found {heads}, expected a divisor of width {width}")


class Block(nn.Module):
    """A transformer's pre-norm block (Vaswani et al. 2017; Xiong et al. 2020, arXiv:2002.04745): attention, then MLP.

    Weights begin as in GPT-2: normal with a standard deviation of 0.02, divided by √(2 × blocks) in the layers whose
    output is added to the stream.
    """

    def __init__(self, width: int, heads: int, dropout: float, blocks: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.attention_in, self.mlp_in):
            nn.init.normal_(layer.weight, std=INITIAL_STD)
        for layer in (self.attention_out, self.mlp_out):
            nn.init.normal_(layer.weight, std=INITIAL_STD / math.sqrt(2 * blocks))

    def forward(self, stream: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return the stream after this block, [batch, tokens, width] as `stream`.

        `mask` [batch, tokens]: True for the tokens that may be attended to.
        """
        stream = stream + self.dropout(self.attend(self.attention_norm(stream), mask, causal))
        hidden = F.gelu(self.mlp_in(self.mlp_norm(stream)), approximate="tanh")
        outputs: Tensor = stream + self.dropout(self.mlp_out(hidden))
        return outputs

    def attend(self, stream: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Return the output of multi-head attention, [batch, tokens, width]."""
        batch, tokens, width = stream.shape
        parts = self.attention_in(stream).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mask = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        outputs: Tensor = self.attention_out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return outputs

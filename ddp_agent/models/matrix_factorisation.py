"""Matrix factorisation of ratings."""

from torch import Tensor, nn

from ddp_agent.config.fields import Decay, PositiveInt
from ddp_agent.models.common.blocks import INITIAL_STD


class MatrixFactorisation(nn.Module):
    """Dot product of a user's and an item's vector, plus a bias of each (Koren, Bell and Volinsky 2009)."""

    def __init__(self, *, users: int, items: int, mean: float = 0.0, width: PositiveInt, dropout: Decay) -> None:
        """`mean`: the mean of all ratings. It is added as a constant, so that weight decay does not act on it."""
        super().__init__()
        self.mean = mean
        self.user_vectors = nn.Embedding(users, width)
        self.item_vectors = nn.Embedding(items, width)
        for vectors in (self.user_vectors, self.item_vectors):
            nn.init.normal_(vectors.weight, std=INITIAL_STD)
        self.user_bias = nn.Embedding(users, 1)
        self.item_bias = nn.Embedding(items, 1)
        for bias in (self.user_bias, self.item_bias):
            nn.init.zeros_(bias.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """Return predictions [batch, items] for `rows` [batch, 1 + items] of a user and items."""
        user, items = rows[:, :1], rows[:, 1:]
        product = self.dropout(self.user_vectors(user)) * self.dropout(self.item_vectors(items))
        biases = self.user_bias(user) + self.item_bias(items)
        outputs: Tensor = product.sum(-1) + biases.squeeze(-1) + self.mean
        return outputs

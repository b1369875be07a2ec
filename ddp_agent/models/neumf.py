"""Neural matrix factorisation of ratings."""

import torch
from torch import Tensor, nn

from ddp_agent.config.fields import Decay, PositiveInt
from ddp_agent.models.common.blocks import INITIAL_STD


class NeuMF(nn.Module):
    """Neural matrix factorisation: a product of vectors, an MLP on others (He et al. 2017, arXiv:1708.05031)."""

    def __init__(
        self,
        *,
        users: int,
        items: int,
        mean: float = 0.0,
        width: PositiveInt,
        hidden: tuple[PositiveInt, ...],
        dropout: Decay,
    ) -> None:
        """`width`: length of each of the four kinds of vectors. `mean`: mean of all ratings, added as a constant."""
        super().__init__()
        self.mean = mean
        self.user_vectors, self.item_vectors = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_features, self.item_features = nn.Embedding(users, width), nn.Embedding(items, width)
        for vectors in (self.user_vectors, self.item_vectors, self.user_features, self.item_features):
            nn.init.normal_(vectors.weight, std=INITIAL_STD)
        self.dropout = nn.Dropout(dropout)
        layers: list[nn.Module] = []
        for before, after in zip((2 * width, *hidden), hidden, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers)
        self.output = nn.Linear(width + (2 * width, *hidden)[-1], 1)
        with torch.no_grad():
            self.output.weight[:, :width] = 1  # training begins with matrix factorisation
            self.output.bias.zero_()

    def forward(self, rows: Tensor) -> Tensor:
        """Return predictions [batch, items] for `rows` [batch, 1 + items] of a user and items."""
        user, items = rows[:, :1], rows[:, 1:]
        product = self.dropout(self.user_vectors(user)) * self.dropout(self.item_vectors(items))
        both = self.user_features(user).expand(-1, items.shape[1], -1), self.item_features(items)
        features = self.mlp(self.dropout(torch.cat(both, -1)))
        outputs: Tensor = self.output(torch.cat([product, features], -1)).squeeze(-1) + self.mean
        return outputs

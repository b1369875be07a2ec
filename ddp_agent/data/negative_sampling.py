"""Negative sampling: items that a user has not seen, drawn on any device."""

from typing import Self

import torch
from torch import Tensor


class NegativeSampler:
    """The unseen items of each user: those in none of the `pairs` [n, 2] (user, item).

    A user's unseen items are numbered in ascending order, from 0. Of a user's seen items s_0 < s_1 < …, there are
    s_i - i unseen ones before s_i. So the unseen item of number r is r plus the number of i with s_i - i <= r: one
    binary search, and nothing has to be drawn again because it was seen.
    """

    def __init__(self, users: int, items: int, pairs: Tensor) -> None:
        self.items = items
        user, item = pairs.unique(dim=0).unbind(1)
        seen = user.bincount(minlength=users)
        self.count = items - seen  # of unseen items, per user
        self._first = seen.cumsum(0) - seen
        before = item - (torch.arange(len(item)) - self._first[user])
        self._keys = user * items + before

    def to(self, device: torch.device) -> Self:
        """Move the tables to `device`. Return self."""
        self.count, self._first, self._keys = (part.to(device) for part in (self.count, self._first, self._keys))
        return self

    def numbered(self, user: Tensor, numbers: Tensor) -> Tensor:
        """Return the items [n, k] that have the `numbers` [n, k] among the unseen ones of users [n]."""
        index = torch.searchsorted(self._keys, user.unsqueeze(1) * self.items + numbers, right=True)
        items: Tensor = numbers + index - self._first[user].unsqueeze(1)
        return items

    def draw(self, user: Tensor, count: int) -> Tensor:
        """Return unseen items [n, count] of users [n], uniformly drawn with torch's global generator."""
        drawn = torch.randint(2**62, (len(user), count), device=user.device)
        return self.numbered(user, drawn % self.count[user].unsqueeze(1))

    def sample(self, user: int, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` different unseen items of one user."""
        numbers = torch.randperm(int(self.count[user]), generator=generator)[:count]
        return self.numbered(torch.tensor([user]), numbers.unsqueeze(0))[0]

"""Items that users have not seen, drawn on any device."""

import torch
from torch import Tensor


class Unseen:
    """For each user the items that are in none of its `pairs` [n, 2] (user, item), by rank: the first unseen is 0.

    Of a user's seen items s_0 < s_1 < …, there are s_i - i unseen ones before s_i. So the unseen item of rank r is r
    plus the number of i with s_i - i <= r: one binary search, and nobody needs to draw again for having hit a seen one.
    """

    def __init__(self, users: int, items: int, pairs: Tensor) -> None:
        self.items = items
        user, item = pairs.unique(dim=0).unbind(1)
        seen = user.bincount(minlength=users)
        self.count = items - seen  # unseen, by user
        self._first = seen.cumsum(0) - seen
        before = item - (torch.arange(len(item)) - self._first[user])
        self._keys = user * items + before

    def to(self, device: torch.device) -> "Unseen":
        self.count, self._first, self._keys = (part.to(device) for part in (self.count, self._first, self._keys))
        return self

    def of_rank(self, user: Tensor, ranks: Tensor) -> Tensor:
        """Items [n, k] of users [n] by their ranks [n, k]."""
        place = torch.searchsorted(self._keys, user.unsqueeze(1) * self.items + ranks, right=True)
        found: Tensor = ranks + place - self._first[user].unsqueeze(1)
        return found

    def draw(self, user: Tensor, count: int) -> Tensor:
        """Items [n, count], each as likely as the other, with torch's global generator."""
        drawn = torch.randint(2**62, (len(user), count), device=user.device)
        return self.of_rank(user, drawn % self.count[user].unsqueeze(1))

    def sample(self, user: int, count: int, generator: torch.Generator) -> Tensor:
        """Different items [count]."""
        ranks = torch.randperm(int(self.count[user]), generator=generator)[:count]
        return self.of_rank(torch.tensor([user]), ranks.unsqueeze(0))[0]

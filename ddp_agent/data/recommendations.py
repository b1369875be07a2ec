"""A text of recommendations for a few users, made with a trained model of ratings."""

import torch
from torch import Tensor, nn

from ddp_agent.data.readers.ratings import Ratings

USERS = 5
FILMS = 5


@torch.no_grad()
def recommendations(model: nn.Module, *, ratings: Ratings, titles: tuple[str, ...]) -> str:
    """Return, for some users, the films that they rated highest and the unseen films that the model scores highest."""
    device = next(model.parameters()).device
    count = len(ratings.user_ids)
    lines = []
    for user in range(0, count, -(-count // USERS)):
        own = ratings.user == user
        seen, best = ratings.film[own], ratings.stars[own].argsort(descending=True, stable=True)[:FILMS]
        row = torch.cat([torch.tensor([user]), torch.arange(len(titles))])
        scores = model(row.unsqueeze(0).to(device))[0].float().cpu().index_fill_(0, seen, -torch.inf)
        first = scores.topk(min(FILMS, len(titles) - len(seen)))
        lines.append(f"user {ratings.user_ids[user]} gave")
        lines += _listed(titles, seen[best], ratings.stars[own][best])
        lines.append("  and should see")
        lines += _listed(titles, first.indices, first.values)
    return "\n".join(lines) + "\n"


def _listed(titles: tuple[str, ...], films: Tensor, numbers: Tensor) -> list[str]:
    return [f"  {number:5.2f}  {titles[film]}" for film, number in zip(films, numbers, strict=True)]

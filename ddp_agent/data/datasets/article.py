"""The worked case of the source article: 1,000 samples of 10 features, sliced over 10 nodes."""

from dataclasses import dataclass

import torch

from ddp_agent.config.fields import PositiveFloat, PositiveInt, check_fields
from ddp_agent.config.memory import require
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.task import Data, Samples, Task

DATA_SEED = 1000  # never the run's: every run sees the same samples


@dataclass(kw_only=True)
class Article:
    """The article's case: 1,000 generated samples of 10 features in two nearly separable classes.

    The article gives sizes, not data. Here both classes are equally likely, and features are drawn from a normal
    distribution of unit variance around +m or -m, where m points in a random direction and has length `separation`.
    The best possible classifier is linear and right with probability Phi(separation): 0.989 for 2.3. Test samples
    are drawn from the same distribution.
    """

    samples: PositiveInt
    test_samples: PositiveInt
    features: PositiveInt
    separation: PositiveFloat
    loss: LossName

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            8 * (self.samples + self.test_samples) * (self.features + 1), "its samples"
        )  # twice while they are made

    def load(self) -> Task:
        """Return the task. The same samples are generated in every run."""
        generator = torch.Generator().manual_seed(DATA_SEED)
        direction = torch.randn(self.features, generator=generator)
        mean = self.separation * direction / direction.norm()

        def draw(samples: int) -> Samples:
            labels = torch.randint(2, (samples,), generator=generator)
            noise = torch.randn(samples, self.features, generator=generator)
            return noise + (2 * labels - 1).unsqueeze(1) * mean, labels

        data = Data.resident(draw(self.samples), draw(self.test_samples))
        return classification(data, outputs=2, loss=self.loss)

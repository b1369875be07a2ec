"""A plan as JSON: all numbers, and the sentences that the terminal shows."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from ddp_agent.plan.advice import seconds_to
from ddp_agent.plan.answer import answer
from ddp_agent.plan.as_text import assumed, fitted, recommendation
from ddp_agent.plan.outcome import Outcome
from ddp_agent.plan.predict import Prediction

# Keys with the attributes that they hold.
_COSTS = {key: key for key in ("message_s", "host_byte_s", "headers", "link_known")}
_PREDICTION = {
    "setting": "label", "ranks": "ranks", "from_ranks": "base.ranks",
    "from_link_rate_bits_per_s": "base.rate_bits_per_s",
    "global_batch_size": "batch", "step_s": "step_s", "local_s": "local_s", "moving_s": "moving_s",
    "waiting_s": "waiting_s", "exposed_share": "exposed_share", "samples_per_s": "samples_per_s", "at_least": "bound",
    "wire_bytes_per_step": "wire_bytes", "all_reduce": "algorithm",
}  # fmt: skip
_ADVICE = {
    "ranks": "ranks", "speedup": "speedup", "loss": "loss", "seeds": "seeds", "fastest": "fastest.label",
    "quality_from_ranks": "rests_on",
}  # fmt: skip
_CHECK = {
    "setting": "measured.label", "ranks": "measured.ranks", "link_rate_bits_per_s": "measured.rate_bits_per_s",
    "measured_samples_per_s": "measured.samples_per_s", "predicted_samples_per_s": "predicted_samples_per_s",
    "error": "error", "measured_local_s": "measured.local_s", "predicted_local_s": "local_s",
    "measured_communication_s": "measured.exposed_s", "predicted_communication_s": "communication_s",
}  # fmt: skip


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return the content of the file that --json names."""
    model, measured, question = outcome.model, outcome.measured, outcome.question
    settings, runs = len({each.setting.key for each in measured}), sum(len(each.runs) for each in measured)
    counts = {"settings": settings, "runs": runs}
    return {
        "answer": answer(outcome),
        "fitted": {**_select(model.costs, _COSTS), **counts, "said": fitted(model, measured)},
        "assumed": assumed(model, question.link),
        "link": vars(question.link),
        "target": question.target,
        "predictions": [_prediction(each, outcome) for predictions in outcome.predictions for each in predictions],
        "advice": [
            {
                **_select(each, _ADVICE),
                "setting": each.mode.label if each.mode and each.rests_on == each.ranks else None,
                "likely": each.mode and each.mode.label,
                "said": recommendation(each, question),
            }
            for each in outcome.advice
        ],
        "checked": [
            {**_select(each, _CHECK), "from_ranks": each.base.ranks if each.base else None} for each in outcome.checks
        ],
    }


def _select(source: object, attributes: Mapping[str, str]) -> dict[str, Any]:
    return {key: attrgetter(attribute)(source) for key, attribute in attributes.items()}


def _prediction(prediction: Prediction, outcome: Outcome) -> dict[str, Any]:
    quality, target = outcome.qualities.of(prediction), outcome.question.target
    return {
        **_select(prediction, _PREDICTION),
        "doubted_for_error": outcome.doubts(prediction),
        "time_to_target_s": seconds_to(target, prediction, quality) if quality and target is not None else None,
        "test_metric": quality.metric if quality else None,
        "seeds": quality.seeds if quality else 0,
    }

"""A sweep of four modes, one of which went astray, for the page and its figures."""

from pathlib import Path

from report_cases import make_run, result_of

from ddp_agent.report.comparison.result import Result

HOSTILE = """<script>alert("1")</script><img src=x onerror='alert(2)'>&amp;$\\frac{1}$"""


MODES = {"allreduce": 0.90, "local_sgd": 0.903, "diloco": 0.86, "parameter_update": 0.2}


def sweep(path: Path) -> Result:
    """Three seeds of four modes, one of which went astray, one run that failed, and a changing period."""
    for place, (mode, value) in enumerate(MODES.items()):
        for seed in range(3):
            metric = value + seed / 100 - place * seed / 2000
            make_run(
                path / f"{mode}{seed}", sync=mode, seed=seed, curve=(metric - 0.02, metric - 0.01, metric),
                test_metric=metric,
                wire_bytes=int(9e7 / (1 + 40 * place)), train_s=3.0 + place, data_s=0.1, compute_s=2.0 + place,
                exposed_comm_s=0.9, straggler_wait_s=0.3, eval_s=0.4, checkpoint_s=0.1, target=0.85, params=26122,
                config={"sync": {"period": 8 * place or None}}, periods=(8, 16) if mode == "diloco" else (),
            )  # fmt: skip
    make_run(path / "failed", status={"status": "failed", "reason": HOSTILE}, sync="gossip")
    return result_of(path)

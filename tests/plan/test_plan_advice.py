"""The recommended mode: the fastest whose measured quality is good enough; none without a measurement."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planned_runs import MODES, World, speed, write

from ddp_agent.plan.__main__ import main

WORLD = World()
QUALITY = {"allreduce": 0.910, "local_sgd H=8": 0.907, "diloco H=16 int8": 0.880, "compressed int8": 0.911}


def experiment(path: Path, *, n: int = 2, seeds: int = 1, quality: dict[str, float] = QUALITY, **changes: Any) -> Path:
    for label, metric in quality.items():
        for seed in range(seeds):
            there = path / f"{label} {n} {seed}"
            write(there, WORLD, label, n, seed=seed, **{"test_metric": metric + 0.001 * seed} | changes)
    return path


def plan(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    file = tmp_path / "plan.json"
    assert main([*map(str, arguments), "--rate", "100mbit", "--explain", "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def advice(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    (found,) = plan(tmp_path, *arguments)["advice"]
    return dict(found)


@pytest.mark.parametrize(
    ("loss", "mode", "lost"),
    [("0.05", "diloco H=16 int8", 0.030), ("0.005", "local_sgd H=8", 0.003), ("0", "compressed int8", -0.001)],
)
def test_the_fastest_within_the_loss(tmp_path: Path, loss: str, mode: str, lost: float) -> None:
    found = advice(tmp_path, experiment(tmp_path / "runs"), "--loss", loss)
    assert (found["setting"], found["loss"]) == (mode, pytest.approx(lost))
    assert found["fastest"] == "diloco H=16 int8"
    slow = replace(WORLD, rate=1e8)
    assert found["speedup"] == pytest.approx(speed(slow, mode, 2) / speed(slow, "allreduce", 2))


def test_of_a_metric_that_goes_down_less_is_better(tmp_path: Path) -> None:
    runs = experiment(tmp_path / "runs", higher_is_better=False)
    assert advice(tmp_path, runs, "--loss", "0")["setting"] == "diloco H=16 int8"


def test_another_baseline(tmp_path: Path) -> None:
    runs = experiment(tmp_path / "runs")
    found = advice(tmp_path, runs, "--loss", "0.001", "--baseline", "local_sgd")
    assert (found["setting"], found["speedup"], found["loss"]) == ("local_sgd H=8", 1.0, 0.0)
    assert "the baseline itself" in found["said"]


@pytest.mark.parametrize(("seeds", "words"), [(1, "one seed"), (3, "means of 3 seeds")])
def test_it_says_on_how_many_seeds_it_rests(tmp_path: Path, seeds: int, words: str) -> None:
    found = advice(tmp_path, experiment(tmp_path / "runs", seeds=seeds))
    assert found["seeds"] == seeds and words in found["said"]


def test_for_numbers_of_ranks_that_were_not_run_the_quality_is_of_others(tmp_path: Path) -> None:
    """The fastest whose quality was good enough where it was measured, and that is said. Measured is only the first."""
    outcome = plan(tmp_path, experiment(tmp_path / "runs"), "--ranks", "2,4")
    two, four = outcome["advice"]
    assert (two["setting"], two["likely"], two["quality_from_ranks"]) == ("local_sgd H=8", "local_sgd H=8", 2)
    assert (four["setting"], four["likely"], four["quality_from_ranks"]) == (None, "local_sgd H=8", 2)
    slow = replace(WORLD, rate=1e8)
    assert four["speedup"] == pytest.approx(speed(slow, "local_sgd H=8", 4) / speed(slow, "allreduce", 4))
    assert four["fastest"] == "diloco H=16 int8" and "not measured on 4 ranks" in four["said"]
    assert {each["test_metric"] for each in outcome["predictions"] if each["ranks"] == 4} == {None}


def test_the_answer_comes_first_and_says_what_it_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = experiment(tmp_path / "runs", seeds=3)
    assert main([str(runs), "--rate", "100mbit", "--ranks", "2,4,64"]) == 0
    output = capsys.readouterr().out
    said = output.splitlines()
    assert said[0] == "Answer" and said[1].startswith("  - Use local_sgd H=8 at 100 Mbit/s: predicted ")
    words = " ".join(output.split())
    assert "times as fast as allreduce on 2 ranks, " in words
    assert "0.9080 against 0.9110 on 2 ranks (means of 3 seeds), within the accepted loss of 0.005." in words
    assert "On 4 ranks and 64 ranks it was not measured and may differ." in words
    assert "This rests on 12 runs (2 ranks at 1 Gbit/s)." in words
    assert "no data" not in output and "Assumed" not in output and len(said) < 25


def test_runs_of_one_mode_say_what_is_missing(tmp_path: Path) -> None:
    runs = experiment(tmp_path / "runs", quality={"local_sgd H=8": 0.9})
    answer = plan(tmp_path, runs, "--ranks", "2,4")["answer"]
    assert answer[0].startswith("No recommendation for 2 ranks and 4 ranks: allreduce, the baseline, is not among the")
    assert "--baseline" in answer[0] and "model's error is unknown" in answer[1]


# Where the model's own check is off


def uneven(path: Path) -> Path:
    """One mode computes 20 ms more per step than the model can know from the others."""
    runs = experiment(path, quality={"allreduce": 0.91, "compressed int8": 0.91})
    write(runs / "odd", WORLD, "local_sgd H=8", extra_s=0.02, test_metric=0.91)
    return runs


def test_a_setting_whose_own_check_is_off_is_not_predicted_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(tmp_path, uneven(tmp_path / "runs"), "--ranks", "2,8")
    assert [each["likely"] for each in found["advice"]] == ["compressed int8"] * 2
    doubted = {each["setting"]: each["doubted_for_error"] for each in found["predictions"]}
    assert doubted["local_sgd H=8"] > 0.3 and doubted["allreduce"] is doubted["compressed int8"] is None
    output = capsys.readouterr().out
    assert output.count("not predicted") == 2 and "does not predict local_sgd H=8 (+" in " ".join(output.split())


def test_where_it_was_measured_it_stays_in_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is predicted there, so nothing has to be believed."""
    assert main([str(uneven(tmp_path / "runs"))]) == 0
    assert "not predicted" not in capsys.readouterr().out


def test_what_backward_hides_is_no_reason_to_doubt(tmp_path: Path) -> None:
    """The check of a setting as if it had never run cannot know what backward hides; the prediction knows."""
    hidden = replace(WORLD, backward_s=1.0, rate=1e8)
    for label in ("allreduce", "compressed int8", "local_sgd H=8"):
        write(tmp_path / "runs" / label, hidden, label, test_metric=0.9)
    found = plan(tmp_path, tmp_path / "runs", "--ranks", "2,8")
    assert {each["setting"]: each["error"] for each in found["checked"]}["allreduce"] < -0.3
    assert {each["doubted_for_error"] for each in found["predictions"]} == {None}


def test_a_baseline_that_is_not_predicted_leaves_the_gain_unknown(tmp_path: Path) -> None:
    quality = dict.fromkeys(["local_sgd H=8", "compressed int8", "diloco H=16 int8"], 0.91)
    runs = experiment(tmp_path / "runs", quality=quality)
    write(runs / "odd", WORLD, "allreduce", extra_s=0.02, test_metric=0.91)
    found = plan(tmp_path, runs, "--ranks", "2,8")
    assert all(each["speedup"] is None and each["likely"] == "diloco H=16 int8" for each in found["advice"])
    assert "Its gain is unknown, since allreduce is not predicted there." in found["answer"][0]


def test_a_model_that_misses_everything_predicts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    for index, label in enumerate(("compressed", "compressed int8")):
        write(runs / label, WORLD, label, extra_s=0.06 * index, test_metric=0.9)
    found = plan(tmp_path, runs, "--ranks", "8", "--baseline", "compressed")
    assert "No recommendation for 8 ranks: the model's own check is off by " in found["answer"][0]
    assert found["advice"][0]["likely"] is None and "by time alone" not in found["advice"][0]["said"]
    assert "samples/s, 8 ranks" in capsys.readouterr().out


def test_a_mode_that_was_not_run_on_so_many_ranks_is_not_recommended(tmp_path: Path) -> None:
    """The baseline was run on 4 with this batch, and one mode; another only on 2."""
    runs = experiment(tmp_path / "runs")
    experiment(tmp_path / "runs", n=4, quality={"allreduce": 0.91, "compressed int8": 0.909})
    assert advice(tmp_path, runs, "--ranks", "4")["setting"] == "compressed int8"


def test_quality_with_another_batch_is_another_quality(tmp_path: Path) -> None:
    """On 4 ranks with a quarter of the micro-batch; predicted is the whole of it."""
    runs = experiment(tmp_path / "runs")
    there = write(tmp_path / "there", replace(WORLD, micro_batch=8), "independent", 4)
    outcome = plan(tmp_path, runs, "--ranks", "2,4", "--compute", there)
    assert [each["setting"] for each in outcome["advice"]] == ["local_sgd H=8", None]
    assert outcome["advice"][1]["quality_from_ranks"] == 2


def test_a_shorter_run_says_nothing_of_quality(tmp_path: Path) -> None:
    """Only the time is used of a mode that ran for half the budget."""
    runs = experiment(tmp_path / "runs", quality={"allreduce": 0.91, "compressed int8": 0.908})
    write(runs / "short", WORLD, "local_sgd H=8", steps=40, test_metric=0.95)
    found = advice(tmp_path, runs)
    assert (found["setting"], found["fastest"]) == ("compressed int8", "local_sgd H=8")


def test_without_the_usual_baseline_there_are_predictions_alone(tmp_path: Path) -> None:
    runs = experiment(tmp_path / "runs", quality={"local_sgd H=8": 0.9, "compressed int8": 0.9})
    found = plan(tmp_path, runs)
    assert found["advice"][0]["setting"] is None and len(found["predictions"]) == 2


def test_pieces_of_other_packages_have_labels_of_their_own(tmp_path: Path) -> None:
    """A summary labels a piece without a config file by `module:Name`, as it was chosen."""
    runs = experiment(tmp_path / "runs", model="mypkg.nets:Tiny", quality={"allreduce": 0.9, "compressed int8": 0.9})
    for index, reducer in enumerate(("dense", "mypkg.codecs:Half")):
        foreign: dict[str, Any] = {"model": "mypkg.nets:Tiny", "sync": "mypkg.sync:Mine", "reducer": reducer}
        write(runs / f"foreign {index}", WORLD, "diloco H=16 int8", **foreign)
    found = plan(tmp_path, runs)
    settings = {each["setting"] for each in found["predictions"]}
    assert settings == {
        "allreduce", "compressed int8", "mypkg.sync:Mine H=16", "mypkg.sync:Mine H=16 mypkg.codecs:Half"
    }  # fmt: skip
    assert found["advice"][0]["setting"].startswith("mypkg.sync:Mine H=16")


# Time to a target


def test_time_to_target_is_steps_times_step_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluations after 40 and 80 steps, of half and of all the accuracy: 0.4545 is reached after 40 or after 80."""
    runs = experiment(tmp_path / "runs")
    found = plan(tmp_path, runs, "--target", "0.4545", "--loss", "1")
    slow = replace(WORLD, rate=1e8)
    times = {each["setting"]: each["time_to_target_s"] for each in found["predictions"]}
    for label, steps in {"allreduce": 40, "compressed int8": 40, "local_sgd H=8": 80, "diloco H=16 int8": 80}.items():
        assert times[label] == pytest.approx(steps * 64 / speed(slow, label, 2))
    assert found["advice"][0]["setting"] == min(times, key=lambda label: times[label])
    assert "time to 0.4545" in capsys.readouterr().out


def test_a_target_that_one_seed_misses_is_not_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = experiment(tmp_path / "runs", seeds=2)  # 0.907 and 0.908; 0.910 and 0.911
    found = plan(tmp_path, runs, "--target", "0.9075", "--loss", "1")
    times = {each["setting"]: each["time_to_target_s"] for each in found["predictions"]}
    assert times["local_sgd H=8"] is times["diloco H=16 int8"] is None and times["allreduce"] is not None
    assert found["advice"][0]["setting"] == "compressed int8"
    output = capsys.readouterr().out
    assert "in 1 of 2 runs" in output


def test_a_target_that_nobody_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(tmp_path, experiment(tmp_path / "runs"), "--target", "0.99")
    assert {each["time_to_target_s"] for each in found["predictions"]} == {None}
    assert found["advice"][0]["setting"] is None
    output = capsys.readouterr().out
    assert output.count("not reached") == len(QUALITY) and "reached 0.99" in output


def test_the_runs_own_target_is_used_when_they_agree(tmp_path: Path) -> None:
    assert plan(tmp_path, experiment(tmp_path / "runs", target=0.9))["target"] == 0.9
    write(tmp_path / "runs" / "other", WORLD, "easgd H=8", target=0.5)
    assert plan(tmp_path, tmp_path / "runs")["target"] is None


def test_a_target_of_a_metric_that_goes_down_is_reached_from_above(tmp_path: Path) -> None:
    """Evaluations after 40 and 80 steps, of half and of all the metric: below 0.456 are both of some, one of others."""
    quality = {"allreduce": 0.910, "local_sgd H=8": 0.914}
    found = plan(tmp_path, experiment(tmp_path / "runs", quality=quality, higher_is_better=False), "--target", "0.456")
    slow = replace(WORLD, rate=1e8)
    times = {each["setting"]: each["time_to_target_s"] for each in found["predictions"]}
    assert times["allreduce"] == pytest.approx(40 * 64 / speed(slow, "allreduce", 2))
    assert times["local_sgd H=8"] is None


def test_the_baseline_of_a_mode_is_the_exact_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--baseline diloco` means the exact one of two reducers that the mode ran with, in any order."""
    monkeypatch.setitem(MODES, "diloco H=16", {"sync": "diloco", "period": 16})
    runs = experiment(tmp_path / "runs", quality={"diloco H=16 int8": 0.9, "diloco H=16": 0.9})
    found = advice(tmp_path, runs, "--baseline", "diloco", "--loss", "1")
    slow = replace(WORLD, rate=1e8)
    assert found["setting"] == "diloco H=16 int8"
    assert found["speedup"] == pytest.approx(speed(slow, "diloco H=16 int8", 2) / speed(slow, "diloco H=16", 2))


def test_what_sends_nothing_is_the_fastest_only_among_its_like(tmp_path: Path) -> None:
    """On one rank every mode sends nothing."""
    runs = experiment(tmp_path / "runs", quality={"independent": 0.9, "allreduce": 0.9})
    one, two = plan(tmp_path, runs, "--ranks", "1,2")["advice"]
    assert two["fastest"] == "allreduce"
    assert one["fastest"] in ("independent", "allreduce")
    assert one["setting"] is None and "not measured on 1 rank" in one["said"]


def test_of_one_rank_only_independent_is_a_setting(tmp_path: Path) -> None:
    """Another mode that ran on one rank synchronised with nobody: nothing follows for several."""
    runs = experiment(tmp_path / "runs", quality={"allreduce": 0.9})
    write(runs / "one", WORLD, "local_sgd H=8", 1)
    write(runs / "free", WORLD, "independent", 1)
    found = plan(tmp_path, runs, "--ranks", "2")
    assert {each["setting"] for each in found["predictions"]} == {"allreduce", "independent"}

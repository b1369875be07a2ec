"""The options of launch/elastic.sh: a wrong one is refused before anything starts."""

import pytest

from ddp_agent.elastic.__main__ import parsed

HUGE = "9" * 400


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (["--replicas", "0"], "--replicas: found '0'"),
        (["--replicas", HUGE], "--replicas: found '999"),
        (["--replicas", "two"], "--replicas: found 'two'"),
        (["--replicas", "2", "--only", "0,x"], "--only: found '0,x', expected numbers from 0 to 1"),
        (["--replicas", "2", "--only", HUGE], "--only: found '999"),
        (["--replicas", "2", "--only", "2"], "--only: found '2'"),
        (["--replicas", "2", "--max-restarts", "-1"], "--max-restarts: found '-1'"),
        (["--replicas", "2", "--lost-after-s", "1e999"], "--lost-after-s: found '1e999', expected seconds"),
        (["--replicas", "2", "--patience-s", "nan"], "--patience-s: found 'nan', expected seconds"),
        (["--replicas", "2", "--patience-s", HUGE], "--patience-s: found '999"),
        (["--replicas", "2", "--listen", f"a:{HUGE}"], "--listen: found 'a:999"),
        (["--replicas", "2", "--coordinator", "10.0.0.1"], "--coordinator: found '10.0.0.1', expected HOST:PORT"),
    ],
)
def test_a_wrong_option_is_one_message(typed: list[str], found: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parsed(
            [f"{typed[0]}={typed[1]}", *(f"{key}={value}" for key, value in zip(typed[2::2], typed[3::2], strict=True))]
        )
    assert left.value.code == 2
    assert found in capsys.readouterr().err


def test_right_options_are_taken() -> None:
    options = parsed(
        ["--replicas", "3", "--only", "0,2", "--listen", "[::1]:29600", "--lost-after-s", "0.5", "--", "a=1"]
    )
    assert (options.replicas, options.numbers, options.lost_after_s, options.train) == (3, [0, 2], 0.5, ["a=1"])

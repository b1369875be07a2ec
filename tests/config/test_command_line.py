"""Commands that are printed: pasted into a shell, and read by Hydra, they hold the value again."""

import random
import re
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ddp_agent.config.command_line import for_hydra, override, shell_word
from ddp_agent.errors import ConfigError
from ddp_agent.outputs.run_directory import RunDirectory

PACKAGE = Path(__file__).parents[2] / "ddp_agent"
ALPHABET = "ab=, []{}()'\"\\$#~!:;&|<>*?é\n\t \x1b\udcff%@+-./0`^"
NAMES = [
    *("outputs/a", "a=b", "lr=0.1,seed=3", "it's", '"quoted"', "both ' and \"", "[1, 2]", "{a: b}", "a b", "ünïcode"),
    *(
        "${seed}",
        "\\${seed}",
        "\\\\${seed}",
        "a\\",
        "a\\'",
        "$HOME",
        "`id`",
        "$(id)",
        "*",
        "~/x",
        "!x",
        "#x",
        "-x",
        "a\nb",
    ),
    *("1", "1e5", ".5", "null", "True", "nan", "choice(a,b)", "glob(*)", "", " ", "a\udcffb", "\x1b[2Jx", "a,b", "a|b"),
]


def pasted(words: list[str]) -> list[str]:
    """What bash makes of words that stand in a command."""
    command = ["bash", "-c", 'printf "%s\\0" ' + " ".join(words)]
    written = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return written.decode(errors="surrogateescape").split("\0")[:-1]


def read(argument: str) -> object:
    """What Hydra makes of an argument, and OmegaConf of the value."""
    parsed = OverridesParser.create().parse_override(argument)
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, "value", parsed.value(), force_add=True)
    return cfg.value


def drawn() -> list[str]:
    source = random.Random(0)
    return ["".join(source.choices(ALPHABET, k=source.randint(1, 12))) for _ in range(400)]


def test_an_override_that_is_printed_can_be_pasted_back() -> None:
    values = [*NAMES, *drawn()]
    printed = [override("resume", value) for value in values]
    assert all(word.isprintable() for word in printed), "a name cannot forge a line on the terminal"
    arguments = pasted(printed)
    assert [argument.partition("=")[0] for argument in arguments] == ["resume"] * len(values)
    assert [read(argument) for argument in arguments] == values
    assert [read(f"x={for_hydra(value)}") for value in values] == values
    assert pasted([shell_word(value) for value in values]) == values


def test_an_ordinary_path_is_printed_as_it_is() -> None:
    assert override("resume", Path("outputs/2026-01-01_10-00-00-123")) == "resume=outputs/2026-01-01_10-00-00-123"


@pytest.mark.parametrize("name", ["lr=0.1,seed=3", "it's [1]", "a b", "${seed}"])
def test_the_advice_of_a_run_directory_leads_back_to_it(name: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / name)
    (directory.path / "metrics.jsonl").touch()
    directory.close()
    with pytest.raises(ConfigError, match="holds a run already") as refused:
        RunDirectory(tmp_path / name)
    (argument,) = pasted([str(refused.value).partition("continue that run with ")[2]])
    assert argument.startswith("resume=")
    assert read(argument) == str(tmp_path / name)


def test_no_advice_is_printed_without_quotes() -> None:
    """`resume={path}` in a message would be pasted back as it stands. What was found is no advice."""
    unquoted = re.compile(r"\b(resume|init_from)=\{|(?<!f.)\bhydra\.(run|sweep)\.dir=\{(?!for_hydra)")
    for file in sorted(PACKAGE.rglob("*.py")):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not unquoted.search(line), f"{file.name}: {line.strip()}: use override(key, value)"

"""Secrets: known by their keys, and left out of configurations, overrides and texts."""

import hashlib
import random
from string import ascii_letters, ascii_lowercase, digits

import pytest
from configs import CONF
from omegaconf import OmegaConf

from ddp_agent.cli.trust import content_problems
from ddp_agent.config import redaction
from ddp_agent.config.fields import REQUIRED, Parameter
from ddp_agent.config.redaction import redacted, redacted_override, remember, remember_overrides, scrubbed
from ddp_agent.config.registry import schema_problems
from ddp_agent.config.secret_text import HIDDEN, names_secret
from ddp_agent.outputs.files import to_json
from ddp_agent.outputs.summary import Summary

SECRETS = [
    *("token", "HF_TOKEN", "api_key", "apiKey", "accessToken", "password", "db.passwd", "client_secret", "key"),
    *("pwd", "passphrase", "credentials", "apikey", "api-key", "APIKey", "X-Amz-Signature", "X-Amz-Security-Token"),
    *("auth", "hub_auth", "bearer", "cookie", "session", "sessionId", "private", "sig", "sas", "dsn", "DSN_URL", "jwt"),
    *("connection_string", "connectionString", "webhook", "slack_webhook_url", "aws_access_key_id", "AccountKey"),
    *("wandb_api_key", "TOKEN_2", "github_pat", "netrc", "secretAccessKey", "PGPASSWORD", "service_key_json"),
]
HARMLESS = [
    *("tokens_per_step", "max_tokens", "key_dim", "monkey", "tokenizer", "keep", "author", "tokens_per_s", "passes"),
    *("design", "sigma", "assign", "signal", "path", "pattern", "authors", "dispatch", "keyboard", "compatible"),
]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_redacted_at_any_depth(name: str) -> None:
    config = {"a": [{"b": {name: "canary", "keep": 1}}], name: {"nested": "canary"}, "n": {name: 123456}}
    clean = redacted(config)
    assert "canary" not in to_json(clean)
    assert "123456" not in to_json(clean)
    assert clean["a"][0]["b"]["keep"] == 1
    assert config[name] == {"nested": "canary"}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_like_a_secret_is_kept(name: str) -> None:
    assert redacted({name: 64}) == {name: 64}


def test_a_secret_that_is_not_set_stays_visibly_unset() -> None:
    assert redacted({"token": None}) == {"token": None}


def test_where_a_secret_comes_from_is_none() -> None:
    assert redacted({"token": "${oc.env:HF_TOKEN}"}) == {"token": "${oc.env:HF_TOKEN}"}
    assert redacted({"token": "${oc.env:HF_TOKEN,canary}"}) == {"token": HIDDEN}


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("api_token=canary", "api_token=<redacted>"),
        ("+hub.password=can,ary", "+hub.password=<redacted>"),
        ("hub={url:a.org,token:canary}", "hub={url:a.org,token:<redacted>}"),
        ("hub={token:'can ary',url:a.org}", "hub={token:<redacted>,url:a.org}"),
        ("seed=1,api_token=canary,sync.period=4", "seed=1,api_token=<redacted>,sync.period=4"),
        ("token=${oc.env:HF_TOKEN}", "token=${oc.env:HF_TOKEN}"),
        ("+token='${oc.env:HF_TOKEN}'", "+token='${oc.env:HF_TOKEN}'"),
        ("url=https://me:canary@a.org/x", "url=https://<redacted>@a.org/x"),
        ("url='https://canary@a.org/x?api=canary#canary'", "url='https://<redacted>@a.org/x?<redacted>#<redacted>'"),
        ("url=s3://bucket/x?X-Amz-Signature=canary&b=c", "url=s3://bucket/x?<redacted>"),
        ("store=postgres://me:can/ary@db/x", "store=postgres://<redacted>@db/x"),
        ("hook=https://hooks.example.com/services/T0/B0/canary", "hook=https://hooks.example.com/services/<redacted>"),
        ("note=0123456789abcdef0123456789abcdef", "note=<redacted>"),
        ("run_name=0123456789abcdef0123456789abcdef", "run_name=0123456789abcdef0123456789abcdef"),
        ("model.hidden=[64,32]", "model.hidden=[64,32]"),
        ("key: in a sentence", "key: in a sentence"),
    ],
)
def test_overrides(typed: str, kept: str) -> None:
    assert redacted_override(typed) == kept
    assert redacted([{"task": [typed]}]) == [{"task": [kept]}]


def test_what_a_configuration_kept_secret_is_not_quoted_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-environment")
    monkeypatch.setenv("PLACE", "a-place-that-is-told")
    remember({"hub": {"token": "canary-1", "port": 8080}, "pins": [{"key": 1234567}], "note": "${oc.env:HF_TOKEN}"})
    remember({"data_root": "${oc.env:PLACE}"})
    remember_overrides(["+api_key=canary-2", "hub={token:'canary-3',a:b}", "plain=ordinary"])
    told = "401 for canary-1, canary-2, canary-3, 1234567 and canary-of-environment at 8080, ordinary, in "
    hidden = "401 for ?, ?, ?, ? and ? at 8080, ordinary, in a-place-that-is-told"
    assert scrubbed(told + "a-place-that-is-told") == hidden.replace("?", HIDDEN)


def test_a_secret_too_short_to_look_for_blots_nothing_out() -> None:
    remember({"token": "all"})
    assert scrubbed("all is well") == "all is well"


# Known by shape and by randomness

SHAPES = {
    "hf_" + "aBcD" * 5, "ghp_" + "0aB1" * 9, "github_pat_" + "a" * 22, "sk-proj-" + "abcd" * 6, "AKIA" + "ABCD" * 4,
    "xoxb-1234-abcd-efgh", "eyJhbGciOi.eyJzdWIiOi.c2ln", "glpat-" + "a" * 20, "AIza" + "b" * 35, "sk_live_" + "a" * 24,
    "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----",
}  # fmt: skip


@pytest.mark.parametrize("secret", sorted(SHAPES))
def test_a_token_of_a_known_shape_is_hidden_wherever_it_stands(secret: str) -> None:
    for text in (secret, f"401 for {secret}: no", f"('{secret}',)", f"a={secret},b", f"https://a.org/{secret}/x"):
        assert not set(secret.split("\n")) & set(scrubbed(text).replace("'", " ").split())
        assert secret not in scrubbed(text)
    assert secret not in to_json(redacted({"note": [secret], secret: 1}))
    remember({"run": {"name": secret}})
    assert redaction.holds_known_secret(f"outputs/{secret}")


def drawn(alphabet: str, length: int) -> list[str]:
    source = random.Random(length)
    return ["".join(source.choices(alphabet, k=length)) for _ in range(300)]


@pytest.mark.parametrize("length", [24, 32, 40, 64])
@pytest.mark.parametrize("alphabet", [ascii_letters + digits, ascii_letters + digits + "+/", ascii_lowercase + digits])
def test_random_letters_are_hidden(alphabet: str, length: int) -> None:
    hidden = [text not in scrubbed(f"found '{text}', sorry") for text in drawn(alphabet, length)]
    assert sum(hidden) > 0.9 * len(hidden), "randomness is no certainty: names and shapes come first"


KEPT = [
    "a" * 64,
    hashlib.sha256(b"data").hexdigest(),
    hashlib.sha1(b"commit").hexdigest(),
    "123e4567-e89b-12d3-a456-426614174000",
    "multirun/2026-11-23_16-15-38-573/0/checkpoints/step-00000120/rank-0000.pt",
    "events.out.tfevents.1764567890.a-host-name.12345.0",
    "sync=local_sgd,sync.period=16,optimizer.lr=0.05,model.hidden=[128,64],seed=3",
    "ddp_agent.training.optimizers.AdamW, ProcessGroupNCCL, TORCH_NCCL_ASYNC_ERROR_HANDLING=1",
    "https://a.org/path/to/page.html",
    "expected key=value; quote a value with spaces: key='a b'",
    "optimizer.token: found 'abc', expected a number",
    "session = Session(setup)",
]


@pytest.mark.parametrize("text", KEPT)
def test_what_runs_write_is_kept(text: str) -> None:
    assert scrubbed(text) == text


def test_nothing_of_this_project_is_taken_for_a_secret() -> None:
    """Keys of the configuration, labels of the package, and every word of README and the log messages."""
    for file in sorted(CONF.rglob("*.yaml")):
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        assert redacted(content) == content
    for name in Summary.__annotations__:
        assert not names_secret(name)
    words = (CONF.parent / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in words if "://" not in line and scrubbed(line) != line] == []


def test_a_long_text_costs_little() -> None:
    """What other code prints may be made to be slow for regular expressions; here a quadratic one takes hours."""
    for text in ("a-" * 100_000 + ":", "a.b" * 60_000, "://" * 50_000, "token" + " " * 200_000 + ":", "eyJ-" * 9000):
        assert len(scrubbed(text)) > 0


def test_the_environment_holds_secrets_under_whatever_key_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "plain words here")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/a/socket/of/theirs")
    monkeypatch.setenv("HOME_OF_ALL", "an ordinary value")
    redaction.remember_environment()
    said = "plain words here, /run/a/socket/of/theirs, an ordinary value"
    assert scrubbed(said) == said.replace("plain words here", HIDDEN)
    assert redacted({"model": {"note": "plain words here"}}) == {"model": {"note": HIDDEN}}


def test_a_secret_that_is_the_name_of_a_key_hides_no_problem_of_that_key() -> None:
    remember({"token": "global_batch_size"})
    accepted = {"global_batch_size": Parameter(annotation=int, default=REQUIRED)}
    (problem,) = schema_problems({"global_batch_size": 0.5}, accepted)
    assert problem == "global_batch_size: found 0.5, expected an integer"
    (problem,) = content_problems({"hydra": {"global_batch_size": "a b"}}, ())
    assert problem.startswith("hydra.global_batch_size: found 'a b', which a file must not set")

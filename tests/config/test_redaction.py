"""Secrets: known by their keys, and left out of configurations, overrides and texts."""

import pytest

from ddp_agent.config import redaction
from ddp_agent.config.redaction import redacted, redacted_override, remember, remember_overrides, scrubbed
from ddp_agent.outputs.files import to_json

SECRETS = [
    "token",
    "HF_TOKEN",
    "api_key",
    "apiKey",
    "accessToken",
    "password",
    "db.passwd",
    "client_secret",
    "key",
]
HARMLESS = ["tokens_per_step", "max_tokens", "key_dim", "monkey", "tokenizer", "keep", "author"]


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
    assert redacted({"token": "${oc.env:HF_TOKEN,canary}"}) == {"token": redaction.HIDDEN}


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
    assert scrubbed(told + "a-place-that-is-told") == hidden.replace("?", redaction.HIDDEN)


def test_a_secret_too_short_to_look_for_blots_nothing_out() -> None:
    remember({"token": "all"})
    assert scrubbed("all is well") == "all is well"

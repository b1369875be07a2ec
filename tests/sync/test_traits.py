"""The public face of a sync mode: its hyperparameters, its hooks, its traits and problems, and nothing else."""

import copy
import pickle
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import pytest
from loops import Loop, alone
from mode_cases import ALL, MODES

from ddp_agent.sync.engine.internals import internals

HOOKS: dict[str, tuple[Any, ...]] = {
    "backward_context": (1, True),
    "before_step": (1,),
    "after_step": (1,),
    "flush": (1,),
    "eval_weights": (),
    "consensus_distance": (),
    "state_dict": (),
    "load_state_dict": ({},),
}
ELSE = {"setup", "problems", "traits", "traffic"}
FOR_SUBCLASSES = {"merge_parameters_", "outer_step_", "anchor"}  # what an author of a mode writes, or works on


@MODES
def test_a_mode_has_its_hyperparameters_its_hooks_and_no_other_public_name(mode: str) -> None:
    sync = Loop(ALL[mode](), topology=alone()).sync
    hyperparameters = {field.name for field in fields(sync) if field.init}
    public = {name for name in dir(sync) if not name.startswith("_")}
    assert public - hyperparameters - FOR_SUBCLASSES == HOOKS.keys() | ELSE


@MODES
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_before_setup_says_what_is_missing(mode: str, hook: str) -> None:
    sync = ALL[mode]()
    expected = rf"{type(sync).__name__}\.{hook} was called before setup; call {type(sync).__name__}\.setup\(model, opt"
    for early in (sync, replace(sync), copy.deepcopy(sync), pickle.loads(pickle.dumps(sync))):
        with pytest.raises(RuntimeError, match=expected):
            getattr(early, hook)(*HOOKS[hook])
    with pytest.raises(RuntimeError, match="is not set up; call setup"):
        internals(sync)


@MODES
@pytest.mark.parametrize("hook", HOOKS)
def test_after_setup_hooks_are_the_class_s_own(mode: str, hook: str) -> None:
    sync = Loop(ALL[mode](), topology=alone()).sync
    with mock.patch.object(type(sync), hook, autospec=True) as own:
        result = getattr(sync, hook)(*HOOKS[hook])
        if hook == "eval_weights":
            result.__enter__()
    own.assert_called_once_with(sync, *HOOKS[hook])
    with pytest.raises(RuntimeError, match="before setup"):  # a copy with other values has no model yet
        replace(sync).after_step(1)

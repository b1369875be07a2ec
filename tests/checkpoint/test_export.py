import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddp_agent.checkpoint import export
from ddp_agent.checkpoint.manifest import File
from ddp_agent.errors import CheckpointError
from ddp_agent.models.mlp import MLP
from ddp_agent.sync.engine.flat import Flat

ARGUMENTS = {"input_shape": [4], "outputs": 3, "hidden": [8, 5]}
DESCRIPTION = {
    "name": "MLP",
    "arguments": ARGUMENTS,
    "metric_name": "accuracy",
    "test_metric": 0.97,
}


class Tied(nn.Module):
    """A model whose encoder and decoder share a weight. One buffer is an integer and one is not persistent."""

    def __init__(self, *, size: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(size, size)
        self.decoder = nn.Linear(size, size)
        self.decoder.weight = self.encoder.weight
        self.norm = nn.BatchNorm1d(size)
        self.register_buffer("scale", torch.full((size,), 2.0), persistent=False)
        self.scale: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.decoder(self.encoder(inputs))) * self.scale
        return outputs


def mlp() -> MLP:
    return MLP(input_shape=(4,), outputs=3, hidden=(8, 5))


def flattened_mlp() -> nn.Module:
    model = mlp()
    Flat(model)
    return model


@pytest.mark.parametrize("make", [mlp, flattened_mlp, lambda: mlp().double(), lambda: mlp().bfloat16()])
def test_outputs_are_bitwise_the_same(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = make()
    inputs = torch.randn(16, 4, dtype=next(model.parameters()).dtype)
    export.save(tmp_path, model, description=DESCRIPTION)
    loaded = export.load(tmp_path)
    assert torch.equal(loaded(inputs), model(inputs))
    assert not loaded.training


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Tied(size=4)
    model(torch.randn(8, 4))  # moves the running statistics
    description = {"name": f"{__name__}:Tied", "arguments": {"size": 4}}
    export.save(tmp_path, model, description=description)
    loaded = export.load(tmp_path, trusted_packages=[__name__])
    assert isinstance(loaded, Tied)
    assert loaded.decoder.weight is loaded.encoder.weight
    inputs = torch.randn(8, 4)
    assert torch.equal(loaded(inputs), model.eval()(inputs))
    assert "decoder.weight" not in (tmp_path / "model.safetensors").read_bytes().decode(errors="ignore")


def test_weights_with_other_strides_are_exported(tmp_path: Path) -> None:
    model = mlp()
    model[0].weight = nn.Parameter(torch.randn(4, 8).t())
    Flat(model)
    assert not model[0].weight.is_contiguous()
    export.save(tmp_path, model, description=DESCRIPTION)
    for (name, saved), (other, loaded) in zip(
        model.named_parameters(), export.load(tmp_path).named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(saved, loaded)


def test_a_module_of_an_untrusted_package_is_refused(tmp_path: Path) -> None:
    description = {"name": f"{__name__}:Tied", "arguments": {"size": 4}}
    export.save(tmp_path, Tied(size=4), description=description)
    with pytest.raises(CheckpointError, match=r"model\.json.*trusted_packages"):
        export.load(tmp_path)


def test_the_model_exported_is_left_alone(tmp_path: Path) -> None:
    model = flattened_mlp().train()
    before = [(parameter.data_ptr(), parameter.clone()) for parameter in model.parameters()]
    export.save(tmp_path, model, description=DESCRIPTION)
    assert model.training
    for parameter, (address, value) in zip(model.parameters(), before, strict=True):
        assert parameter.data_ptr() == address
        assert torch.equal(parameter, value)


def test_loading_leaves_the_random_stream_alone(tmp_path: Path) -> None:
    export.save(tmp_path, mlp(), description=DESCRIPTION)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    export.load(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_metadata_is_kept(tmp_path: Path) -> None:
    export.save(tmp_path, mlp(), description=DESCRIPTION | {"test_loss": float("nan")})
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["format"] == 1
    assert DESCRIPTION.items() <= about.items()
    assert about["test_loss"] is None


def test_a_second_export_replaces_the_first(tmp_path: Path) -> None:
    export.save(tmp_path, mlp(), description=DESCRIPTION)
    model = mlp()
    export.save(tmp_path, model, description=DESCRIPTION)
    inputs = torch.randn(2, 4)
    assert torch.equal(export.load(tmp_path)(inputs), model(inputs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def edit_description(**changes: object) -> Callable[[Path], None]:
    def edit(run_dir: Path) -> None:
        path = run_dir / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_argument(**changes: object) -> Callable[[Path], None]:
    return edit_description(arguments=ARGUMENTS | changes)


def flip_a_bit(run_dir: Path) -> None:
    path = run_dir / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(run_dir: Path) -> None:
    path = run_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def swap_in_foreign_weights(run_dir: Path) -> None:
    weights = run_dir / "model.safetensors"
    weights.write_bytes(b"not safetensors at all")
    edit_description(weights=vars(File.of(weights)))(run_dir)


def remove(name: str) -> Callable[[Path], None]:
    return lambda run_dir: (run_dir / name).unlink()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda run_dir: (run_dir / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("model.json"), r"model\.json: No such file"),
        (remove("model.safetensors"), r"model\.safetensors: No such file"),
        (write("model.json", ""), r"model\.json: not JSON"),
        (write("model.json", "[" * 100_000), r"model\.json: not JSON"),
        (write("model.json", "[1, 2]"), r"model\.json: format: found None, expected int"),
        (edit_description(format=2), r"model\.json: format: found 2, expected 1"),
        (edit_description(name=None), r"model\.json: name: found None, expected str"),
        (edit_description(name="MPL"), r"model\.json: .*found 'MPL', did you mean MLP"),
        (edit_description(name="os:system"), r"model\.json: .*trusted_packages"),
        (edit_argument(hiden=3), r"model\.json: .*hiden"),
        (edit_argument(input_shape="four"), r"model\.json: no model can be built"),
        (edit_argument(hidden=[0]), r"model\.json: .*hidden: found \[0\]"),
        (edit_argument(hidden=[8, 6]), r"2\.weight: found \(5, 8\).*\(6, 8\)"),
        (edit_argument(hidden=[1] * 100_000), r"model\.json: .*found 100,005 values in its arguments"),
        (edit_argument(hidden=[8]), r"4\.weight: found \(3, 5\).*nothing"),
        (edit_description(weights={"path": "/etc"}), r"model\.safetensors: not what model\.json describes"),
        (truncate, r"model\.safetensors: found \d+ bytes, expected \d+"),
        (flip_a_bit, r"model\.safetensors: damaged, found sha256"),
        (swap_in_foreign_weights, r"model\.safetensors: not what model\.json describes"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    export.save(tmp_path, mlp(), description=DESCRIPTION)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as raised:
        export.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_failed_export_says_where_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    export.save(tmp_path, model, description=DESCRIPTION)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*No space left"):
        export.save(tmp_path, mlp(), description=DESCRIPTION)
    monkeypatch.undo()
    inputs = torch.randn(2, 4)
    assert torch.equal(export.load(tmp_path)(inputs), model(inputs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_both_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        export.save(tmp_path, mlp(), description=DESCRIPTION)
    finally:
        os.umask(old)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "model.json": 0o640,
        "model.safetensors": 0o640,
    }


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Stateful(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

    with pytest.raises(CheckpointError, match="_extra_state: found dict"):
        export.save(tmp_path, Stateful(), description=DESCRIPTION)

"""torchvision's classification models. torchvision is imported when one is built."""

import difflib

import torch
from torch import Tensor, nn

from ddp_agent.models.common.blocks import image_shape

# Models whose auxiliary classifiers would make the output a tuple in training mode.
AUXILIARY = {"googlenet", "inception_v3"}


class TorchvisionModel(nn.Module):
    """Any classification model of torchvision by its name (arch), from random weights.

    The numbers of classes and of input channels are those of the data. Pretrained weights are not offered: a comparison
    starts every rank and mode from the same seeded weights.
    """

    def __init__(self, *, input_shape: tuple[int, ...], outputs: int, arch: str) -> None:
        super().__init__()
        shape = image_shape(input_shape, f"arch {arch}")
        _check_known(arch)
        self.model = _create(arch, shape[0], outputs)
        _check_shape(arch, self.model, shape)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.model(inputs)
        return outputs


def _check_known(arch: str) -> None:
    from torchvision import models

    known = models.list_models(module=models)
    if arch not in known:
        near = ", ".join(difflib.get_close_matches(arch, known)) or f"such as resnet18 ({len(known)} are known)"
        raise ValueError(f"arch: found {arch!r}, expected a classification model of torchvision: {near}")


def _check_shape(arch: str, model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Run one forward pass on the meta device, which computes shapes without numbers and changes no state."""
    state = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    try:
        torch.func.functional_call(model, state, torch.empty(2, *shape, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"arch: found {arch!r}, which cannot take images of shape {shape}: {error}") from error


def _create(arch: str, channels: int, outputs: int) -> nn.Module:
    from torchvision import models

    options = {"aux_logits": False, "init_weights": True} if arch in AUXILIARY else {}
    model: nn.Module = models.get_model(arch, weights=None, num_classes=outputs, **options)
    if channels != 3:
        _replace_stem(model, channels)
    return model


def _replace_stem(model: nn.Module, channels: int) -> None:
    """Replace the first convolution, which every model of torchvision has, by one for `channels` input channels."""
    name, stem = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, attribute = name.rpartition(".")
    replacement = nn.Conv2d(
        channels,
        stem.out_channels,
        kernel_size=stem.kernel_size,  # type: ignore[arg-type]
        stride=stem.stride,  # type: ignore[arg-type]
        padding=stem.padding,  # type: ignore[arg-type]
        bias=stem.bias is not None,
    )
    setattr(model.get_submodule(parent), attribute, replacement)

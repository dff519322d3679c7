"""Networks by name, by function, and from files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command_line import SIDE, tiny_network
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models, transforms

from captum_krypton._command.failure import CommandError
from captum_krypton._command.models import load_network
from captum_krypton._command.network import Network, Outcomes, Request, outcomes_of

IMAGE = Image.effect_noise((50, 40), 60).convert("RGB")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that a user wrote."""
    made = ModuleType("a_users_module")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def scores(network: Network, side: int = SIDE) -> Tensor:
    with torch.no_grad():
        made: Tensor = network.module(torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side))
    return made


# By a function.


def test_a_function_returns_a_network(module: ModuleType) -> None:
    module.load = tiny_network
    network = load_network(Request("a_users_module:load"))
    torch.testing.assert_close(scores(network), scores(Network(tiny_network(), None)))  # type: ignore[arg-type]
    assert network.preparation.tensor(IMAGE).shape == (1, 3, 224, 224)
    assert not network.module.training


def test_a_function_takes_arguments(module: ModuleType) -> None:
    module.load = tiny_network
    network = load_network(Request("a_users_module:load", arguments={"classes": 7}))
    assert scores(network).shape == (1, 7)


def test_a_function_returns_a_network_and_its_transform(module: ModuleType) -> None:
    transform = transforms.Compose([transforms.Resize((20, 30)), transforms.ToTensor()])
    module.load = lambda: (tiny_network(), transform)
    network = load_network(Request("a_users_module:load"))
    torch.testing.assert_close(network.preparation.tensor(IMAGE), transform(IMAGE)[None])
    with pytest.raises(CommandError, match="transform of its own"):
        load_network(Request("a_users_module:load", size=32))


def test_a_method_and_weights(module: ModuleType, tmp_path: Path) -> None:
    class Zoo:
        @staticmethod
        def load() -> nn.Module:
            return tiny_network()

    module.Zoo = Zoo
    tensors = {name: value + 1 for name, value in tiny_network().state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    network = load_network(Request("a_users_module:Zoo.load", str(tmp_path / "w.safetensors")))
    assert torch.equal(network.module.state_dict()["7.bias"], tensors["7.bias"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:load", "No module named 'no_such_module'"),
        ("a_users_module:absent", "absent"),
        ("a_users_module:number", "returned int"),
        ("a_users_module:pair", "a tuple of Linear, int"),
        ("resnet50", "expected torchvision/NAME"),
        ("nowhere.pt", "no such file"),
        ("torchvision/resnet5", "no such network; close to it"),
        ("timm/resnet5", "no such network; close to it"),
    ],
)
def test_what_is_no_network(name: str, words: str, module: ModuleType) -> None:
    module.number = lambda: 3
    module.pair = lambda: (nn.Linear(1, 1), 3)
    with pytest.raises(CommandError, match=words):
        load_network(Request(name, weights=None if ":" in name or "." in name else "random"))


def test_a_function_has_no_random_weights(module: ModuleType) -> None:
    module.load = tiny_network
    with pytest.raises(CommandError, match="leave --weights out"):
        load_network(Request("a_users_module:load", "random"))


# Of libraries.


def test_timm_with_a_file_and_its_own_transforms(tmp_path: Path) -> None:
    torch.manual_seed(5)
    own = timm.create_model("resnet18").eval()
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    network = load_network(Request("timm/resnet18", str(tmp_path / "w.safetensors")))
    torch.testing.assert_close(scores(network), own(scores_input()))
    config = timm.data.resolve_model_data_config(own)
    expected = timm.data.create_transform(**config)(IMAGE)
    torch.testing.assert_close(network.preparation.tensor(IMAGE)[0], expected)
    assert network.preparation.mean == pytest.approx(config["mean"])
    assert network.names[281].startswith("tabby")
    assert len(network.names) == 1000
    smaller = load_network(Request("timm/resnet18", "random", size=64, mean=(0.5,), std=(0.5,)))
    made = smaller.preparation.tensor(IMAGE)
    assert made.shape == (1, 3, 64, 64)
    assert smaller.preparation.mean == (0.5,)
    assert made.min() >= -1
    assert smaller.names == ()


def scores_input(side: int = SIDE) -> Tensor:
    return torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)


def test_timm_with_one_channel() -> None:
    network = load_network(Request("timm/resnet18", "random", {"num_classes": 3}, channels=1))
    assert network.preparation.mode == "L"
    assert network.preparation.tensor(IMAGE.convert("L")).shape[:2] == (1, 1)
    assert network.preparation.mean == (0.449,)
    assert network.module(torch.zeros(1, 1, SIDE, SIDE)).shape == (1, 3)


def test_torchvision_with_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    own = models.squeezenet1_1().eval()
    torch.save({"state_dict": own.state_dict()}, tmp_path / "w.pth")
    network = load_network(Request("torchvision/squeezenet1_1", str(tmp_path / "w.pth")))
    torch.testing.assert_close(scores(network), own(scores_input()))
    preset = models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    torch.testing.assert_close(network.preparation.tensor(IMAGE)[0], preset(IMAGE))
    assert network.names[281] == "tabby"


def test_torchvision_with_an_entry_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = models.EfficientNet_B0_Weights.IMAGENET1K_V1
    asked: list[Any] = []

    def get_model(name: str, weights: Any) -> nn.Module:  # what would be downloaded
        asked.append(weights)
        return tiny_network(1000)

    monkeypatch.setattr(models, "get_model", get_model)
    network = load_network(Request("torchvision/efficientnet_b0", "IMAGENET1K_V1"))
    assert asked == [entry]
    torch.testing.assert_close(network.preparation.tensor(IMAGE)[0], entry.transforms()(IMAGE))
    assert network.names == tuple(entry.meta["categories"])
    half = load_network(Request("torchvision/efficientnet_b0", "DEFAULT", size=112))
    expected = entry.transforms(crop_size=112, resize_size=128)(IMAGE)
    torch.testing.assert_close(half.preparation.tensor(IMAGE)[0], expected)


def test_random_weights_are_the_same_every_time() -> None:
    first, second = (load_network(Request("torchvision/squeezenet1_1", "random")) for _ in "ab")
    assert first.source == "random"
    torch.testing.assert_close(scores(first), scores(second), rtol=0, atol=0)
    assert first.names == ()


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*arguments: object, **named: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(CommandError, match=r"no route to the hub.*--weights model\.safetensors"):
        load_network(Request("timm/resnet18"))


def test_transformers_is_asked_for_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CommandError, match="pip install transformers"):
        load_network(Request("hf/some/model"))


class HuggingFace(ModuleType):
    """What the command uses of transformers."""

    def __init__(self) -> None:
        super().__init__("transformers")
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        outer = self

        class Config:
            id2label = {0: "cat", 2: "hen", 1: "dog"}

            @classmethod
            def from_pretrained(cls, name: str, **named: Any) -> Config:
                outer.asked.append(("config", name, named))
                return cls()

        class Output(dict[str, Any]):
            pass

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.config = Config()
                self.inner = tiny_network(3)

            def forward(self, pixel_values: Tensor) -> Output:
                return Output(logits=self.inner(pixel_values))

            @classmethod
            def from_pretrained(cls, name: str, **named: Any) -> Model:
                outer.asked.append(("model", name, named))
                return cls()

            @classmethod
            def from_config(cls, config: Config) -> Model:
                return cls()

        class Processor:
            size = {"height": 24, "width": 24}
            crop_size = None

            @classmethod
            def from_pretrained(cls, name: str, **named: Any) -> Processor:
                outer.asked.append(("processor", name, named))
                return cls()

            def to_dict(self) -> dict[str, Any]:
                return {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": self.size}

            def __call__(self, images: Any, return_tensors: str, **changes: Any) -> Any:
                size = changes.get("size", self.size)
                small = images.resize((size["width"], size["height"]))
                pixels = transforms.functional.to_tensor(small)
                mean = torch.tensor(changes.get("image_mean", [0.5] * 3)).view(3, 1, 1)
                return {"pixel_values": ((pixels - mean) / 0.25)[None]}

        self.AutoConfig, self.AutoImageProcessor = Config, Processor
        self.AutoModelForImageClassification = Model


def test_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = HuggingFace()
    monkeypatch.setitem(sys.modules, "transformers", library)
    network = load_network(Request("hf/some/model"))
    assert network.names == ("cat", "dog", "hen")
    for _, name, named in library.asked:
        assert name == "some/model"
        assert named["trust_remote_code"] is False
    (of_model,) = [named for kind, _, named in library.asked if kind == "model"]
    assert of_model["use_safetensors"] is True
    x = network.preparation.tensor(IMAGE)
    assert x.shape == (1, 3, 24, 24)
    shown = network.preparation.shown(x)
    assert abs(shown.astype(int) - np.asarray(IMAGE.resize((24, 24)))).max() <= 1
    with torch.no_grad():
        raw = Outcomes(network.module, "raw")(x)
        torch.testing.assert_close(raw, tiny_network(3)(x))
    other = load_network(Request("hf/some/model", "random", size=32, mean=(0.0, 0.0, 0.0)))
    assert other.preparation.tensor(IMAGE).shape == (1, 3, 32, 32)
    assert other.preparation.mean == (0, 0, 0)


def test_transformers_itself(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    labels = {0: "cat", 1: "dog", 2: "hen"}
    config = library.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], id2label=labels
    )
    own = library.ResNetForImageClassification(config).eval()
    own.save_pretrained(tmp_path / "model")
    processor = library.ViTImageProcessor(size={"height": 48, "width": 48})
    processor.save_pretrained(tmp_path / "model")
    network = load_network(Request(f"hf/{tmp_path}/model"))
    assert network.names == ("cat", "dog", "hen")
    x = network.preparation.tensor(IMAGE)
    expected = processor(images=IMAGE, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(x, expected)
    with torch.no_grad():
        found = Outcomes(network.module, "softmax")(x)
        torch.testing.assert_close(found, own(expected).logits.softmax(1))


# From files, which are their authors' programs.


def save_script(network: nn.Module, path: Path) -> None:
    with pytest.warns(FutureWarning):
        torch.jit.trace(network, torch.zeros(1, 3, SIDE, SIDE)).save(path)


def save_export(network: nn.Module, path: Path) -> None:
    batch = torch.export.Dim("batch")
    example = (torch.zeros(2, 3, SIDE, SIDE),)
    torch.export.save(torch.export.export(network, example, dynamic_shapes=({0: batch},)), path)


FILES = {
    "m.pt": (save_script, "a TorchScript archive"),
    "m.ts": (save_script, "a TorchScript archive"),
    "m.pt2": (save_export, "a torch.export archive"),
    "m.pth": (torch.save, "a pickle"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", FILES)
def test_files_of_programs_need_trust(name: str, tmp_path: Path) -> None:
    save, kind = FILES[name]
    save(tiny_network(), tmp_path / name)
    with pytest.raises(CommandError, match=f"{kind}.*--trust-pickle"):
        load_network(Request(str(tmp_path / name)))
    network = load_network(Request(str(tmp_path / name), trusted=True, size=SIDE))
    torch.testing.assert_close(scores(network), tiny_network()(scores_input()))


class Marking(nn.Module):
    """A network whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.ts", "m.pt2"])
def test_no_program_of_a_stranger_runs(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(Marking(marker), tmp_path / name)
    with pytest.raises(CommandError, match="--trust-pickle"):
        load_network(Request(str(tmp_path / name)))
    assert not marker.exists()


def test_a_file_of_weights_is_no_network(tmp_path: Path) -> None:
    torch.save(tiny_network().state_dict(), tmp_path / "w.pth")
    with pytest.raises(CommandError, match="goes to --weights"):
        load_network(Request(str(tmp_path / "w.pth"), trusted=True))


@pytest.mark.parametrize("name", ["m.pt", "m.pt2"])
def test_a_damaged_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(CommandError, match="does not load"):
        load_network(Request(str(tmp_path / name), trusted=True))


# Outcomes.


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Any:
        return self.value


LOGITS = torch.tensor([[1.0, 2.0, 4.0]])


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (LOGITS, "probability", LOGITS.softmax(1)),
        (LOGITS, "raw", LOGITS),
        (LOGITS, "sigmoid", LOGITS.sigmoid()),
        (LOGITS.softmax(1), "probability", LOGITS.softmax(1)),  # they are probabilities already
        ({"logits": LOGITS}, "raw", LOGITS),
        ((LOGITS,), "raw", LOGITS),
        (torch.tensor([3.0]), "probability", torch.tensor([[3.0]])),  # one outcome has no softmax
    ],
)
def test_outcomes(value: Any, wanted: str, expected: Tensor) -> None:
    outcomes, classes = outcomes_of(Returns(value), wanted, torch.zeros(1, 3, 4, 4))
    assert classes == expected.shape[1]
    torch.testing.assert_close(outcomes(torch.zeros(1, 3, 4, 4)), expected)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(1, 5, 4, 4), "explains classifiers"),
        (torch.zeros(2, 5), "explains classifiers"),
        ("text", "returns str"),
        ((LOGITS, LOGITS), "returns tuple"),
    ],
)
def test_what_is_no_classifier(value: Any, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        outcomes_of(Returns(value), "probability", torch.zeros(1, 3, 4, 4))


def test_a_network_that_fails_says_on_what() -> None:
    with pytest.raises(CommandError, match=r"fails on an input of \(1, 1, 8, 8\)"):
        outcomes_of(tiny_network(), "raw", torch.zeros(1, 1, 8, 8))

"""Weights from files: wrapped, of another model, or a stranger's."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import tiny_network
from safetensors.torch import save_file
from torch import Tensor, nn

from captum_krypton._command.failure import CommandError
from captum_krypton._command.weights import digest, fill, read_tensors

Tensors = dict[str, Tensor]


class Marker:
    """Unpickling it makes a folder: what a stranger's file might do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def other_weights() -> Tensors:
    torch.manual_seed(9)
    return {name: torch.randn_like(v) for name, v in tiny_network().state_dict().items()}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


WRAPPERS: dict[str, Callable[[Tensors], Any]] = {
    "plain": lambda t: t,
    "state_dict": lambda t: {"state_dict": t, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda t: {"model": t, "epoch": 3},
    "model_state_dict": lambda t: {"model_state_dict": t},
    "within": lambda t: {"model": {"state_dict": t}},
    "module.": lambda t: prefixed(t, "module."),
    "compiled": lambda t: {"state_dict": prefixed(t, "module._orig_mod.")},
    "lightning": lambda t: {"state_dict": prefixed(t, "model.")},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_weights(wrapper: str, tmp_path: Path) -> None:
    wanted = other_weights()
    torch.save(WRAPPERS[wrapper](wanted), tmp_path / "w.pth")
    network = tiny_network()
    fill(network, read_tensors(tmp_path / "w.pth", trusted=False), tmp_path / "w.pth")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0)


def test_safetensors(tmp_path: Path) -> None:
    wanted = other_weights()
    save_file(wanted, tmp_path / "w.safetensors")
    found = read_tensors(tmp_path / "w.safetensors", trusted=False)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_prefix_of_the_network_stays(tmp_path: Path) -> None:
    network = nn.ModuleDict({"module": tiny_network()})
    weights = prefixed(other_weights(), "module.")
    fill(network, weights, tmp_path)
    assert torch.equal(network.state_dict()["module.0.weight"], weights["module.0.weight"])


def test_keys_of_another_network_are_named(tmp_path: Path) -> None:
    tensors = other_weights()
    tensors["head.weight"] = tensors.pop("7.weight")
    with pytest.raises(CommandError) as raised:
        fill(tiny_network(), tensors, tmp_path)
    assert "1 missing: 7.weight" in str(raised.value)
    assert "1 unexpected: head.weight" in str(raised.value)


def test_other_shapes_are_named() -> None:
    with pytest.raises(CommandError, match=r"7\.weight is \(5, 32\), the model's \(4, 32\)"):
        fill(tiny_network(4), other_weights(), Path("w.pth"))


def test_counts_of_batches_may_be_missing() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    tensors = network.state_dict()
    del tensors["0.num_batches_tracked"]
    tensors["0.weight"] = torch.full((3,), 7.0)
    fill(network, dict(tensors), Path("w.pth"))
    assert network.state_dict()["0.weight"].tolist() == [7, 7, 7]


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_of_a_stranger_is_unpickled(legacy: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    file = tmp_path / "w.pth"
    torch.save(
        {**other_weights(), "extra": Marker(marker)},
        file,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(CommandError, match="--trust-pickle"):
        read_tensors(file, trusted=False)
    assert not marker.exists()
    with pytest.raises(CommandError, match="extra are no tensors"):
        read_tensors(file, trusted=True)
    assert marker.exists()  # so that the test would have seen it


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Marker(marker)))
    with pytest.raises(CommandError, match=r"w\.pth"):
        read_tensors(tmp_path / "w.pth", trusted=False)
    assert not marker.exists()


def test_a_whole_pickled_network_needs_trust(tmp_path: Path) -> None:
    torch.save(tiny_network(), tmp_path / "w.pth")
    with pytest.raises(CommandError, match="--trust-pickle"):
        read_tensors(tmp_path / "w.pth", trusted=False)
    found = read_tensors(tmp_path / "w.pth", trusted=True)
    assert found.keys() == tiny_network().state_dict().keys()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 damaged", b"nonsense" * 9])
def test_damaged_files(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CommandError, match=f"--weights .*{name}"):
        read_tensors(tmp_path / name, trusted=False)


def test_a_missing_file() -> None:
    with pytest.raises(CommandError, match="no such file"):
        read_tensors(Path("nowhere.pth"), trusted=False)


def test_the_digest_is_of_the_weights() -> None:
    first, second = tiny_network(), tiny_network()
    assert digest(first) == digest(second)
    with torch.no_grad():
        second[7].bias[0] += 1e-6
    assert digest(first) != digest(second)
    assert digest(tiny_network().bfloat16()) != digest(first)

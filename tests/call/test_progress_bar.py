"""When a progress bar is shown that nobody asked for."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from torch import nn

from captum_krypton import KryptonOcclusion
from captum_krypton._call import progress_bar

IMAGE = torch.rand(1, 1, 6, 6)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, **arguments: bool) -> str:
    occlusion = KryptonOcclusion(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval())
    monkeypatch.setattr(sys, "stderr", stderr)
    occlusion.attribute(IMAGE, (1, 2, 2), **arguments)
    return stderr.getvalue()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every map takes too long."""
    monkeypatch.setattr(progress_bar, "PATIENCE", 1e-9)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def test_a_long_map_shows_one_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    assert "25/25" in shown(monkeypatch, Terminal())


def test_a_long_map_shows_one_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert "25/25" in shown(monkeypatch, io.StringIO())


def test_a_file_gets_none(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    assert shown(monkeypatch, io.StringIO()) == ""


def test_whoever_says_no_gets_none(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    assert shown(monkeypatch, Terminal(), show_progress=False) == ""


def test_a_short_map_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "PATIENCE", 1e9)
    assert shown(monkeypatch, Terminal()) == ""

"""Compiled code is run eagerly while it is recorded, and no longer."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from captum_krypton._capture.eager import eagerly


def test_threads_leave_compiled_code_as_they_found_it() -> None:
    from torch._dynamo import eval_frame

    begun, begin = threading.Barrier(2), threading.Event()

    def record(first: bool) -> None:
        with eagerly:
            begun.wait()
            assert eval_frame._stance.stance == "force_eager"
            if not first:  # the one who came last leaves last
                begin.wait()

    before = eval_frame._stance.stance
    threads = [threading.Thread(target=record, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    threads[0].join()
    assert eval_frame._stance.stance == "force_eager"
    begin.set()
    threads[1].join()
    assert eval_frame._stance.stance == before == "default"


# In a process of its own: whether the compiler is imported is a process's.
_SCRIPT = """
import sys
import torch
from captum.attr import Occlusion
from torch import nn
from captum_krypton import KryptonOcclusion

lazy = sys.argv[1] == "lazy"
compiled = []

def backend(graph, inputs):
    compiled.append(graph)
    return graph.forward

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3)
        self.layers = nn.Sequential(*layers).double()

    def forward(self, x):
        return torch.compile(self.layers, backend=backend)(x) if lazy else self.layers(x)

network, x = Network().eval(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
krypton = KryptonOcclusion(network)
for image in (x, x + 1):
    heat = krypton.heatmap(image, (3, 4, 4), (3, 2, 2), target=1)
    assert heat.report.path == "incremental", heat.report
    print("torch._dynamo" in sys.modules)
    expected = Occlusion(network).attribute(image, (3, 4, 4), (3, 2, 2), target=1)
    torch.testing.assert_close(heat.attribution(), expected, rtol=0, atol=1e-10)
"""


@pytest.mark.parametrize("kind", ["plain", "lazy"])
def test_the_compiler_is_not_imported_for_nothing(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, kind], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(kind == "lazy")] * 2

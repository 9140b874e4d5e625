"""The methods that chapters write out are those that the library ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from reprolib.book import source
from reprolib.book.layout import Layout
from reprolib.optim import RED

LAYOUT = Layout(Path(__file__).parents[2])


def written_in(chapter: str, name: str) -> Any:
    """The function ``name`` as a cell of the chapter defines it."""
    (cell,) = [
        c for c in source.read(LAYOUT.source(chapter)).cells if c.cell_type == "code" and f"def {name}(" in c.source
    ]
    space: dict[str, Any] = {}
    exec(compile(cell.source, chapter, "exec"), space)
    return space[name]


@pytest.mark.parametrize("preconditioner", [None, "rmsprop"])
def test_the_step_of_four_tasks_is_that_of_red(preconditioner: str | None) -> None:
    red_step = written_in("red/four-tasks", "red_step")
    random = torch.Generator().manual_seed(0)
    x = torch.randn(24, 5, generator=random, dtype=torch.float64)
    y = torch.randint(0, 3, (24,), generator=random)
    start = 0.5 * torch.randn(5 * 4 + 4 * 3, generator=random, dtype=torch.float64)

    def outputs(θ: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ θ[:20].view(5, 4)) @ θ[20:].view(4, 3)

    def losses(θ: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs(θ), y, reduction="none")

    shipped = start.clone().requires_grad_()
    optimizer, twin, memory = RED([shipped], preconditioner=preconditioner, weight_decay=1e-2), start, {}
    for ell in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        optimizer.param_groups[0]["lr"] = ell
        optimizer.step(lambda: outputs(shipped), lambda out: F.cross_entropy(out, y, reduction="none"))
        twin = red_step(losses, twin, ell, memory, rmsprop=bool(preconditioner), λ=1e-2)
        assert torch.allclose(twin, shipped.detach(), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(twin, start, atol=1e-2)

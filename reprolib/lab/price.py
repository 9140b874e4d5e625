"""What the steps of a run have cost so far, in gradients, also of a method whose steps are not alike."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch

from reprolib.curvature import LocalModel, expand
from reprolib.lab.cost import apart, count, gradients_per_step
from reprolib.lab.methods import method
from reprolib.lab.run import Run
from reprolib.tasks.task import Problem


@dataclass(frozen=True)
class Price:
    """Gradients per step and, of a method that counts what it does in a step, per thing that it counts."""

    step: float
    each: Mapping[str, float] = field(default_factory=dict)

    def of(self, steps: int, counts: Mapping[str, int]) -> float:
        """The gradients of so many steps, in which the optimizer counted ``counts``.

        >>> Price(1.0, {"tries": 0.5}).of(10, {"tries": 4, "iterations": 7})
        12.0
        """
        return self.step * steps + sum(price * counts.get(name, 0) for name, price in self.each.items())


def price(run: Run, problem: Problem) -> Price:
    """The price of the steps of ``run``, counted in matrix products as :func:`reprolib.lab.cost.gradients_per_step` does.

    NewtonCG: the gradient of the batch, a product for each CG iteration, a forward pass for each try of a step length and
    a gradient for each pair of the global one (the last pair of an epoch may be smaller).
    """
    kind = method(run.method)
    if kind.wants != "full":
        return Price(gradients_per_step(run, problem))
    with apart(replace(problem, net=deepcopy(problem.net))) as (closure, loss, params):
        group = kind.build(params, run.epochs, **dict(run.options))[0].param_groups[0]
        gradient = count(lambda: torch.autograd.grad(loss(closure()).mean(), params))

        def recorded() -> LocalModel:
            model = expand(closure, loss, params, group["curvature"], group["backend"], retain=True, **group["engine"])
            _ = model.gradient
            return model

        own, model = count(recorded) / gradient, recorded()
        direction = [torch.ones_like(p) for p in params]
        product = count(lambda: model.product(direction)) / gradient
        forward = count(lambda: model.loss_at(direction)) / gradient
        model.close()
    products = dict.fromkeys(("iterations", "truncated", "projected"), product)  # the truncated one was no iteration
    return Price(own + group["warm_start"] * product, products | {"tries": forward, "pairs": 1.0})

"""PyTorch's own table of operations, asked of the tape: which are right, by whom, and which are refused.

    python -m tests.curvature.pytorch_table            # writes book/records/pytorch-operations.csv and .json

PyTorch describes its operations for its own tests, with sample inputs of each (``op_db``; needs ``expecttest``). For every
sample of an operation F that can be differentiated twice, two losses are made of weighted sums of F's outputs,

    o_s = (⟨w_s, F⟩, ⟨v_s, F⟩)        ℓ_s = sin o_s1 + cos o_s2        s = 1, 2

and every question of a local model is compared with double backward (third derivatives with a difference of it).
"""

from __future__ import annotations

import itertools
import json
import platform
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from reprolib.curvature import expand
from reprolib.errors import ReprolibError

TABLE = Path(__file__).resolve().parents[2] / "book" / "records" / "pytorch-operations"
SAMPLES = 3  # of each operation
SECONDS = 60  # for each operation
WORST = ("wrong", "leaked", "late", "refused", "right", "unknown")  # what is said of an operation is its first


@dataclass
class Case:
    """A call with tensors θ that it can be differentiated by, two directions, and the losses."""

    call: Any
    leaves: list[Tensor]
    rounding: float = 0.0
    weights: list[list[Tensor]] = field(default_factory=list)  # of o_11, o_12, o_21, o_22

    def draw(self, g: torch.Generator) -> None:
        made = self.call()
        self.rounding = max((4 * torch.finfo(t.dtype).eps for t in made), default=0.0)  # of casts to half precision
        drawn = lambda ts: [torch.randn(t.shape, dtype=torch.float64, generator=g) for t in ts]
        self.weights = [drawn(made) for _ in range(4)]
        self.d, self.e = (tuple(drawn(self.leaves)) for _ in range(2))

    def outputs(self) -> Tensor:
        made = self.call()
        return torch.stack([sum((a * t).sum() for a, t in zip(w, made, strict=True)) for w in self.weights]).view(2, 2)

    @staticmethod
    def loss(o: Tensor) -> Tensor:
        return o[:, 0].sin() + o[:, 1].cos()

    # ---- by double backward

    def grads(self, y: Tensor, keep: bool = True) -> tuple[Tensor, ...]:
        if not y.requires_grad:
            return tuple(torch.zeros_like(x) for x in self.leaves)
        return torch.autograd.grad(y, self.leaves, create_graph=keep, retain_graph=True, materialize_grads=True)

    def expected(self) -> dict[str, Tensor]:
        """The answers; RuntimeError where PyTorch has none."""
        torch.manual_seed(5)
        with sdpa_kernel(SDPBackend.MATH):
            o = self.outputs()
            losses = self.loss(o)
            rows = [self.grads(x) for x in o.flatten()]
            slopes = [inner(self.grads(x), self.d) for x in losses]
            products = [self.grads(x, False) for x in slopes]
            back = [inner(g, self.d) for g in (self.grads(inner(self.grads(x), self.e), False) for x in losses)]
        forth, back = (torch.stack(x).detach() for x in ([inner(h, self.e) for h in products], back))
        if not torch.allclose(forth, back, rtol=1e-6):  # PyTorch's own second derivative is not symmetric
            forth = torch.full_like(forth, float("nan"))
        curvature = torch.stack([inner(h, self.d) for h in products]).detach()
        tangent = torch.stack([inner(r, self.d) for r in rows]).detach()
        bent = torch.stack([-o[:, 0].sin(), -o[:, 1].cos()], 1).flatten().detach()  # the diagonal of ∇²ℓ
        flat_rows = torch.stack([torch.cat([g.detach().flatten() for g in r]) for r in rows])
        return {
            "curvature": curvature,
            "bilinear form": forth,
            "product": torch.stack([torch.cat([g.flatten() for g in h]) for h in products]).mean(0).detach(),
            "jvp": tangent,
            "GGN product": flat_rows.T @ (bent / 2 * tangent),
            "summary": curvature.mean().view(1, 1),
        }

    # ---- by the local model

    def asked(self, backend: str, question: str) -> tuple[Tensor, str]:
        torch.manual_seed(5)
        operator = "ggn" if question == "GGN product" else "hessian"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = expand(self.outputs, self.loss, self.leaves, operator, backend)
            ask = {
                "curvature": lambda: model.curvature(self.d),
                "bilinear form": lambda: model.curvature(self.d, self.e),
                "product": lambda: flat(model.product(self.d)),
                "jvp": lambda: model.jvp(self.d).flatten(),
                "GGN product": lambda: flat(model.product(self.d)),
                "summary": lambda: model.summary(self.d, [list(range(len(self.leaves)))], third=False).hessian,
            }[question]
            return ask(), model.handed_over


def inner(a: Any, b: Any) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def flat(ts: Any) -> Tensor:
    return torch.cat([t.detach().flatten() for t in ts])


QUESTIONS = ("curvature", "bilinear form", "product", "jvp", "GGN product", "summary")


def operations() -> Iterator[Any]:
    """The entries that can be differentiated twice."""
    from torch.testing._internal.common_methods_invocations import op_db

    for op in op_db:
        if op.supports_gradgrad and torch.float64 in op.supported_dtypes("cpu"):
            yield op


def name_of(op: Any) -> str:
    return op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")


def case_of(op: Any, sample: Any, seed: int) -> Case | None:
    """``None`` where nothing of the sample can be differentiated."""
    given, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [
        i
        for i, t in enumerate(given)
        if isinstance(t, Tensor) and t.requires_grad and t.dtype == torch.float64 and t.numel()
    ]
    if not places:
        return None
    leaves = [given[i].detach().clone().requires_grad_() for i in places]

    def call() -> list[Tensor]:
        put = list(given)
        for i, leaf in zip(places, leaves, strict=True):
            put[i] = leaf
        first, args, kwargs = tree_unflatten(put, spec)
        out = op(first, *args, **kwargs)
        out = sample.output_process_fn_grad(out) if sample.output_process_fn_grad else out
        made = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor) and t.requires_grad]
        return [torch.view_as_real(t).sum(-1) if t.is_complex() else t for t in made]

    torch.manual_seed(5)
    case = Case(call, leaves)
    case.draw(torch.Generator().manual_seed(seed))
    return case if case.weights[0] else None


def trial(case: Case, backend: str, questions: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """(kind, what was said, why it was handed over) for each question."""
    try:
        expected = case.expected()
    except (RuntimeError, NotImplementedError) as error:
        yield "unknown", str(error).splitlines()[0][:100], ""
        return
    for question in questions:
        if not bool(torch.isfinite(expected[question]).all()):
            continue
        try:
            found, why = case.asked(backend, question)
        except ReprolibError as error:
            yield "refused", f"{question}: {error}"[:160], ""
            continue
        except Exception as error:
            yield "leaked", f"{question}: {type(error).__name__}: {error}"[:160], ""
            continue
        size = float(expected[question].abs().max())
        off = float((found - expected[question]).abs().max())
        good = off <= max(1e-6, case.rounding) * max(size, 1e-3)
        yield ("right", "", why) if good else ("wrong", f"{question}: off by {off:.3g} of {size:.3g}", why)


def entry(
    op: Any, backend: str = "tape", questions: tuple[str, ...] = QUESTIONS, samples: int = SAMPLES, seed: int = 0
) -> dict[str, str] | None:
    """The row of an operation; ``None`` where none of its samples can be differentiated."""
    found: list[tuple[str, str, str]] = []
    torch.manual_seed(seed)
    previous = signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for sample in itertools.islice(op.sample_inputs("cpu", torch.float64, requires_grad=True), samples):
                if case := case_of(op, sample, seed + 1):
                    found += trial(case, backend, questions)
    except TimeoutError:
        found.append(("late", f"more than {SECONDS} s", ""))
    except Exception as error:  # of the sample: it cannot be made of copies of its tensors, or refuses itself
        found.append(("unknown", str(error).splitlines()[0][:100], ""))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if not found:
        return None
    kind = next(k for k in WORST if any(f[0] == k for f in found))
    note = next(f[1] for f in found if f[0] == kind)
    why = next((f[2] for f in found if f[2]), "")
    return {
        "operation": name_of(op),
        "is": kind,
        "answered by": "reverse" if why else backend,
        "note": note or why[:160],
    }


def _late(*_: Any) -> None:
    raise TimeoutError


def main(*names: str) -> None:
    """Write the table; with names, print those rows only."""
    torch.set_num_threads(1)
    rows = []
    for op in operations():
        if names and name_of(op) not in names:
            continue
        if row := entry(op):
            rows.append(row)
            if names or row["is"] not in ("right", "unknown") or row["answered by"] != "tape":
                print(*row.values(), sep=" | ", flush=True)
    table = pd.DataFrame(rows)
    print(table.groupby(["is", "answered by"]).size().to_string())
    if names:
        return
    table.to_csv(TABLE.with_suffix(".csv"), index=False)
    about = {"torch": torch.__version__, "python": platform.python_version(), "samples": SAMPLES, "seed": 0}
    about |= {"questions": list(QUESTIONS), "entries": len(table)}
    TABLE.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

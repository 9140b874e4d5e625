"""One batch in parts: micro-batches that are in memory one at a time, and the processes of ``torch.distributed``.

Part i has B_i of the B samples and is a local model of its own, J_i, so with J the mean over all samples

    J = Σ_i (B_i/B) J_i        ∇J, C d, summary: the same weights        Aᵀw = Σ_i A_iᵀ w_i, A the parts' rows stacked

Each part is run once as an ordinary training step would. Then it is closed, all but the last; an answer opens it again, as
it was: the same random numbers, and what it writes into buffers goes to copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from reprolib.curvature.model import LocalModel, Summary, check_repeated, consumed, opened, shifted
from reprolib.curvature.network import Closure, Loss, Network, Options, Pair, pairs_of
from reprolib.curvature.replay import Repeat, Substitute, spare_statistics
from reprolib.curvature.tree import Tensors
from reprolib.errors import InvalidInput, RankFailed


class Parts(LocalModel):
    """The :class:`LocalModel` of a batch that is divided, into micro-batches here and over the processes.

    ``loss``, ``losses`` (B,), ``gradient``, :meth:`curvature` (B,), :meth:`product`, :meth:`vjp`, :meth:`summary` and
    :meth:`inner` are of the whole batch and the same, bit for bit, on all ranks; samples are in the order of the ranks
    and, on each, of its parts. ``outputs``, ``loss_gradient``, :meth:`loss_hvp` and :meth:`jvp` have the samples of this
    rank only, with the 1/B of the whole batch: ``vjp`` of them is right.

    *Micro-batches.* An answer re-runs all parts but the last (whose pass is still there for the first answer), so it costs
    up to a forward pass and, where it needs adjoints, a gradient more. The closures must be repeatable: other losses than at
    first raise :class:`~reprolib.errors.NotRepeatable` (if ``check``), as where a part reads a buffer that parts write.
    Batch-norm in training mode normalises each part by itself, and its statistics advance once per part, on each rank with
    that rank's samples; dropout draws once per part.

    *Ranks.* Each rank has its own samples, any number but none, and equal parameters (compared if ``check``). All must
    ask the same questions in the same order: each is one collective call (``gradient`` when it is first read; ``outputs``,
    ``loss_gradient`` and ``loss_hvp`` are none). An exception in one is raised on its rank, and on the others as
    :class:`~reprolib.errors.RankFailed`; only a process that ends, or asks something else, leaves the others waiting until
    the process group's time-out.
    """

    def __init__(
        self, closure: Closure | Sequence[Pair], loss: Loss | None, params: Tensors, options: Options, world: int
    ):
        self.operator = options.curvature
        self.handed_over = ""  # of the first part of this rank that was
        self._params, self._options, self._gradient = tuple(params), options, None
        self._ranks = Ranks(world)
        self._parts: list[Part] = []  # empty: closed
        self._first: list[Tensor] = []  # losses of each part, by its ordinary pass
        self._models: list[LocalModel | None] = []  # of each part; closed, but for the last, and for their outputs
        self._sum: list[Tensor] = []  # Σ B_i ∇J_i of those that are closed

        blank = torch.empty(0, dtype=torch.float64, device=params[0].device)
        heads = self._ranks.gather(lambda: self._start(closure, loss), [4] * world, blank).view(world, 4).tolist()
        _check_equal(heads)
        self._batches = [int(head[0]) for head in heads]
        self._batch = sum(self._batches)
        self._weights = [len(x) / self._batch for x in self._first]
        self.losses = self._ranks.gather(lambda: torch.cat(self._first), self._batches, self._first[0])
        self.loss = self.losses.mean()

    def _start(self, closure: Closure | Sequence[Pair], loss: Loss | None) -> Tensor:
        """The ordinary passes; then what the ranks tell each other about them."""
        pairs = pairs_of(closure, loss, self.operator)
        options = self._options if len(pairs) == 1 else replace(self._options, retain=False)
        for i, pair in enumerate(pairs):
            part = Part(*pair, self._params, options)
            self._last = model = part.open()
            self._parts.append(part)
            self._first.append(model.losses)
            self.handed_over = self.handed_over or model.handed_over
            if i < len(pairs) - 1:
                self._sum = _added(self._sum, model.gradient, len(model.losses))
                self._models.append(self._stripped(model))
        self._models.append(self._last)
        return self._head()

    def _head(self) -> Tensor:
        """(B_rank, number of parameters, Σθ, Σ|θ|), the sums only if they will be compared."""
        sums = torch.zeros(2, dtype=torch.float64)
        if self._options.check and self._ranks.world > 1:
            values = [p.detach().double() for p in self._params]
            sums = torch.stack([torch.stack([v.sum(), v.abs().sum()]) for v in values]).sum(0)
        return torch.cat([sums.new_tensor([sum(map(len, self._first)), sum(p.numel() for p in self._params)]), sums])

    # ---- the pass itself

    @property
    def outputs(self) -> Tensor:
        """The network's outputs (B_rank, ...) for the samples of this rank."""
        return _joined([self._shown(i).outputs for i in range(len(self._first))])

    @property
    def gradient(self) -> tuple[Tensor, ...]:
        """∇J, a tuple like ``params``."""
        if self._gradient is None:
            self._gradient = self._ranks.sum(self._own_gradient, self._params)
            self._sum = []
        return self._gradient

    def _own_gradient(self) -> list[Tensor]:
        last = self._last if self._last._gradient is not None else self._again(len(self._first) - 1)
        return _added([x / self._batch for x in self._sum], last.gradient, self._weights[-1])

    @property
    def loss_gradient(self) -> Tensor:
        """∂J/∂outputs (B_rank, ...); block s is (1/B) ∇ℓ(o_s)."""
        return _joined([w * self._shown(i).loss_gradient for i, w in enumerate(self._weights)])

    def loss_hvp(self, u: Tensor) -> Tensor:
        """Λ u (B_rank, ...) with Λ = ∂²J/∂outputs²; block s is (1/B) ∇²ℓ(o_s) u_s."""
        pieces = self._divided(u, "loss_hvp: u")
        return _joined([w * self._shown(i).loss_hvp(pieces[i]) for i, w in enumerate(self._weights)])

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ of two tensors shaped like the outputs, a 0-d tensor, summed over the ranks."""
        return self._ranks.sum(lambda: [torch.sum(u * v)], [self.loss])[0]

    # ---- directional answers

    def curvature(self, d: Tensors, e: Tensors | None = None) -> Tensor:
        """Per-sample dᵀC_s e (B,), see :meth:`LocalModel.curvature`."""
        own = partial(self._stacked, lambda i, model: model.curvature(d, e))
        answer = self._ranks.gather(own, self._batches, self.losses)
        self._answered()
        return answer

    def product(self, d: Tensors) -> tuple[Tensor, ...]:
        """C d, a tuple like ``params``."""
        return self._total(lambda i, model: model.product(d), self._params, self._weights)

    def jvp(self, d: Tensors) -> Tensor:
        """A d (B_rank, ...), the change of this rank's outputs along d."""
        answer = self._ranks.all_or_none(lambda: self._stacked(lambda i, model: model.jvp(d)), self.loss)
        self._answered()
        return answer

    def vjp(self, w: Tensor) -> tuple[Tensor, ...]:
        """Aᵀ w, a tuple like ``params``, summed over the ranks, for w shaped like this rank's outputs."""
        ones = [1.0] * len(self._first)
        return self._total(lambda i, model: model.vjp(self._divided(w, "vjp: w")[i]), self._params, ones)

    def loss_at(self, step: Tensors) -> Tensor:
        """J(θ + step), a 0-d tensor, see :meth:`LocalModel.loss_at`."""

        def own() -> list[Tensor]:
            if not self._parts:
                raise consumed()
            values = shifted(step, self._params)
            return [torch.stack([part.losses_at(values).sum() for part in self._parts]).sum() / self._batch]

        return self._ranks.sum(own, [self.loss])[0]

    def summary(self, d: Tensors, groups: Sequence[Sequence[int]] | None = None, third: bool = True) -> Summary:
        """Derivatives of J along block directions, see :meth:`LocalModel.summary`."""
        s, new = len(self._params if groups is None else groups), self._params[0].new_empty
        like = (new(s), new(s, s), new(s))
        return Summary(*self._total(lambda i, model: model.summary(d, groups, third), like, self._weights))

    def close(self) -> None:
        """Free what the passes stored; values already read stay."""
        self._parts = []
        self._last.close()

    # ---- inside

    def _total(self, question: Callable[[int, LocalModel], Tensors], like: Tensors, weights: Sequence[float]) -> Any:
        """Σ over all parts of ``weights`` times the answer, a tuple shaped like ``like``."""

        def own() -> list[Tensor]:
            total: list[Tensor] = []
            for i, answer in self._answers(question):
                total = _added(total, answer, weights[i])
            return total

        answer = self._ranks.sum(own, like)
        self._answered()
        return answer

    def _stacked(self, question: Callable[[int, LocalModel], Tensor]) -> Tensor:
        """The answers (B_i, ...) of this rank's parts in one tensor."""
        answers = dict(self._answers(question))
        return _joined([answers[i] for i in range(len(answers))])

    def _answers(self, question: Callable[[int, LocalModel], Any]) -> Iterator[tuple[int, Any]]:
        """(i, question(i, model)) for each part, one in memory at a time: the last one first, it may still be there."""
        n = len(self._first)
        for i in (n - 1, *range(n - 1)):
            model = self._again(i)
            answer = question(i, model)
            self.handed_over = self.handed_over or model.handed_over
            yield i, answer

    def _again(self, i: int) -> LocalModel:
        """The local model of part i, open."""
        if not self._parts:
            raise consumed()
        if i == len(self._parts) - 1 and self._last._net is not None:
            return self._last
        model = self._parts[i].again()
        if self._options.check:
            check_repeated(self._first[i], model.losses)
        return model

    def _shown(self, i: int) -> LocalModel:
        """A local model of part i, open or closed: for its outputs. For the GGN they stay, else they are made again."""
        known = self._models[i]
        if known is None:
            self._models[i] = known = self._again(i)
            known.close()
        return known

    def _stripped(self, model: LocalModel) -> LocalModel | None:
        """What stays of a part whose gradient has been taken."""
        model.close()
        model._gradient = None
        return model if self.operator == "ggn" else None

    def _divided(self, u: Tensor, what: str) -> tuple[Tensor, ...]:
        sizes = [len(x) for x in self._first]
        if u.dim() == 0 or len(u) != sum(sizes):
            raise InvalidInput(f"{what} is {tuple(u.shape)}, this rank's outputs have {sum(sizes)} samples")
        return u.split(sizes)


class Part(Repeat):
    """A (closure, loss) pair that can be opened again and again, with effects the first time only."""

    def __init__(self, closure: Closure, loss: Loss | None, params: Tensors, options: Options):
        super().__init__(params)
        self._closure, self._loss, self._options = closure, loss, options
        self._mode: AbstractContextManager = nullcontext()

    def open(self) -> LocalModel:
        """The local model, by the ordinary pass."""
        loss = None if self._loss is None else self._run_loss
        return opened(self._run_closure, loss, self.params, self._options)

    def again(self) -> LocalModel:
        """The same local model by one more pass, without effects."""
        self._mode = Substitute(self.params, self.params, spare_statistics)
        try:
            with self.same_random_numbers():
                return self.open()
        finally:
            self._mode = nullcontext()

    def losses_at(self, values: Tensors) -> Tensor:
        """The losses of this part with ``values`` as parameters."""
        with self.same_random_numbers():
            return Network(self._closure, self._loss, self.params).losses_at(values)

    # inside whatever else looks at the pass, so that this sees the copies and not what they stand for

    def _run_closure(self) -> Tensor:
        with self._mode:
            return self._closure()

    def _run_loss(self, outputs: Tensor) -> Tensor:
        assert self._loss is not None
        with self._mode:
            return self._loss(outputs)


def world_size() -> int:
    """How many processes share the data: those of ``torch.distributed`` where it is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Ranks:
    """Sums and gathers over ``world`` processes; of one alone, the values themselves.

    ``make`` computes this rank's share. If it raises, the rank still takes part, with a mark that makes all of them raise.
    """

    def __init__(self, world: int):
        self.world = world

    def sum(self, make: Callable[[], Sequence[Tensor]], like: Tensors) -> tuple[Tensor, ...]:
        """Σ over ranks of tensors shaped like ``like``, in one call."""
        if self.world == 1:
            return tuple(make())
        own, error = _tried(make)
        own = [torch.zeros_like(x) for x in like] if own is None else own
        vectors = [x.detach().reshape(-1).to(y.dtype) for x, y in zip(own, like, strict=True)]
        flat = torch.cat([*vectors, vectors[0].new_full((1,), float(error is not None))])
        dist.all_reduce(flat)
        _raise(error, bool(flat[-1] != 0))
        pieces = flat[:-1].split([x.numel() for x in like])
        return tuple(x.view(y.shape).to(y.dtype) for x, y in zip(pieces, like, strict=True))

    def all_or_none(self, make: Callable[[], Tensor], like: Tensor) -> Tensor:
        """This rank's share alone, if all ranks have theirs; ``like`` is any tensor on the device."""
        if self.world == 1:
            return make()
        own, error = _tried(make)
        failed = like.new_full((1,), float(error is not None))
        dist.all_reduce(failed)
        _raise(error, bool(failed != 0))
        return own

    def gather(self, make: Callable[[], Tensor], sizes: Sequence[int], like: Tensor) -> Tensor:
        """The vectors of all ranks, of lengths ``sizes`` and the dtype of ``like``, in one (Σ sizes,)."""
        if self.world == 1:
            return make()
        own, error = _tried(make)
        padded = like.new_zeros(max(sizes) + 1)
        padded[-1] = float(error is not None)
        if own is not None:
            padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        _raise(error, bool(torch.stack(found)[:, -1].any()))
        return torch.cat([x[:n] for x, n in zip(found, sizes, strict=True)])


def _tried(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except Exception as error:
        return None, error


def _raise(error: Exception | None, failed: bool) -> None:
    if error is not None:
        raise error
    if failed:
        raise RankFailed("another rank could not do its part (its message says why), so none has an answer")


def _check_equal(heads: Sequence[Sequence[float]]) -> None:
    """Refuse ranks that hold different networks: rows (B_rank, number of parameters, Σθ, Σ|θ|)."""
    _, count, total, size = heads[0]
    for rank, (_, n, t, _) in enumerate(heads):
        if n != count:
            raise InvalidInput(f"rank 0 has {count:.0f} parameters, rank {rank} has {n:.0f}: give all the same network")
        if abs(t - total) > 1e-9 * size:  # rounding of another device is less; False for NaN
            raise InvalidInput(
                f"the parameters of ranks 0 and {rank} differ (sums {total:.9g} and {t:.9g}): start from the same ones"
            )


def _added(total: list[Tensor], x: Tensors, weight: float) -> list[Tensor]:
    """``total`` + weight · x; an empty list is zero. Writes into ``total``."""
    if not total:
        return [weight * v for v in x]
    return [t.add_(v, alpha=weight) for t, v in zip(total, x, strict=True)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if len({x.shape[1:] for x in parts}) > 1:
        raise InvalidInput(
            f"the outputs of the parts do not fit together: {', '.join(str(tuple(x.shape)) for x in parts)}"
        )
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]

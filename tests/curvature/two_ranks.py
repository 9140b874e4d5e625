"""One of the processes that test_parts.py starts: ``python -m torch.distributed.run … two_ranks.py FOLDER``.

Each writes FOLDER/rank.json: for every scenario what it saw, numbers in full.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from reprolib.curvature import expand
from reprolib.errors import ReprolibError
from reprolib.optim import RED

STEPS, BATCH = 4, 9
SHARES = {  # scenario -> for each rank the sizes of its micro-batches
    "one process": [[9]],
    "unequal": [[6], [3]],
    "micro-batches": [[2, 3], [1, 2, 1]],
    "one part and many": [[4], [1, 3, 1]],
}


def problem() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return net, [(torch.randn(BATCH, 4).double(), torch.randint(0, 3, (BATCH,))) for _ in range(STEPS)]


def pairs(net: nn.Module, x: torch.Tensor, y: torch.Tensor, shares: list[list[int]], rank: int) -> list:
    """The (closure, loss) pairs of this rank's samples."""
    sizes = [n for share in shares for n in share]
    first = sum(len(share) for share in shares[:rank])
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))[first : first + len(shares[rank])]
    return [(lambda x=x: net(x), lambda o, y=y: F.cross_entropy(o, y, reduction="none")) for x, y in parts]


def trajectory(shares: list[list[int]], rank: int, **options) -> list[list[float]]:
    """The parameters after each step of RED, and the losses before."""
    net, batches = problem()
    opt = RED(net.parameters(), preconditioner="rmsprop", lr=0.7, check_every=2, **options)
    path = []
    for x, y in batches:
        parts = pairs(net, x, y, shares, rank)
        loss = opt.step(*(parts[0] if len(parts) == 1 else (parts, None)))
        path.append([float(loss), *torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()])
    return path


def answers(shares: list[list[int]], rank: int, curvature: str, **options) -> dict[str, list[float]]:
    """Every answer of the local model; what belongs to this rank's samples is gathered by the test."""
    net, batches = problem()
    params = list(net.parameters())
    d = tuple(torch.randn_like(p) for p in params)
    model = expand(pairs(net, *batches[0], shares, rank), None, params, curvature, retain=True, **options)
    u = model.jvp(d)
    found = {
        "loss": model.loss,
        "losses": model.losses,
        "gradient": model.gradient,
        "curvature": model.curvature(d),
        "product": model.product(d),
        "vjp": model.vjp(model.loss_hvp(u)),
        "inner": model.inner(u, model.loss_hvp(u)),
        "summary": model.summary(d, [[0, 2], [1, 3]], third=curvature == "hessian")[:2],
        "own jvp": u,
        "own outputs": model.outputs,
        "own loss_gradient": model.loss_gradient,
        "own loss_hvp": model.loss_hvp(u),
    }
    model.close()
    return {
        k: torch.cat([x.reshape(-1) for x in ([v] if isinstance(v, torch.Tensor) else v)]).tolist()
        for k, v in found.items()
    }


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except (ReprolibError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"


def refusals(rank: int) -> dict[str, str]:
    """What each rank says where one of them cannot do its part."""
    shares = SHARES["unequal"]
    net, batches = problem()
    params = list(net.parameters())
    ((closure, loss),) = pairs(net, *batches[0], shares, rank)
    d = tuple(torch.ones_like(p) for p in params)
    model = expand(closure, loss, params, retain=True)
    short = d if rank == 0 else d[:1]
    found = {
        "closure": refusal(lambda: expand(closure if rank == 0 else lambda: 1 / 0, loss, params)),
        "no parts": refusal(lambda: expand([(closure, loss)] if rank == 0 else [], None, params)),
        "product": refusal(lambda: model.product(short)),
        "curvature": refusal(lambda: model.curvature(short)),
        "jvp": refusal(lambda: model.jvp(short)),
        "other network": refusal(lambda: expand(closure, loss, params if rank == 0 else params[:2])),
    }
    found["still works"] = str(float(model.curvature(d).sum()))
    with torch.no_grad():
        params[0][0, 0] += rank
    found["other parameters"] = refusal(lambda: expand(closure, loss, params))
    found["alone"] = str(len(expand(closure, loss, params, ranks=False).losses))
    return found


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    result = {name: trajectory(s, rank) for name, s in SHARES.items() if len(s) == dist.get_world_size()}
    result["answers"] = {c: answers(SHARES["micro-batches"], rank, c) for c in ("hessian", "ggn")}
    result["refusals"] = refusals(rank)
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

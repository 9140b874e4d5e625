"""One of the processes that test_curveball.py starts: ``python -m torch.distributed.run … several_ranks.py FOLDER``.

Each writes FOLDER/rank.json: for every optimizer the losses and parameters along its path, numbers in full.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from reprolib.optim import RED, Adler, CurveBall, NewtonCG, NewtonSummary, StepTunedSGD

STEPS, BATCH = 6, 9
OPTIMIZERS = {
    "curveball": lambda p: CurveBall(p, damping=1.0, test_every=2, weight_decay=1e-2, check_every=3),
    "curveball, every other": lambda p: CurveBall(p, damping=1.0, every=2, test_every=1, momentum=1.0),
    "curveball, fixed": lambda p: CurveBall(p, lr=0.1, momentum=0.9, damping=1.0),
    "adler": lambda p: Adler(p, weight_decay=1e-2, check_every=3),
    "adler, fisher": lambda p: Adler(p, curvature="fisher", weight_decay=1e-2, lr=0.2),
    "adler, gauss-newton": lambda p: Adler(p, curvature="gauss-newton", lr=0.01),
    "red, every third": lambda p: RED(p, every=3, weight_decay=1e-2, check_every=3),
    "step-tuned": lambda p: StepTunedSGD(p, lr=0.2),
    "summary": lambda p: NewtonSummary(p, period=2, weight_decay=1e-2, damping=0.3),
    "newton-cg": lambda p: NewtonCG(p, weight_decay=1e-2),
    "newton-cg, stale": lambda p: NewtonCG(p, weight_decay=1e-2, global_every=3, max_iter=4),
}
SIZES = [[4], [2, 3]]  # of each rank's micro-batches


def trajectory(name: str, rank: int, world: int) -> list[list[float]]:
    """The loss before each step and the parameters after it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    opt = OPTIMIZERS[name](net.parameters())
    path = []

    def share(x, y):
        """This rank's pairs of the samples."""
        sizes = [n for share in SIZES for n in share] if world > 1 else [BATCH]
        first = sum(len(share) for share in SIZES[:rank])
        own = slice(first, first + len(SIZES[rank])) if world > 1 else slice(0, 1)
        parts = list(zip(x.split(sizes), y.split(sizes), strict=True))[own]
        return [(lambda x=x: net(x), lambda o, y=y: F.cross_entropy(o, y, reduction="none")) for x, y in parts]

    def samples():
        return torch.randn(BATCH, 4).double(), torch.randint(0, 3, (BATCH,))

    more = {"summary": "summary", "newton-cg": "full", "newton-cg, stale": "full"}.get(name)
    further = {more: share(*samples())} if more else {}
    for _ in range(STEPS):
        loss = opt.step(share(*samples()), **further)
        path.append([float(loss), *torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()])
    return path


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    Path(folder, f"{rank}.json").write_text(json.dumps({name: trajectory(name, rank, world) for name in OPTIMIZERS}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

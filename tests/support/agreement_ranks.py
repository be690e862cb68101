"""What runs in every rank for `tests/run/test_agreement.py`."""

import copy
import logging

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import build
from tests.support.rank_cases import (
    METHODS,
    loss_of,
    masks_of,
    message_of,
    norm_free,
    own_hash,
    rank,
    ready,
    samples,
    train,
    world,
)

# ---- refusals ------------------------------------------------------------------------------------


def every_refusal(folder):
    return {
        "seed": other_start(lambda: start(seed=rank())),
        "method": other_start(lambda: start(METHODS["Magnitude"](sparsity=0.7 - 0.1 * rank()))),
        "kind": other_start(lambda: start(METHODS[("Magnitude", "SET")[rank()]]())),
        "net": other_start(lambda: PruningWrapper(build() if rank() else norm_free(), magnitude())),
        "loaded": other_start(loaded_on_rank_0),
        "masks": mismatch(),
        "emergent": mismatch(METHODS["GradR"]()),
        "coupling": other_coupling(),
        "failure": failure_on_one_rank(),
        "missing": nothing_recorded(),
        "dtensor": split_parameters(),
        "sharded": fully_sharded(),
        "log": logged(),
    }


def magnitude():
    return METHODS["Magnitude"]()


def start(method=None, seed=0):
    return PruningWrapper(build(), method or magnitude(), seed=seed)


def loaded_on_rank_0():
    model = start(METHODS["SET"]())
    if rank() == 0:
        other = start(METHODS["SET"](), seed=5)
        model.load_state_dict(other.state_dict())
    return model


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def other_start(make):
    """Return what attach says, and whether the wrapper can be used on its own afterwards."""
    model = make()
    said = message_of(RuntimeError, model.attach, optimizer_of(model))
    return {"said": said, "attached": len(model.optimizers)}


def mismatch(method=None):
    """Let the weights of rank 1 drift away before an update."""
    called, model, optimizer = ready(method or magnitude(), build(), ddp=False)
    train(called, optimizer, [1])
    if rank() == 1:
        with torch.no_grad():
            model.net[3].weight.copy_(model.net[3].weight.flip(0))
    before = masks_of(model)
    said = message_of(RuntimeError, train, called, optimizer, [2])
    same = all(torch.equal(mask, before[name]) for name, mask in masks_of(model).items())
    return {"said": said, "same": same, "history": len(model.history)}


def other_coupling():
    """Let rank 1 couple other channels than rank 0: it runs without the last convolution's mate."""

    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = norm_free()
            self.side = copy.deepcopy(self.inner[2])

        def forward(self, x):
            x = self.inner[1](self.inner[0](x))
            y = self.inner[2](x)
            if rank() == 0:
                y = y + self.side(x)
            return self.inner[3:](y)

    called, model, optimizer = ready(METHODS["SCA"](interval=1), Branched(), ddp=False)
    return message_of(RuntimeError, train, called, optimizer, [1], dtype=torch.float64)


def failure_on_one_rank():
    """Let rank 1 have nothing to score growth by."""
    called, model, optimizer = ready(METHODS["RigL"](interval=1), norm_free(), ddp=False)
    broken = RuntimeError("no luck")

    def fail(view):
        raise broken

    if rank() == 1:
        vars(model.updater.scorer)["scores"] = lambda: fail(None)
    return message_of(RuntimeError, train, called, optimizer, [1], dtype=torch.float64)


def nothing_recorded():
    """No rank has run a batch."""
    _, model, optimizer = ready(METHODS["SCA"](interval=1), norm_free())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return message_of(RuntimeError, optimizer.step)


def split_parameters():
    """Return what is said of a DTensor, when wrapping and when attaching."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world(),))

    def split(net):
        whole = net[3].weight.detach()
        net[3].weight = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
        return net

    wrapping = message_of(TypeError, PruningWrapper, split(build()), magnitude())
    model = start()
    split(model.net)
    attaching = message_of(TypeError, model.attach, optimizer_of(model))
    return wrapping, attaching


def fully_sharded():
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model = start()
    fully_shard(model.net[8])
    composed = message_of(TypeError, model.attach, optimizer_of(model))
    model = start()
    flat = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    return composed, message_of(TypeError, model.attach, optimizer_of(flat))


def logged():
    """Return the lines of an update that INFO shows."""
    lines = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.levelname)
    logger = logging.getLogger("sj_prune")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    called, _, optimizer = ready(magnitude(), build())
    train(called, optimizer, [1, 2])
    logger.removeHandler(handler)
    return lines


# ---- windows, gradients, resuming ----------------------------------------------------------------

SAVED = 2  # steps before the checkpoint; the window goes on over it
LONG = {"SCA": {"interval": 4}, "TaylorChannels": {"interval": 4}, "Criticality": {"interval": 4}}
LONG = {name: {**values, "end": 8} for name, values in LONG.items()}
LONG["Criticality"]["batches"] = 4


def every_state(folder, checkpoints):
    return {
        "idle window": idle_window(),
        "idle from the start": idle_from_the_start(),
        "own gradients": own_gradients(),
        "own observations": own_observations(),
        "copied": copied(),
        "manual": manual(),
        "resumed": {name: resume(name, folder) for name in LONG},
        "taken over": {name: take_over(name, checkpoints[name]) for name in LONG},
    }


def averaged_step(model, optimizer, step, share):
    """One step without DDP, its gradients averaged by hand; no forward for an empty share."""
    optimizer.zero_grad()
    if share is not None:
        loss_of(model, *samples(step, torch.float64, share)).backward()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if dist.is_initialized():
            dist.all_reduce(parameter.grad)
            parameter.grad /= world()
    optimizer.step()


def idle_window():
    """Rank 1 sees no batch in the window of the update in step 2; rank 0 sees them all."""
    method = METHODS["Criticality"](batches=1)
    _, model, optimizer = ready(method, norm_free(), ddp=False)
    averaged_step(model, optimizer, 1, (0, 12) if rank() == 0 else (0, 4))
    averaged_step(model, optimizer, 2, (0, 12) if rank() == 0 else None)
    return {"masks": masks_of(model), "hash": own_hash(model)}


def idle_from_the_start():
    """Rank 1 has never run a forward when the first update comes."""
    found = {}
    for name in ("SCA", "TaylorChannels", "Criticality", "Magnitude"):
        method = METHODS[name](interval=1, **({"batches": 1} if name == "Criticality" else {}))
        _, model, optimizer = ready(method, norm_free(), ddp=False)
        averaged_step(model, optimizer, 1, (0, 12) if rank() == 0 else None)
        found[name] = {"masks": masks_of(model), "step": model.step, "hash": own_hash(model)}
    return found


class Watched(methods.GraNet):
    """Notes which gradients it is shown."""

    def grow_score(self, view):
        SHOWN[view.name] = view.dense_grad().clone()
        return super().grow_score(view)


SHOWN = {}


def own_gradients():
    """Growth by gradient where nobody has averaged: scores use the mean, the step its own."""
    found = {}
    for averaged in (False, True):
        called, model, optimizer = ready(
            Watched(sparsity=0.6, interval=1, end=6), norm_free(), ddp=averaged
        )
        loss_of(called, *samples(1, torch.float64)).backward()
        mine = model.net[2].weight.grad.clone()
        optimizer.step()
        kept = model.masks["2"]
        same = torch.equal(model.net[2].weight.grad[kept], mine[kept])
        found[averaged] = {
            "masks": masks_of(model),
            "kept its own": same,
            "grad": mine,
            "shown": SHOWN["2"],
        }
    return found


class WatchedTaylor(methods.TaylorChannels):
    """Notes what it has observed on this rank, and what it scores by."""

    def observe(self, view):
        super().observe(view)
        OBSERVED[view.name] = {key: value.clone() for key, value in view.state.items()}

    def drop_score(self, view):
        SHOWN[view.name] = super().drop_score(view).clone()
        return SHOWN[view.name]


OBSERVED = {}


def own_observations():
    """Ranks observe gradients of their own; rank 0 has none in step 2. Their weights stay equal."""
    model = PruningWrapper(norm_free(), WatchedTaylor(sparsity=0.5, interval=3, end=6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.attach(optimizer)
    for step in (1, 2, 3):
        optimizer.zero_grad()
        if step != 2 or rank() == 1:
            loss_of(model, *samples(step, torch.float64)).backward()
        optimizer.step()
    return {"local": dict(OBSERVED), "shown": dict(SHOWN), "masks": masks_of(model)}


def copied():
    """A copy is detached and speaks to nobody: rank 0 alone updates it."""
    called, model, optimizer = ready(magnitude(), build())
    train(called, optimizer, [1, 2])
    if rank() == 0:
        other = copy.deepcopy(model)
        other.update_masks(0.5)
        return other.sparsity()["total"]
    return None


def manual():
    """An update by hand, of what all ranks have recorded."""
    called, model, optimizer = ready(METHODS["Criticality"](interval=50, end=100), norm_free())
    train(called, optimizer, [1], dtype=torch.float64)
    with model.recording():
        loss_of(called, *samples(2, torch.float64)).backward()
    model.update_masks(0.5)
    return masks_of(model)


def resume(name, folder):
    """Save in the middle of a window; go on, and go on from the checkpoint with as many ranks."""
    called, model, optimizer = ready(METHODS[name](**LONG[name]), norm_free(), momentum=0.0)
    train(called, optimizer, range(1, SAVED + 1), dtype=torch.float64)
    before, terms = recorded(model), [observed(model)]
    model.gather_statistics()
    gathered = recorded(model)
    terms.append(observed(model))
    if rank() == 0:
        torch.save(model.state_dict(), f"{folder}/{name}.pt")
    dist.barrier()
    train(called, optimizer, range(SAVED + 1, 6), dtype=torch.float64)
    return {
        "undisturbed": own_hash(model),
        "masks": masks_of(model),
        "resumed": take_over(name, f"{folder}/{name}.pt"),
        "before": before,
        "gathered": gathered,
        "terms": terms,
        "checkpoint": torch.load(f"{folder}/{name}.pt", weights_only=True),
    }


def recorded(model):
    return {name: node.activity.count for name, node in model.nodes.items()}


def observed(model):
    """Return how many steps `TaylorChannels` has seen, over all layers."""
    return sum(int(state["terms"]) for state in model.updater.state.values() if "terms" in state)


def take_over(name, checkpoint):
    """Load on every rank and go on to the step after the update."""
    model = PruningWrapper(norm_free(), METHODS[name](**LONG[name]))
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    loaded = recorded(model), observed(model)
    called = DistributedDataParallel(model) if world() > 1 else model
    optimizer = torch.optim.SGD(called.parameters(), lr=0.05)
    model.attach(optimizer)
    train(called, optimizer, range(SAVED + 1, 6), dtype=torch.float64)
    return {
        "hash": own_hash(model),
        "masks": masks_of(model),
        "history": len(model.history),
        "loaded": loaded,
    }

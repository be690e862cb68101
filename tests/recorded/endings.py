"""What comes after training, and networks pruned at once."""

import torch

import sj_prune
from tests.recorded.loops import OPTIMIZERS
from tests.recorded.nets import batch, build, loss_of

BUDGETS = {
    "own": None,
    "sparsity": {"sparsity": 0.5},
    "macs": {"macs": 0.6},
    "synops": {"synops": 0.6},
    "parameters": {"parameters": 0.6},
}


def _parameters(net):
    return sum(p.numel() for p in net.parameters())


def finalized(case):
    """finalize() after a run, and masks on a copy."""
    model, opt = case.start()
    case.steps(model, opt, last=9)
    case.record.net("other", model.masks.apply_(build(case.net, seed=4)))
    case.record.net("final", model.finalize())


def compacted(case):
    """A smaller network, with its optimizer, that trains on."""
    model, opt = case.start()
    case.steps(model, opt, last=9)
    masked = model.finalize()
    small, smaller = sj_prune.compact_with_optimizer(masked, opt, batch(0)[0])
    sizes = {"before": _parameters(masked), "after": _parameters(small)}
    state = [smaller.state[p] for p in small.parameters() if p in smaller.state]
    case.record.net("small", small, slots=state, sizes=sizes)
    smaller.zero_grad()
    loss_of(small, 20).backward()
    smaller.step()
    case.record.net("trained", small)
    case.record.net("compact", sj_prune.compact(masked, batch(0)[0]))


def told(case):
    """What the tables say; texts that may be written better are kept apart from numbers."""
    model, opt = case.start(example_input=batch(0)[0])
    case.record.add("explained", text=str(model.explain()))
    case.steps(model, opt, last=8)
    case.record.add("reported", text=str(model.report(batch(0)[0])))


def at_once(budget, *, fine_tuned=False, **kwargs):
    """prune() of a network that was trained a little."""

    def tune(model):
        opt = OPTIMIZERS["sgd"](model.parameters())
        model.attach(opt)
        for k in (30, 31, 32):
            opt.zero_grad()
            loss_of(model, k).backward()
            opt.step()

    def loop(case):
        net = build(case.net)
        opt = OPTIMIZERS["sgd"](net.parameters())
        for k in (1, 2):
            opt.zero_grad()
            loss_of(net, k).backward()
            opt.step()
        pruned, report = sj_prune.prune(
            net,
            [batch(k) for k in (3, 4, 5)],
            case.make(**case.settings),
            batches=2,
            budget=BUDGETS[budget],
            fine_tune=tune if fine_tuned else None,
            seed=2,
            **kwargs,
        )
        zeros = {name: int((p == 0).sum()) for name, p in pruned.named_parameters()}
        case.record.net("pruned", pruned, zeros=zeros, generator=torch.get_rng_state())
        case.record.add("report", text=str(report))

    return loop


ENDINGS = {"finalized": finalized, "told": told}
PRUNED = {
    **{budget: at_once(budget) for budget in BUDGETS},
    "tuned": at_once("sparsity", fine_tuned=True),
    "raw": at_once("sparsity", renormalize=False),
}

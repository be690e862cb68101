"""Training loops as users write them, each recorded after every step."""

from dataclasses import dataclass, field
from typing import Any

import torch

from sj_prune import PruningWrapper, methods
from tests.recorded.digest import Recorder, error_of
from tests.recorded.nets import batch, build, loss_of

STEPS = 10

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003, centered=True, momentum=0.9),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.05, max_iter=3, history_size=3),
    "wolfe": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3, line_search_fn="strong_wolfe"),
}


@dataclass
class Case:
    """What a loop runs on.

    Attributes:
        make: builds the method; keywords change its settings.
        net: name of the network.
        record: what it adds to.
        settings: that the method is built with.
    """

    make: Any
    net: str
    record: Recorder
    settings: dict = field(default_factory=dict)

    def wrapped(self, *, seed=0, dtype=torch.float32, **kwargs):
        net = build(self.net, seed, dtype)
        return PruningWrapper(net, self.make(**self.settings), **kwargs)

    def start(self, optimizer="sgd", **kwargs):
        model = self.wrapped(**kwargs)
        optimizer = OPTIMIZERS[optimizer](model.parameters())
        model.attach(optimizer)
        return model, optimizer

    def steps(self, model, *optimizers, first=1, last=STEPS, tag="", before_step=None):
        for k in range(first, last + 1):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = loss_of(model, k)
            loss.backward()
            if before_step is not None:
                before_step(model)
            for optimizer in optimizers:
                optimizer.step()
            self.record.run(f"{tag}{k}", model, optimizers, loss=loss)


def steps_of(optimizer):
    def loop(case):
        case.steps(*case.start(optimizer))

    return loop


def closures(optimizer):
    def loop(case):
        model, opt = case.start(optimizer)
        for k in range(1, STEPS + 1):

            def closure(k=k):
                opt.zero_grad()
                loss = loss_of(model, k)
                loss.backward()
                return loss

            loss = opt.step(closure) if k % 2 else opt.step(closure=closure)
            case.record.run(str(k), model, [opt], loss=loss)

    return loop


def accumulated(case):
    model, opt = case.start()
    for k in range(1, STEPS + 1):
        opt.zero_grad(set_to_none=k % 2 == 0)
        for part in range(2):
            loss = loss_of(model, 2 * k + part) / 2
            loss.backward()
            case.record.run(f"{k}.{part}", model, [opt], loss=loss)
        opt.step()
        case.record.run(str(k), model, [opt])


def clipped(case):
    def clip(model):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)

    case.steps(*case.start("adam"), before_step=clip)


def split(case, second_owns):
    """Two optimizers, each over a part of the parameters."""
    model = case.wrapped()
    parts = ([], [])
    for name, parameter in model.net.named_parameters():
        parts[second_owns(name, parameter)].append(parameter)
    opts = [OPTIMIZERS["sgd"](parts[0]), OPTIMIZERS["adam"](parts[1])]
    for opt in opts:
        model.attach(opt)
    case.steps(model, *opts)


def split_by_layer(case):
    split(case, lambda name, _: "last" in name or "fc" in name or name.startswith(("1.", "3.")))


def split_by_kind(case):
    split(case, lambda _, parameter: parameter.ndim < 2)


def group_added(case):
    model = case.wrapped()
    parameters = list(model.parameters())
    opt = OPTIMIZERS["sgd"](parameters[:2])
    model.attach(opt)
    case.steps(model, opt, last=3)
    opt.add_param_group({"params": parameters[2:], "lr": 0.02})
    case.steps(model, opt, first=4)


def scaled(optimizer):
    """A gradient scaler, whose second step overflows and is skipped."""

    def loop(case):
        model, opt = case.start(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for k in range(1, STEPS + 1):
            opt.zero_grad()
            loss = loss_of(model, k)
            scaler.scale(loss * torch.inf if k == 2 else loss).backward()
            scaler.step(opt)
            scaler.update()
            case.record.run(str(k), model, [opt], loss=loss, scale=scaler.get_scale())

    return loop


# ---- updates by hand -----------------------------------------------------------------------------


def _by_hand(case, model, opt, k, sparsity):
    opt.zero_grad()
    with model.recording(), model.dense_gradients():
        loss_of(model, 100 + k).backward()
    try:
        model.update_masks(sparsity)
    except (ValueError, RuntimeError) as error:
        case.record.add(f"{k} refused", **error_of(error))
    case.record.run(f"{k} by hand", model, [opt])


def by_hand(case):
    """Between scheduled updates."""
    model, opt = case.start()
    for k, sparsity in ((1, 0.3), (3, 0.5), (6, None), (9, 0.2)):
        case.steps(model, opt, first=max(1, model.step + 1), last=k)
        _by_hand(case, model, opt, k, sparsity)
    case.steps(model, opt, first=10, last=11)


def by_hand_alone(case):
    """With no schedule at all."""
    case.settings = {**case.settings, "end": None}
    model, opt = case.start("adam")
    for k, sparsity in ((2, 0.3), (4, 0.5), (6, None)):
        case.steps(model, opt, first=model.step + 1, last=k)
        _by_hand(case, model, opt, k, sparsity)
    case.steps(model, opt, first=7, last=8)


def unattached(case):
    """No optimizer: what is recorded by an ordinary forward and backward is scored."""
    case.settings = {**case.settings, "end": None}
    model = case.wrapped(example_input=batch(0)[0])
    emerges = isinstance(model.method, methods.GradR)
    for k, sparsity in ((1, 0.3), (2, 0.5)):
        model.zero_grad()
        loss_of(model, k).backward()
        model.update_masks(None if emerges else sparsity)
        case.record.run(str(k), model)


# ---- other settings ------------------------------------------------------------------------------


def other_settings(case):
    """An example input, another seed, a layer that stays dense, float64, evaluation in between."""
    skip = ("fc1",) if case.net == "residual" else ()
    model, opt = case.start(seed=1, dtype=torch.float64, skip=skip)
    for k in range(1, STEPS + 1):
        case.steps(model, opt, first=k, last=k)
        with torch.no_grad():
            out = loss_of(model.eval(), 50 + k)
            model.train()
            seen = loss_of(model, 60 + k)
        case.record.add(f"{k} seen", evaluated=out, trained=seen)


def seeded(case):
    model = PruningWrapper(
        build(case.net), case.make(**case.settings), seed=11, example_input=batch(0)[0]
    )
    opt = OPTIMIZERS["sgd"](model.parameters())
    model.attach(opt)
    case.record.run("start", model, [opt])
    case.steps(model, opt)


LOOPS = {
    **{name: steps_of(name) for name in ("sgd", "nesterov", "adam", "amsgrad", "rmsprop", "fused")},
    "closure": closures("sgd"),
    "closure-adam": closures("adam"),
    "lbfgs": closures("lbfgs"),
    "wolfe": closures("wolfe"),
    "accumulated": accumulated,
    "clipped": clipped,
    "split": split_by_layer,
    "split-norms": split_by_kind,
    "group-added": group_added,
    "scaler": scaled("sgd"),
    "scaler-fused": scaled("fused"),
    "by-hand": by_hand,
    "by-hand-alone": by_hand_alone,
    "unattached": unattached,
    "settings": other_settings,
    "seeded": seeded,
}

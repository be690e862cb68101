"""The options of every training script, and the pruning method that they ask for."""

from __future__ import annotations

import argparse
import ast
from dataclasses import fields
from pathlib import Path

import sj_prune

# May differ between a run and its continuation; everything else has to be the same.
FREE = {
    "batch_test",
    "checkpoint_every",
    "data_root",
    "device",
    "download",
    "dry_run",
    "out",
    "resume",
    "tensorboard",
    "threads",
}


def methods():
    """Return every method of the library that prunes in training, by name."""
    found = {name: getattr(sj_prune.methods, name) for name in sj_prune.methods.__all__}
    return {name: kind for name, kind in found.items() if _is_method(kind)}


def _is_method(kind):
    """Tell whether `kind` is a method with a last update in training, and no base of some."""
    base = sj_prune.methods.Method
    if not isinstance(kind, type) or not issubclass(kind, base):
        return False
    return kind.plan is not base.plan and hasattr(kind, "end")


def build_parser(doc, settings):
    """Return the parser; `settings` are the script's own defaults."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _training(parser.add_argument_group("training").add_argument)
    _pruning(parser.add_argument_group("pruning").add_argument)
    _running(parser.add_argument_group("running").add_argument)
    return set_defaults(parser, settings)


def set_defaults(parser, settings):
    """Make `settings` the defaults, each of which has to be an option."""
    known = {action.dest for action in parser._actions}
    unknown = sorted(set(settings) - known)
    assert not unknown, f"settings without an option: {unknown}"
    parser.set_defaults(**settings)
    return parser


def _training(add):
    add("--epochs", type=int, default=200)
    add("--batch", type=int, default=128, help="samples a step, over all processes")
    add("--batch-test", type=int, default=256, help="samples a step when testing")
    add("--optimizer", choices=["sgd", "adamw"], default="sgd")
    add("--lr", type=float, default=0.3, help="learning rate after the warm-up")
    add("--momentum", type=float, default=0.9, help="of sgd")
    add("--weight-decay", type=float, default=1e-4)
    add("--schedule", choices=["cosine", "step", "constant"], default="cosine")
    add("--lr-steps", type=float, nargs="+", default=[0.5, 0.75], help="step: parts of the epochs")
    add("--lr-factor", type=float, default=0.1, help="step: factor at each of them")
    add("--warmup", type=float, default=0.0, help="epochs in which the rate rises linearly")
    add("--loss", choices=["ce", "tet"], default="ce", help="of the mean, or of every time step")
    add("--tet-lambda", type=float, default=0.05, help="tet: weight of its distance to 1")
    add("--label-smoothing", type=float, default=0.0)
    add("--clip", type=float, default=0.0, help="largest norm of the gradient; 0: none")
    add("--ema", type=float, default=0.0, help="decay of averaged weights, such as 0.999; 0: none")
    add("--seed", type=int, default=0)


def _pruning(add):
    add("--method", choices=["dense", *methods()], default="Criticality")
    add("--sparsity", type=float, default=None, help="the method's own by default")
    add("--regrow", type=float, default=None, help="the method's own by default")
    add(
        "--interval",
        type=int,
        default=2000,
        help="steps between mask updates; less where none would fit. Methods that prune once, or "
        "once an epoch, do so unless --set interval=STEPS",
    )
    add("--begin", type=int, default=0, help="updates start after this step")
    add("--prune-until", type=float, default=0.75, help="part of training with mask updates")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other fields of the method")
    add("--skip", nargs="+", default=[], help="names of layers that stay dense")


def _running(add):
    add("--out", type=Path, default=Path("runs/train"), help="logs and checkpoints")
    add("--data-root", type=Path, default=Path("data"), help="where the data set is, or will be")
    add("--download", action="store_true", help="fetch the data set, if it is not there")
    add("--generated", type=int, default=0, metavar="N", help="N generated samples a class instead")
    add("--resume", default="auto", help="auto: from last.pt in --out; never; or a checkpoint")
    add("--checkpoint-every", type=int, default=0, help="steps; 0: after every epoch only")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--threads", type=int, default=0, help="of the CPU; 0: torch's own choice")
    add("--amp", choices=["off", "bf16", "fp16"], default="off", help="mixed precision")
    add("--channels-last", action="store_true", help="memory layout of convolutions")
    add("--compile", action="store_true", help="torch.compile")
    add("--deterministic", action="store_true", help="repeatable kernels on CUDA, slower")
    add("--tensorboard", action="store_true", help="event files beside log.csv")
    add("--dry-run", action="store_true", help="print what would happen, its cost, and stop")


def choose_regrow(args, method, pairs):
    """Let `regrow` go with the sparsity as the paper of `method` pairs them, unless it is given."""
    if args.method == method and args.regrow is None:
        args.regrow = pairs.get(args.sparsity)


def make_method(args, epoch):
    """Return the method for epochs of so many optimizer steps; None for dense training."""
    if args.method == "dense":
        return None
    kind = methods()[args.method]
    known = {field.name: field.default for field in fields(kind) if field.init}
    asked = {"sparsity": args.sparsity, "regrow": args.regrow, **_pairs(args.set)}
    asked = {name: value for name, value in asked.items() if value is not None}
    unknown = sorted(asked.keys() - known.keys())
    if unknown:
        raise SystemExit(
            f"Expected settings of {args.method} among {sorted(known)} but got {unknown}: leave "
            "them out, or choose another --method"
        )
    when = {name: value for name, value in _when(args, epoch).items() if name in known}
    values = {**when, **asked}
    try:
        if "interval" in asked or known.get("interval", ...) is not None:
            return kind(**values)
        return _make_without_interval(kind, values, epoch)
    except (TypeError, ValueError) as error:
        raise SystemExit(f"--method {args.method}: {error}") from error


def _when(args, epoch):
    """Return the steps of the mask updates."""
    end = max(args.begin + 1, round(args.prune_until * args.epochs * epoch))
    room, interval = end - args.begin, args.interval
    if interval > room:  # a short training: ten updates, where the default has room for none
        interval = max(1, room // 10)
    return {"interval": interval, "begin": args.begin, "end": end}


def _make_without_interval(kind, values, epoch):
    """Make a method whose own `interval` is None: it prunes once, or else once an epoch."""
    once = {name: value for name, value in values.items() if name != "interval"}
    try:
        return kind(**once)
    except ValueError:
        return kind(**once, interval=epoch)  # whatever else is wrong, this says it too


def _pairs(texts):
    """Return ``NAME=VALUE`` as a dict; values are Python literals, or else text."""
    pairs = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise SystemExit(f"Expected --set NAME=VALUE but got {text!r}")
        try:
            pairs[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            pairs[name] = value
    return pairs


def comparable(args):
    """Return the settings that a continued run has to share, as plain values."""
    values = {name: value for name, value in vars(args).items() if name not in FREE}
    return {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
        for name, value in values.items()
    }

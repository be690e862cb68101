"""One training loop for all scripts: it can be killed at any moment and goes on where it was.

What a run depends on is the step, and what a checkpoint holds: network, masks, statistics,
optimizer, scaler, averaged weights, position in the data, and every random state.
"""

from __future__ import annotations

import copy
import math
import sys
import time

import torch
from spikingjelly.activation_based import functional
from tqdm import tqdm

import sj_prune
from common import checkpoint, guard, logs, options, ranks, rates
from common.ema import Average
from sj_prune import cost

STOPPED = 130  # exit status of a run that was asked to stop, in all its processes
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def run(args, build_network, load_data, to_input=lambda x: x):
    """Train, or with ``--dry-run`` say what would happen; return what was reached.

    Args:
        args: of `options.build_parser`.
        build_network: called without arguments, returns a network in multi-step mode.
        load_data: called with the device, returns the loaders of training and test data.
        to_input: brings a batch of them to the form that the network takes.

    Returns:
        accuracy, best accuracy, sparsity, steps, operations a sample, parameters; None with
        ``--dry-run``.
    """
    return train(args, build_network, load_data, to_input)[1]


def train(args, build_network, load_data, to_input=lambda x: x):
    """As `run`; return the trainer too, for scripts that go on with its network."""
    device = _set_up(args)
    with ranks.first_before_others():
        training, test = load_data(device)
    try:
        training.split(ranks.rank(), ranks.number())
        test.split(ranks.rank(), ranks.number())
    except ValueError as error:
        raise SystemExit(f"--batch, --batch-test: {error}") from error
    trainer = Trainer(args, device, build_network, training, test, to_input)
    if args.dry_run:
        if ranks.first():
            trainer.print_plan()
        return trainer, None
    trainer.resume()
    return trainer, trainer.fit()


def _set_up(args):
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.deterministic:
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)
    checkpoint.seed_everything(args.seed)
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return ranks.start(torch.device(name))


class Trainer:
    """The state of a run, and the loop over it."""

    def __init__(self, args, device, build_network, train, test, to_input):
        self.args, self.device, self.to_input = args, device, to_input
        self.train_data, self.test_data = train, test
        self.steps = args.epochs * len(train)
        self.method = options.make_method(args, len(train))
        self.net = self._place(build_network())
        self.model = self._wrap()
        forward = torch.compile(self.model) if args.compile else self.model
        self.forward = ranks.parallel(forward, device)
        self.optimizer = self._make_optimizer()
        if self.method is not None:
            self.model.attach(self.optimizer)
        # Scaling is for half precision; switched off, the scaler does nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
        self.ema = Average(self._place(build_network()), args.ema) if args.ema else None
        if self.ema:
            self.ema.start(self.net)
        self.step, self.epoch, self.best, self.rows = 0, 0, -1.0, []
        self.sums, self.seconds = [0.0, 0, 0], 0.0  # loss, right ones, samples of this epoch
        self.stopping, self.stopped = False, False  # this process was asked to; any of them was

    def _place(self, net):
        layout = torch.channels_last if self.args.channels_last else torch.preserve_format
        return net.to(self.device, memory_format=layout)

    def _wrap(self):
        if self.method is None:
            return self.net  # dense
        try:
            return sj_prune.PruningWrapper(
                self.net, self.method, skip=self.args.skip, seed=self.args.seed
            )
        except (TypeError, ValueError) as error:
            raise SystemExit(f"--method {self.args.method}: {error}") from error

    def _make_optimizer(self):
        args, parameters = self.args, self.model.parameters()
        if args.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=args.lr, weight_decay=args.weight_decay)
        return torch.optim.SGD(
            parameters, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
        )

    @property
    def masks(self):
        """The mask manager; None when training dense."""
        return None if self.method is None else self.model.masks

    def sparsity(self):
        """Return the fraction of the prunable weights that is pruned."""
        return 0.0 if self.method is None else self.model.sparsity()["total"]

    def _autocast(self):
        dtype = AMP[self.args.amp]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    # ---- training --------------------------------------------------------------------------------

    def fit(self):
        """Train to the end, or until somebody asks to stop."""
        args = self.args
        wanted = args.tensorboard and ranks.first()
        board = logs.TensorBoard(args.out / "tensorboard", wanted, self.epoch)
        # torchrun passes Ctrl-C on to processes that have got it already.
        with guard.Interrupt(patient=ranks.number() > 1) as interrupt:
            while self.epoch < args.epochs:
                if not self._train_epoch(interrupt):
                    self._save("last.pt")
                    board.close()
                    name = interrupt.signal.name if interrupt.signal else "another process"
                    _say(
                        f"\n{name}: stopped after step {self.step:,} of "
                        f"{self.steps:,}; saved to {args.out / 'last.pt'}. The same command goes "
                        "on from there."
                    )
                    raise SystemExit(STOPPED)
                row = self._finish_epoch()
                board.add(row, row["epoch"])
        board.close()
        return self._finish()

    def _train_epoch(self, interrupt):
        """Train on the rest of this epoch; return whether it was reached."""
        start = time.perf_counter()
        bar = tqdm(
            self.train_data,
            desc=f"epoch {self.epoch + 1}/{self.args.epochs}",
            initial=self.train_data.position if self._midway() else 0,
            total=len(self.train_data),
            disable=None if ranks.first() else True,  # None: where the output is no terminal
            leave=False,
        )
        for x, y in bar:
            self._train_step(self.to_input(x), y)
            bar.set_postfix_str(f"loss {self.sums[0] / self.sums[2]:.3f}", refresh=False)
            every = self.args.checkpoint_every
            if self._asked_to_stop(interrupt):
                self._tick(start)
                return False
            if every and self.step % every == 0:
                start = self._tick(start)
                self._save("last.pt")
        self._tick(start)
        return True

    def _midway(self):
        return self.sums[2] > 0

    def _tick(self, start):
        now = time.perf_counter()
        self.seconds += now - start
        return now

    def _asked_to_stop(self, interrupt):
        """Tell whether somebody has asked to stop, as all processes know it after the same step."""
        self.stopping = interrupt.signal is not None
        return self.stopped if ranks.number() > 1 else self.stopping

    def _train_step(self, x, y):
        args = self.args
        for group in self.optimizer.param_groups:
            group["lr"] = rates.learning_rate(args, self.step, self.steps)
        self.model.train()
        functional.reset_net(self.model)
        with self._autocast():
            output = self.forward(x)
        loss = rates.loss_of(args, output, y)
        self.optimizer.zero_grad()
        self.scaler.scale(self._share(loss, len(y))).backward()
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        right = (output.detach().mean(0).argmax(1) == y).sum()
        norm = torch.nn.utils.get_total_norm(gradients)
        # The device is waited for once a step, here.
        value, norm, right = torch.stack([loss.detach(), norm.float(), right.float()]).tolist()
        mine = [value * len(y), right, len(y), self.stopping]
        value_sum, right, samples, self.stopped = ranks.total(mine, self.device)
        self._check_finite(value_sum / samples, norm, x)
        if args.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), args.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.ema:
            self.ema.update(self.net, self.step, self.masks)
        before = self.sums
        self.sums = [before[0] + value_sum, before[1] + int(right), before[2] + int(samples)]

    def _share(self, loss, samples):
        """Return what this process adds to the mean over processes, for the mean over samples."""
        if ranks.number() == 1:
            return loss
        return loss * (samples * ranks.number() / self.train_data.samples)

    def _check_finite(self, loss, norm, x):
        """Stop before the optimizer steps on numbers that are not finite.

        The loss alone does not tell: a neuron whose potential is no number just does not fire. The
        gradient does; under fp16 the scaler looks after it, and skips steps that overflow.
        """
        if not math.isfinite(loss):
            self._stop_not_finite(f"the loss is {loss}", x)
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            self._stop_not_finite(f"the loss is {loss:.4g} but its gradient is {norm}", x)

    def _stop_not_finite(self, what, x):
        with self._autocast():
            why = guard.explain_not_finite(self.net, x)
        last = self.args.out / "last.pt"
        kept = f"the last good checkpoint is {last}" if last.exists() else "nothing is saved yet"
        raise SystemExit(
            f"\nStep {self.step + 1:,} (epoch {self.epoch + 1}): {what}, and {why}. Stopped; "
            f"{kept}. Try a lower --lr, --warmup, --clip 1, or --amp bf16 instead of fp16."
        )

    # ---- after an epoch --------------------------------------------------------------------------

    def _finish_epoch(self):
        loss, right, samples = self.sums
        row = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss / samples,
            "train_accuracy": 100 * right / samples,
            **self.evaluate(self.model, "test"),
            **(self.evaluate(self.ema.net, "ema") if self.ema else {}),
            "sparsity": self.sparsity(),
            "seconds": round(self.seconds, 2),
        }
        self.rows.append(row)
        self.epoch, self.sums, self.seconds = self.epoch + 1, [0.0, 0, 0], 0.0
        reached = row.get("ema_accuracy", row["test_accuracy"])
        # The best one among those that are as sparse as was asked for.
        complete = self.method is None or self._pruned_to_the_end()
        if complete and reached > self.best:
            self.best = reached
            self._save("best.pt")
        self._save("last.pt")  # after best.pt: killed in between, this epoch's end is repeated
        if ranks.first():
            logs.write_csv(self.rows, self.args.out / "log.csv")
        _say(_line(row, self.args.epochs))
        return row

    def _pruned_to_the_end(self):
        plan = self.method.plan()
        return plan.emergent or plan.schedule.next_due(self.model.step) is None

    @torch.no_grad()
    def evaluate(self, model, name):
        """Return loss and accuracy, in percent, on the test data."""
        model.eval()
        ranks.share_buffers(model)
        loss, right, samples = 0.0, 0, 0
        for x, y in self.test_data:
            if len(y) == 0:
                continue  # fewer samples than processes
            functional.reset_net(model)
            with self._autocast():
                output = model(self.to_input(x))
            output = output.float().mean(0)
            loss += torch.nn.functional.cross_entropy(output, y, reduction="sum").item()
            right += (output.argmax(1) == y).sum().item()
            samples += len(y)
        loss, right, samples = ranks.total([loss, right, samples], self.device)
        return {f"{name}_loss": loss / samples, f"{name}_accuracy": 100 * right / samples}

    def _finish(self):
        """Write the network that came out, without the wrapper; return what was reached."""
        args, net = self.args, self._final_network()
        if ranks.first():
            self._write_final(net)
        last = self.rows[-1]
        accuracy = last.get("ema_accuracy", last["test_accuracy"])
        best = f", at best {self.best:.2f} %" if self.best >= 0 else ""
        _say(
            f"{args.method}: {accuracy:.2f} % after {args.epochs} epochs{best}, sparsity "
            f"{self.sparsity():.4f}. The network is in {args.out / 'final.pt'}."
        )
        return {
            "accuracy": accuracy,
            "best": self.best,
            "sparsity": self.sparsity(),
            "steps": self.step,
            **self._cost(net),
        }

    def _cost(self, net):
        """Return what one sample costs in the network that came out, on the first test batch."""
        names = ("synops", "analog_macs", "picojoules", "parameters", "parameters_nonzero")
        values = [0.0] * len(names)
        if ranks.first():  # whose part of the batch is never empty; the others learn of it
            x, y = next(iter(self.test_data))
            counts = cost.measure(net, self.to_input(x), samples=len(y)).values()
            sizes = [(p.numel(), int(p.count_nonzero())) for p in net.parameters()]
            values = [
                sum(c.synops for c in counts),
                sum(c.macs for c in counts),
                sum(c.energy for c in counts),
                sum(size for size, _ in sizes),
                sum(nonzero for _, nonzero in sizes),
            ]
        return dict(zip(names, ranks.total(values, self.device), strict=True))

    def _final_network(self):
        """Return the averaged network, or the trained one without the wrapper."""
        if self.ema:
            return self.ema.net
        return self.net if self.method is None else copy.deepcopy(self.model).finalize()

    def _write_final(self, net):
        if self.method is not None:
            x, _ = next(iter(self.test_data))
            print(self.model.report(self.to_input(x)))
        sj_prune.save(self.args.out / "final.pt", net.state_dict())
        logs.write_csv(self.rows, self.args.out / "log.csv")

    # ---- checkpoints -----------------------------------------------------------------------------

    def _save(self, name):
        broken = guard.not_finite_parameter(self.net)
        if broken is not None:
            last = self.args.out / "last.pt"
            raise SystemExit(
                f"\nStep {self.step:,} (epoch {self.epoch + 1}): the parameter {broken!r} is not "
                f"finite any more. Stopped; {last} is left as it was. Try a lower --lr or --clip 1."
            )
        if self.method is not None:
            self.model.gather_statistics()  # every process; the first one saves
        if not ranks.first():
            return
        state = {
            "format": checkpoint.FORMAT,
            "settings": options.comparable(self.args),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.net.state_dict() if self.ema else None,
            "data": self.train_data.state_dict(),
            "random": checkpoint.random_state(),
            "progress": {
                "step": self.step,
                "epoch": self.epoch,
                "best": self.best,
                "rows": self.rows,
                "sums": self.sums,
                "seconds": self.seconds,
            },
        }
        self.args.out.mkdir(parents=True, exist_ok=True)
        sj_prune.save(self.args.out / name, state)

    def resume(self):
        """Take up the last checkpoint, if there is one and ``--resume`` allows."""
        args = self.args
        path = args.out / "last.pt" if args.resume in ("auto", "never") else args.resume
        if args.resume == "never" or (args.resume == "auto" and not path.exists()):
            return
        state = checkpoint.load(path, options.comparable(args))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.net.load_state_dict(state["ema"])
        self.train_data.load_state_dict(state["data"])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        # Last: building the network anew has drawn from the generators.
        checkpoint.set_random_state(state["random"])
        _say(f"Resumed from {path}: step {self.step:,} of {self.steps:,}.")

    # ---- looking before training -----------------------------------------------------------------

    def print_plan(self):
        """Print what would be pruned, when, at which rates, and what the network costs."""
        args = self.args
        x, y = next(iter(self.train_data))
        x = self.to_input(x)
        functional.reset_net(self.model)
        self.model.train()
        if self.method is None:
            print("dense training: nothing is pruned")
        else:
            print(self.model.explain(x))
        parameters = sum(p.numel() for p in self.net.parameters())
        counts = cost.measure(self.net, x, samples=len(y)).values()
        synops = sum(c.synops_dense for c in counts)
        macs = sum(c.macs_dense for c in counts)
        marks = sorted({0, round(args.warmup * len(self.train_data)), self.steps // 2})
        lrs = [f"{rates.learning_rate(args, k, self.steps):.4g} at step {k:,}" for k in marks]
        print(
            f"\n{args.epochs} epochs of {len(self.train_data):,} steps, batches of {args.batch} on "
            f"{self.device}: {self.steps:,} steps.\nlearning rate ({args.schedule}): "
            f"{', '.join(lrs)}\nbefore training, per sample: {parameters:,} parameters, "
            f"{synops / 1e6:,.2f} M SynOps, {macs / 1e6:,.2f} M analog MACs\n"
            f"Nothing was trained: --dry-run."
        )


def _say(text):
    """Print it once, however many processes there are."""
    if ranks.first():
        print(text, flush=True)


def _line(row, epochs):
    ema = f", averaged {row['ema_accuracy']:.2f} %" if "ema_accuracy" in row else ""
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, training accuracy "
        f"{row['train_accuracy']:.2f} %, test {row['test_accuracy']:.2f} %{ema}, sparsity "
        f"{row['sparsity']:.4f}, {row['seconds']:.1f} s"
    )


def leave(main):
    """Call `main` for a script; a message goes to standard error, a number is the exit status."""
    stopped = False
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted twice: stopped at once, the last checkpoint stays as it is.")
    except SystemExit as status:
        if status.code != STOPPED:
            raise
        stopped = True
    ranks.stop()  # not before: the exception holds the trainer, and that the group
    if stopped:
        sys.exit(STOPPED)

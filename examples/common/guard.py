"""What stops a run early: Ctrl-C, and numbers that are not finite."""

from __future__ import annotations

import signal
import threading

import torch
from spikingjelly.activation_based import functional


class Interrupt:
    """Note Ctrl-C or a termination request, and let the step in hand be finished.

    A second Ctrl-C interrupts at once, unless `patient`.
    """

    def __init__(self, *, patient=False):
        self.signal, self.patient = None, patient
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.signal is not None and not self.patient:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


def not_finite_parameter(model):
    """Return the name of the first parameter with an infinite or missing number, or None."""
    parameters = list(model.named_parameters())
    # One number comes back from the device, not one a parameter.
    if bool(torch.stack([p.detach().isfinite().all() for _, p in parameters]).all()):
        return None
    return next(name for name, p in parameters if not p.detach().isfinite().all())


def explain_not_finite(model, x):
    """Run `x` once more and say where the first number that is not finite comes from."""
    if not x.isfinite().all():
        return "the input itself is not finite: look at the data"
    name = not_finite_parameter(model)
    if name is not None:
        return f"the parameter {name!r} is not finite: the step before broke it"
    found = []

    def note(module_name, module):
        def hook(_, inputs, output):
            outputs = output if isinstance(output, (tuple, list)) else (output,)
            tensors = [t for t in outputs if isinstance(t, torch.Tensor)]
            if not found and not all(t.isfinite().all() for t in tensors):
                found.append(f"{module_name!r} ({type(module).__name__})")

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    handles = [module.register_forward_hook(note(n, module)) for n, module in leaves]
    functional.reset_net(model)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the first output that is not finite is that of {found[0]}"
    broken = [n for n, p in model.named_parameters() if p.grad is not None and _bad(p.grad)]
    if broken:  # in the order of the forward: the last of them is where the backward pass broke
        return f"every output is finite, but not the gradient of {broken[-1]!r} and before it"
    return "every layer's output is finite: the loss itself overflows"


def _bad(tensor):
    return not bool(tensor.isfinite().all())

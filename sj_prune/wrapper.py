"""PruningWrapper: puts sensing, deciding and acting around a SpikingJelly network."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sj_prune import _host, checkpoint
from sj_prune.attach import OptimizerHooks, owned_parameters, unscale_
from sj_prune.history import UpdateRecord
from sj_prune.masks.manager import MaskManager
from sj_prune.masks.structure import Layer
from sj_prune.methods.base import Method, check_fraction
from sj_prune.neurons.convert import recording_nodes, to_recording, to_stock
from sj_prune.topology import Topology, prunable_layers, trace
from sj_prune.update import Updater

if TYPE_CHECKING:
    from sj_prune.report import Explanation, Report

__all__ = ["PruningWrapper"]

logger = logging.getLogger("sj_prune")


class PruningWrapper(nn.Module):
    """Prunes and regrows a network while the user's own loop trains it.

    ::

        model = sj_prune.PruningWrapper(net, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.attach(optimizer)   # the training loop stays as it is
        ...
        net = model.finalize()    # stock SpikingJelly network, zeros burnt in

    The stock IF, LIF and PLIF nodes of `net` become recording nodes, in place.

    Args:
        net: any SpikingJelly network, in multi-step mode where a method reads its neurons.
        method: what to drop and grow, and when; an instance from `sj_prune.methods`.
        example_input: one input (a tensor, or a tuple of positional inputs) to learn which neurons
            a weight feeds; by default the first forward tells.
        skip: names of layers, or of modules with layers in them, that stay dense.
        seed: of every random choice.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: for unknown names in `skip`, a network with nothing to prune, a sparsity that
            would empty a layer. The network is untouched then.
    """

    def __init__(
        self,
        net: nn.Module,
        method: Method,
        *,
        example_input: Any = None,  # noqa: ANN401
        skip: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_arguments(net, method, seed)
        self._layers = _select_layers(net, skip)
        self._check_sparsity(method, method.sparsity)
        self.net = to_recording(net)
        self.method = method
        self.seed = seed
        self.masks = MaskManager(self._layers)
        self.step = 0
        self.history: list[UpdateRecord] = []
        self.topology: Topology | None = None
        self._outline: tuple[Any, Any] | None = None
        self._finalized = False
        self._optimizers: list[OptimizerHooks] = []
        self._dense_gradients = False
        self._updater = Updater(self)
        self._leaf_hooks = self._hook_leaves()
        _host.invalidate_reset_cache(net)
        if example_input is not None:
            args = example_input if isinstance(example_input, tuple) else (example_input,)
            self._trace(args, {})
        if not method.dense_start:
            self._updater.install_random()
        self._switch_recording()

    # ---- forward -------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the network returns."""
        self._check_usable()
        if torch.compiler.is_compiling():
            # The graph cannot be walked from inside; the next optimizer step makes up for it.
            self._outline = (_outline(args), _outline(kwargs))
        elif (
            self.topology is None
            and torch.is_grad_enabled()
            and not torch.is_inference_mode_enabled()
        ):
            self._trace(args, kwargs)
        return self.net(*args, **kwargs)

    def ensure_topology(self) -> None:
        """Learn which neurons a weight feeds, if only compiled forwards have run so far.

        Raises:
            RuntimeError: if no forward has run.
        """
        if self.topology is not None:
            return
        if self._outline is None:
            raise RuntimeError(
                f"Expected to know which neurons a weight feeds, for {type(self.method).__name__}, "
                "but no forward with gradients has run: run one, or pass example_input="
            )
        args, kwargs = self._outline
        self._trace(_materialize(args), _materialize(kwargs))

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.topology = trace(self.net, self._layers, args, kwargs)
        self._switch_recording()

    def _check_usable(self) -> None:
        if self._finalized:
            raise RuntimeError(
                "Expected a wrapper in use but finalize() was called: go on with the network that "
                "it returned, or wrap it anew with sj_prune.PruningWrapper(net, method)"
            )

    # ---- attaching -----------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> PruningWrapper:
        """Let mask updates happen inside ``optimizer.step()``; several may be attached.

        `step` counts the steps of the first attached optimizer that owns a masked weight. Steps
        that a GradScaler skips do not count. Attaching one twice changes nothing.

        Returns:
            The wrapper.

        Raises:
            TypeError: if it is not a `torch.optim.Optimizer`.
            ValueError: if it holds none of this network's parameters.
            RuntimeError: after `finalize`.
        """
        self._check_usable()
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"Expected a torch.optim.Optimizer to attach but got {type(optimizer).__name__}"
            )
        mine = {id(p) for p in self.net.parameters()}
        if not any(id(p) in mine for p in owned_parameters(optimizer)):
            raise ValueError(
                "Expected an optimizer over this network's parameters but it holds none of them: "
                "build it with model.parameters() of the wrapped network"
            )
        if all(hooks.optimizer is not optimizer for hooks in self._optimizers):
            hooks = OptimizerHooks(optimizer, self._before_step, self._after_step)
            self._optimizers.append(hooks)
            self.masks.enforce(self._layers, [optimizer] if not self.method.emergent else [])
            self._switch_recording()
        return self

    @property
    def optimizers(self) -> list[Optimizer]:
        """The attached optimizers."""
        return [hooks.optimizer for hooks in self._optimizers]

    def _owned_layers(self, optimizer: Optimizer) -> list[str]:
        owned = {id(p) for p in owned_parameters(optimizer)}
        return [name for name in self._layers if id(self.masks.weight(name)) in owned]

    def _is_primary(self, optimizer: Optimizer) -> bool:
        first = next((o for o in self.optimizers if self._owned_layers(o)), None)
        return optimizer is first

    def _before_step(self, optimizer: Optimizer, first: bool) -> None:
        names = self._owned_layers(optimizer)
        due = self.method.schedule.due(self.step + 1) and first and self._is_primary(optimizer)
        penalizes = _overrides(self.method, "on_gradient")
        if penalizes or (due and self.method.gradient != "never"):
            unscale_(optimizer)
        if due:
            self._updater.scheduled(self.step + 1)
            if self.method.skips_step:
                for parameter in owned_parameters(optimizer):
                    parameter.grad = None
        if penalizes:
            for name in names:
                self.method.on_gradient(self._updater.view(name))
        if not self.method.emergent:
            self.masks.mask_gradients(names)

    def _after_step(self, optimizer: Optimizer) -> None:
        names = self._owned_layers(optimizer)
        if _overrides(self.method, "on_step"):
            for name in names:
                self.method.on_step(self._updater.view(name))
        if self.method.emergent:
            self.masks.adopt_zeros(names)
        else:
            self.masks.enforce(names, [optimizer])
        if self._is_primary(optimizer):
            self.step += 1
            if self.method.emergent and self.method.schedule.due(self.step):
                self._updater.record_emergent(self.step)
            self._switch_recording()

    # ---- gradients of pruned weights -----------------------------------------------------------

    def _hook_leaves(self) -> list[Any]:
        return [
            layer.weight.register_hook(partial(self._gate_gradient, name))
            for name, layer in self._layers.items()
            if layer.weight.requires_grad
        ]

    def _gate_gradient(self, name: str, grad: Tensor) -> Tensor:
        """Hide the gradient of pruned entries from clipping, unless the method reads it."""
        self._updater.gradient_is_dense[name] = dense = self._wants_dense_gradient()
        return grad if dense else grad.masked_fill(self.masks.pruned(name), 0)

    def _wants_dense_gradient(self) -> bool:
        when = self.method.gradient
        if self._dense_gradients or when == "always":
            return True
        if when == "never":
            return False
        return not self._optimizers or self.method.schedule.due(self.step + 1)

    @contextmanager
    def dense_gradients(self) -> Iterator[None]:
        """Keep the gradients of pruned weights inside this block, for a manual `update_masks`.

        Between its scheduled updates a method such as RigL sees masked gradients only.
        """
        before, self._dense_gradients = self._dense_gradients, True
        try:
            yield
        finally:
            self._dense_gradients = before

    # ---- masks ---------------------------------------------------------------------------------

    def update_masks(self, sparsity: float | None = None) -> None:
        """Update the masks now; the step counter stays as it is.

        Args:
            sparsity: to reach; the method's final one by default.

        Raises:
            RuntimeError: without the statistics or gradients that the method needs, naming where.
            ValueError: for a sparsity out of reach. Network and optimizer are untouched then.
        """
        self._check_usable()
        if self.method.emergent and sparsity is not None:
            raise ValueError(
                f"Expected sparsity=None for {type(self.method).__name__}, whose sparsity emerges "
                f"from its prior, but got {sparsity}"
            )
        target = self.method.sparsity if sparsity is None else sparsity
        self._check_sparsity(self.method, target)
        with torch.no_grad():
            self._updater.manual(target)

    def _check_sparsity(self, method: Method, sparsity: float) -> None:
        check_fraction("sparsity", sparsity)
        sizes = [layer.weight.numel() for layer in self._layers.values()]
        total = sum(sizes)
        if not method.emergent and round((1.0 - sparsity) * total) < len(sizes):
            raise ValueError(
                f"Expected a sparsity of at most {1 - len(sizes) / total:.6g}, which leaves one "
                f"weight in each of the {len(sizes)} layers, but got {sparsity}"
            )

    def sparsity(self) -> dict[str, float]:
        """Return the pruned fraction of each prunable layer, and of all under ``"total"``."""
        return self.masks.sparsity()

    @property
    def layers(self) -> dict[str, Layer]:
        """The prunable layers by name."""
        return dict(self._layers)

    def _switch_recording(self) -> None:
        """Let nodes record what the method needs, in the window before an update only."""
        if self._finalized:
            return
        window = self._in_window()
        facts = {} if self.topology is None else self.topology.facts
        for name, node in recording_nodes(self.net).items():
            usable = name not in facts or facts[name].problem is None
            record = window and usable
            if self.method.needs:
                node.statistics = self.method.needs
            if record and not node.recording:
                node.activity.clear()
            node.recording = record

    def _in_window(self) -> bool:
        if not self.method.needs:
            return False
        if not self._optimizers or self.method.window is None:
            return True
        due = self.method.schedule.next_due(self.step)
        return due is not None and due - self.step <= self.method.window

    # ---- seeing --------------------------------------------------------------------------------

    def explain(self, example_input: Any = None) -> Explanation:  # noqa: ANN401
        """Return a table of what will be pruned and why, before training.

        Args:
            example_input: one input, if neither the constructor nor a forward has seen one yet.
        """
        from sj_prune.report import explain

        self._check_usable()
        if example_input is not None:
            args = example_input if isinstance(example_input, tuple) else (example_input,)
            self._trace(args, {})
        return explain(self)

    def report(self, example_input: Any) -> Report:  # noqa: ANN401
        """Return sizes, sparsity, activity and cost per layer, before -> after.

        Args:
            example_input: a batch to measure spikes on, as the network takes it.
        """
        from sj_prune.report import report

        self._check_usable()
        return report(self, example_input)

    # ---- state ---------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Return masks, step, statistics and generator, as plain values and tensors."""
        return checkpoint.extra_state(self)

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401
        """Take over what `get_extra_state` returned; `load_state_dict` has checked it."""
        checkpoint.load_extra_state(self, state)
        self._switch_recording()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # noqa: ANN401
        """Load network, masks, step, statistics and generator; training goes on bit-identically.

        Raises:
            ValueError: for a checkpoint of another method, architecture or mask shape, naming the
                key. Nothing is changed then.
        """
        self._check_usable()
        checkpoint.check(self, state_dict, strict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is detached: no optimizer of ours, no hooks.
        return {**vars(self), "_optimizers": [], "_leaf_hooks": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self._finalized:
            self._leaf_hooks = self._hook_leaves()
            self._switch_recording()

    def finalize(self) -> nn.Module:
        """Remove all hooks, bring stock classes back, burn the zeros in; return the network.

        The wrapper refuses further use.
        """
        self._check_usable()
        if not self.method.emergent:
            self.masks.enforce(self._layers, self.optimizers)
        for hooks in self._optimizers:
            hooks.remove()
        for handle in self._leaf_hooks:
            handle.remove()
        self._optimizers, self._leaf_hooks = [], []
        to_stock(self.net)
        _host.invalidate_reset_cache(self.net)
        self._finalized = True
        return self.net


def _overrides(method: Method, phase: str) -> bool:
    return getattr(type(method), phase) is not getattr(Method, phase)


def _check_arguments(net: object, method: object, seed: object) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"Expected net to be a torch.nn.Module but got {type(net).__name__}")
    if any(isinstance(module, PruningWrapper) for module in net.modules()):
        raise ValueError("Expected a bare network but it is wrapped already: finalize() it first")
    if not isinstance(method, Method):
        hint = "an instance, not the class: add ()" if isinstance(method, type) else "an instance"
        raise TypeError(
            f"Expected method to be {hint} of a class in sj_prune.methods but got {method!r}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"Expected seed to be an integer but got {seed!r}")


def _select_layers(net: nn.Module, skip: Iterable[str]) -> dict[str, Layer]:
    if isinstance(skip, str):
        raise TypeError(f"Expected skip to be a sequence of names but got the string {skip!r}")
    layers = prunable_layers(net)
    skipped = set()
    for name in skip:
        below = [layer for layer in layers if layer == name or layer.startswith(f"{name}.")]
        if not below:
            close = difflib.get_close_matches(str(name), layers, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"Expected skip to name prunable layers or modules that hold some, among "
                f"{list(layers)}, but got {name!r}{hint}"
            )
        skipped.update(below)
    chosen = {name: layer for name, layer in layers.items() if name not in skipped}
    if not chosen:
        raise ValueError(
            "Expected at least one convolution or linear layer to prune but the network has none"
            f"{' outside skip' if skipped else ''}"
        )
    return chosen


class _Outline(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _outline(inputs: Any) -> Any:  # noqa: ANN401
    """Replace tensors by their outline, which holds no memory."""
    if isinstance(inputs, dict):
        return {key: _outline(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple([_outline(value) for value in inputs])
    if isinstance(inputs, Tensor):
        return _Outline(tuple(inputs.shape), inputs.dtype, inputs.device)
    return inputs


def _materialize(inputs: Any) -> Any:  # noqa: ANN401
    """Make zeros of every outline."""
    if isinstance(inputs, dict):
        return {key: _materialize(value) for key, value in inputs.items()}
    if isinstance(inputs, _Outline):
        return torch.zeros(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    if isinstance(inputs, tuple):
        return tuple(_materialize(value) for value in inputs)
    return inputs

"""PruningWrapper: puts sensing, deciding and acting around a SpikingJelly network."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sj_prune import _checks, _host
from sj_prune.compaction import couple_checked
from sj_prune.masks.channels import ChannelMasks
from sj_prune.masks.manager import MaskManager
from sj_prune.masks.structure import Channels, Layer
from sj_prune.methods.base import Method
from sj_prune.network.coupling import Coupling
from sj_prune.network.inputs import as_args, few_samples, from_plain, to_plain
from sj_prune.network.inputs import shapes_of as outline
from sj_prune.network.inputs import zeros_of as materialize
from sj_prune.network.layers import prunable_layers
from sj_prune.network.topology import Topology, trace
from sj_prune.neurons.convert import recording_nodes, to_recording, to_stock
from sj_prune.neurons.nodes import RecordingNode
from sj_prune.neurons.state import rest_channels
from sj_prune.run import checkpoint
from sj_prune.run import processes as distributed
from sj_prune.run.agreement import Ranks
from sj_prune.run.history import UpdateRecord
from sj_prune.run.hooks import owned_parameters
from sj_prune.run.step import Stepping
from sj_prune.run.update import Updater, scoring_neurons

if TYPE_CHECKING:
    from sj_prune.reports.explain import Explanation
    from sj_prune.reports.report import Report

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

    is_pruning_wrapper = True  # what `compact` knows a wrapper by

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
        _checks.check_network(net)
        distributed.check_whole(net)
        if any(isinstance(module, PruningWrapper) for module in net.modules()):
            raise ValueError("Expected a bare network but it is wrapped already: finalize() it")
        _checks.check_method(method)
        _checks.check_seed(seed)
        self._layers = _checks.select_layers(net, skip)
        if not isinstance(method.structure, Channels):
            sizes = [layer.weight.numel() for layer in self._layers.values()]
            _checks.check_sparsity(method, sizes, [1] * len(sizes), method.sparsity)
        found = [node for node in net.modules() if not isinstance(node, RecordingNode)]
        self.net = to_recording(net)
        self._swapped = [node for node in found if isinstance(node, RecordingNode)]
        self.nodes = recording_nodes(net)
        for node in self.nodes.values():
            if method.needs:
                node.statistics = method.needs
        self.method = method
        self.seed = seed
        self.masks = _new_masks(method, self._layers)
        self.step = 0
        self.history: list[UpdateRecord] = []
        self.topology: Topology | None = None
        self.coupling: Coupling | None = None
        self.dense: dict[str, str] = {}
        self._outline: tuple[Any, Any] | None = None
        self._finalized = False
        self._record_now = False
        self._said_no_forward = False
        self._switched: tuple[bool, Topology | None] | None = None
        self.updater = Updater(self)
        self.ranks = Ranks(self)
        self._stepping = Stepping(self)
        # After the weights, wherever in a larger module this wrapper is loaded.
        self.register_load_state_dict_post_hook(_settle)
        _host.invalidate_reset_cache(net)
        try:
            if example_input is not None:
                self._trace_example(example_input)
            if not method.dense_start and len(self.masks):
                self.updater.install_random()
        except Exception:
            self.discard()
            raise
        self._switch_recording()

    def discard(self) -> None:
        """Take hooks and recording nodes off the network and leave its weights as they are now.

        The wrapper refuses further use.
        """
        self._stepping.remove()
        for node in self._swapped:
            to_stock(node)
        _host.invalidate_reset_cache(self.net)
        self._finalized = True

    # ---- forward -------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the network returns."""
        self._check_usable()
        if torch.compiler.is_compiling():
            # The graph cannot be walked from inside; the next optimizer step makes up for it.
            self._outline = (outline(args), outline(kwargs))
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
            wanted = (
                "a forward of the wrapper, to learn which channels are coupled"
                if isinstance(self.masks, ChannelMasks)
                else f"statistics of neuron layers {list(self.nodes)}"
            )
            raise RuntimeError(
                f"Expected {wanted}, for {type(self.method).__name__}, but no forward with "
                "gradients has run: call model(x), not net(x), or pass example_input="
            )
        args, kwargs = self._outline
        self._trace(materialize(args), materialize(kwargs))

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._outline = (outline(args), outline(kwargs))
        topology = trace(self.net, self._layers, args, kwargs)
        if isinstance(self.masks, ChannelMasks) and self.coupling is None:
            self._couple(args, kwargs, topology)
        self.topology = topology
        if self.method.needs and not any(map(self.updater.neurons, self._layers)):
            logger.warning(
                "%s reads neurons but none that records follows a prunable layer: "
                "print(model.explain()) says why",
                type(self.method).__name__,
            )
        self._switch_recording()

    def _couple(self, args: tuple[Any, ...], kwargs: dict[str, Any], topology: Topology) -> None:
        """Learn which channels live and die together."""
        method, masks = self.method, self.masks
        assert isinstance(masks, ChannelMasks)  # noqa: S101 (for the type checker)
        skip = [name for name in prunable_layers(self.net) if name not in self._layers]
        coupling = _coupling(self.net, args, kwargs, skip)
        groups, self.dense = _checks.select_groups(
            method,
            coupling,
            self.net,
            lambda layer: bool(scoring_neurons(topology, coupling, layer)),
        )
        sizes = [group.units for group in groups]
        floors = [masks.least(group) for group in groups]
        _checks.check_sparsity(method, sizes, floors, method.sparsity)
        self.coupling = coupling
        masks.build(self.net, groups, self._silence)
        self._stepping.hook_leaves()
        if not method.dense_start:
            self.updater.install_random()

    def _silence(self, neuron: str, channels: Tensor) -> None:
        assert self.coupling is not None  # noqa: S101 (for the type checker)
        dim = self.coupling.neuron_dims[neuron]
        rest_channels(self.net.get_submodule(neuron), channels, dim)

    def ensure_masks(self, *, optional: bool = False) -> None:
        """Learn the groups of channels, if no eager forward has told them yet.

        Args:
            optional: do nothing where no forward has run at all.

        Raises:
            RuntimeError: if none has run.
        """
        built = not isinstance(self.masks, ChannelMasks) or self.coupling is not None
        if built:
            return
        if not (optional and self._outline is None):
            self.ensure_topology()
        elif not self._said_no_forward:
            self._said_no_forward = True
            logger.warning(
                "an optimizer steps but no forward of the wrapper has run, so no channels are "
                "known and nothing is penalized or pruned: call model(x), not net(x), or pass "
                "example_input="
            )

    def restore_outline(self, plain: Any) -> None:  # noqa: ANN401
        """Take the shapes of the inputs from a checkpoint, and learn what they tell."""
        if plain is not None and self.topology is None:
            device = next(self.net.parameters()).device
            self._outline = from_plain(plain, device)
            self.ensure_masks()

    @property
    def inputs(self) -> Any:  # noqa: ANN401
        """Shapes of the inputs seen, as plain values; None before any forward."""
        return None if self._outline is None else to_plain(self._outline)

    def _trace_example(self, example_input: Any) -> None:  # noqa: ANN401
        try:
            self._trace(as_args(example_input), {})
        except _checks.SettingsError:
            raise  # the forward went well
        except Exception as error:
            raise ValueError(
                "Expected example_input to be an input of the network (a tuple of several) but its "
                f"forward raised {type(error).__name__}: {error}"
            ) from error

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
        that a GradScaler skips do not count. Attaching one twice changes nothing. Attach several in
        the order in which they step.

        With several processes every rank attaches, and the masks stay the same on all: see
        docs/distributed.md.

        Returns:
            The wrapper.

        Raises:
            TypeError: if it is not a `torch.optim.Optimizer`, or if parameters are split over
                processes (FSDP, DTensor).
            ValueError: if it holds none of this network's parameters.
            RuntimeError: after `finalize`; if method, seed, step or masks differ between ranks.
        """
        self._check_usable()
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"Expected a torch.optim.Optimizer to attach but got {type(optimizer).__name__}"
            )
        distributed.check_whole(self.net, owned_parameters(optimizer))
        mine = {id(p) for p in self.net.parameters()}
        if not any(id(p) in mine for p in owned_parameters(optimizer)):
            raise ValueError(
                "Expected an optimizer over this network's parameters but it holds none of them: "
                "build it with model.parameters() of the wrapped network"
            )
        if all(known is not optimizer for known in self.optimizers):
            self.ranks.check_start()
            self._stepping.attach(optimizer)
            if not self.method.emergent:
                self.masks.enforce(self.masks.parameters(), [optimizer])
            self._switch_recording()
        return self

    def release(self, optimizer: Optimizer) -> None:
        """Take the hooks off an attached optimizer, so that another one can go on.

        Step and masks stay. Releasing one that is not attached changes nothing.
        """
        self._check_usable()
        self._stepping.release(optimizer)
        self._switch_recording()

    @property
    def optimizers(self) -> list[Optimizer]:
        """The attached optimizers."""
        return self._stepping.optimizers

    def count_step(self) -> None:
        """Count one completed step of the optimizer that owns the masked weights."""
        self.step += 1
        if self.method.emergent and self.method.schedule.due(self.step):
            self.updater.record_emergent(self.step)
        self._switch_recording()

    # ---- masks ---------------------------------------------------------------------------------

    @contextmanager
    def dense_gradients(self) -> Iterator[None]:
        """Keep the gradients of pruned weights inside this block, for a manual `update_masks`.

        Between its scheduled updates a method such as RigL sees masked gradients only.
        """
        self._check_usable()
        before, self._stepping.force_dense = self._stepping.force_dense, True
        try:
            yield
        finally:
            self._stepping.force_dense = before

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record afresh inside this block, for a manual `update_masks` between scheduled ones.

        ::

            with model.recording():
                model(x_seq)
            model.update_masks()
        """
        self._check_usable()
        self._record_now = True
        self.updater.clear_statistics()
        self._switch_recording()
        try:
            yield
        finally:
            self._record_now = False
            self._switch_recording()

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
        self.ensure_masks()
        units = self.masks.units()
        floors = [self.masks.floor(name) for name in units]
        _checks.check_sparsity(self.method, list(units.values()), floors, target)
        with torch.no_grad():
            self.updater.manual(target)

    def sparsity(self) -> dict[str, float]:
        """Return the pruned fraction of each prunable layer, and of all under ``"total"``.

        For `Channels` of each norm's channels; ``"total"`` counts coupled channels once.
        """
        return self.masks.sparsity()

    @property
    def layers(self) -> dict[str, Layer]:
        """The prunable layers by name."""
        return dict(self._layers)

    def _switch_recording(self) -> None:
        """Let nodes record what the method needs, in the window before an update only."""
        window = self._record_now or (bool(self.method.needs) and self._is_window())
        if window and self.topology is None and self._outline is not None:
            # Compiled forwards alone so far: the trace allocates the sums that the next one adds
            # to (else it would be compiled twice, without and with them) and comes back here.
            self.ensure_topology()
            return
        if self._switched is not None:
            before, topology = self._switched
            if before == window and topology is self.topology:
                return  # what a user has set by hand since stays
        self._switched = (window, self.topology)
        facts = {} if self.topology is None else self.topology.facts
        for name, node in self.nodes.items():
            record = window and (name not in facts or facts[name].problem is None)
            if record and not node.recording:
                node.activity.clear()
            node.recording = record

    def _is_window(self) -> bool:
        return not self.optimizers or self.in_scheduled_window()

    def in_scheduled_window(self) -> bool:
        """Tell whether what is recorded now is for the next scheduled update."""
        due = self.method.schedule.next_due(self.step) if self.optimizers else None
        window = self.method.window
        return due is not None and (window is None or due - self.step <= window)

    # ---- seeing --------------------------------------------------------------------------------

    def explain(self, example_input: Any = None) -> Explanation:  # noqa: ANN401
        """Return a table of what will be pruned and why, before training.

        Args:
            example_input: one input, if neither the constructor nor a forward has seen one yet.
        """
        from sj_prune.reports.explain import explain

        self._check_usable()
        if example_input is not None:
            self._trace_example(example_input)
        return explain(self)

    def report(self, example_input: Any) -> Report:  # noqa: ANN401
        """Return sizes, sparsity, activity and cost per layer, before -> after.

        Args:
            example_input: a batch to measure spikes on, as the network takes it.
        """
        from sj_prune.reports.report import report

        self._check_usable()
        return report(self, example_input)

    # ---- state ---------------------------------------------------------------------------------

    def gather_statistics(self) -> None:
        """Let rank 0 have what all ranks have recorded, before it saves a checkpoint.

        Every rank calls it. What the next update sees stays the same. Without it a checkpoint
        holds what its own rank has recorded since the last update. With one process it does
        nothing.
        """
        self._check_usable()
        self.ranks.gather_statistics()

    def get_extra_state(self) -> dict[str, Any]:
        """Return masks, step, statistics and generator, as plain values and tensors."""
        self._check_usable()
        return checkpoint.extra_state(self)

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401
        """Take over what `get_extra_state` returned; `load_state_dict` has checked it."""
        checkpoint.load_extra_state(self, state)
        self._switch_recording()  # clears what is switched on, so statistics come after
        checkpoint.load_statistics(self, state)

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
        if assign and self.optimizers:
            raise ValueError(
                "Expected assign=False once an optimizer is attached, which holds the present "
                "parameters, but got assign=True: load first, then build and attach the optimizer"
            )
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if assign:  # other parameters now
            self._stepping.hook_leaves()
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self._finalized:
            self._stepping.hook_leaves()
            self._switch_recording()

    def finalize(self) -> nn.Module:
        """Remove all hooks, bring stock classes back, burn the zeros in; return the network.

        The wrapper refuses further use.
        """
        self._check_usable()
        if not self.method.emergent:
            self.masks.enforce(self.masks.parameters(), self.optimizers)
            self.masks.burn()
        self._stepping.remove()
        to_stock(self.net)
        _host.invalidate_reset_cache(self.net)
        self._finalized = True
        return self.net


def _new_masks(method: Method, layers: Mapping[str, Layer]) -> MaskManager:
    if isinstance(method.structure, Channels):
        structure = method.structure
        return ChannelMasks(
            min_keep=structure.min_keep,
            channels=structure.multiple,
            wake=method.wakes,
            binds=method.binds,
        )
    return MaskManager(layers)


def _settle(wrapper: PruningWrapper, _: Any) -> None:  # noqa: ANN401
    """Make loaded weights true to the loaded masks."""
    if not wrapper.method.emergent:
        wrapper.masks.settle()
        wrapper.masks.enforce(wrapper.masks.parameters(), wrapper.optimizers)


def _coupling(
    net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], skip: Iterable[str]
) -> Coupling:
    """Return the groups of channels; a few samples tell as much as the whole batch."""
    *fewer, whole = few_samples(args)
    for some in fewer:
        with suppress(Exception):  # where samples lie along another dimension
            return couple_checked(net, some, kwargs, skip=tuple(skip))
    return couple_checked(net, whole, kwargs, skip=tuple(skip))

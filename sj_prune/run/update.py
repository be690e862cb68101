"""One mask update: views for the method, scores, the mask algorithm, installation, the record."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sj_prune.masks.ranking import LayerScores
from sj_prune.masks.regrow import LayerUpdate, prune_and_regrow
from sj_prune.masks.select import count
from sj_prune.methods.base import LayerActivity, LayerView, Method
from sj_prune.run import processes as distributed
from sj_prune.run.history import UpdateRecord
from sj_prune.run.scores import Scorer

if TYPE_CHECKING:
    from sj_prune.network.coupling import Coupling
    from sj_prune.network.topology import Topology
    from sj_prune.wrapper import PruningWrapper

__all__ = ["Updater", "scoring_neurons"]

logger = logging.getLogger("sj_prune")


def scoring_neurons(
    topology: Topology | None, coupling: Coupling | None, name: str
) -> dict[str, Tensor | None]:
    """Return the neuron layers that score a layer, and which of their channels are whose.

    Returns:
        Neuron layer name -> ``[C_out, k]``, or None where channels correspond one to one.
    """
    if topology is None:
        return {}
    found: dict[str, Tensor | None] = dict.fromkeys(topology.neurons.get(name, ()))
    if coupling is None:
        return found
    for node in topology.spread.get(name, ()):
        facts = topology.facts[node]
        channels = coupling.channels_behind(name, node)
        same = coupling.neuron_dims.get(node) == facts.channel_dim - facts.ndim
        if channels is not None and same:
            found[node] = channels
    return found


class Updater:
    """Runs the mask updates of a wrapper and owns what a method keeps for its layers.

    Args:
        wrapper: the wrapper that it works for.
    """

    def __init__(self, wrapper: PruningWrapper) -> None:
        self.wrapper = wrapper
        self.draws = 0
        self.gradient_is_dense: dict[str, bool] = {}
        self.state: dict[str, dict[str, Tensor]] = {}
        self._seen: tuple[Topology | None, Coupling | None] = (None, None)
        self._neurons: dict[str, dict[str, Tensor | None]] = {}
        self.previous = wrapper.masks.masks if wrapper.method.emergent else {}
        self.scorer = Scorer(wrapper, self.view)

    # ---- what a method sees --------------------------------------------------------------------

    def _seed(self, name: str) -> int:
        """Return a seed for one layer and update; a function of the counter, not of an order."""
        text = f"{self.wrapper.seed}/{self.draws}/{name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")

    def _generator(self) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(self._seed(""))

    def view(self, name: str, step: int | None = None) -> LayerView:
        """Return what the method sees of one layer now.

        Args:
            name: of the layer.
            step: the optimizer step, from 1; by default the one after those counted.
        """
        wrapper = self.wrapper
        weight = wrapper.masks.weight(name)
        nodes = self.neurons(name)
        norm, norm_channels = self._norm(name)
        bias = wrapper.layers[name]._parameters.get("bias")
        first = name not in self.state
        state = self.state.setdefault(name, {})
        for key, value in state.items():
            state[key] = value.to(weight.device)
        view = LayerView(
            name=name,
            weight=wrapper.masks.scored_weight(name),
            grad=weight.grad,
            mask=wrapper.masks.layer_mask(name),
            activity=self._activity(nodes),
            norm=None if norm is None else wrapper.net.get_submodule(norm),
            step=wrapper.step + 1 if step is None else step,
            seed=self._seed(name),
            norm_channels=norm_channels,
            state=state,
            bias=None if bias is None else wrapper.masks.scored_bias(name),
            bias_grad=None if bias is None else bias.grad,
        )
        if first:  # not before: weights may be loaded into a network that is wrapped already
            state.update(wrapper.method.initial_state(view))
        return view

    def _norm(self, name: str) -> tuple[str | None, Tensor | None]:
        """Return the norm that scores a layer's channels, and which channels of it they are."""
        wrapper = self.wrapper
        if wrapper.coupling is not None:
            return wrapper.coupling.norms.get(name, (None, None))
        return (None if wrapper.topology is None else wrapper.topology.norms.get(name)), None

    def gamma(self, name: str) -> Tensor | None:
        """Return the weight of the norm that scores a layer's channels, if it has one."""
        norm, _ = self._norm(name)
        module = None if norm is None else self.wrapper.net.get_submodule(norm)
        return None if module is None else module._parameters.get("weight")

    def neurons(self, name: str) -> dict[str, Tensor | None]:
        """Return what `scoring_neurons` says of a layer; it is asked once."""
        topology, coupling = self.wrapper.topology, self.wrapper.coupling
        if topology is not self._seen[0] or coupling is not self._seen[1]:
            self._seen, self._neurons = (topology, coupling), {}
        if name not in self._neurons:
            self._neurons[name] = scoring_neurons(topology, coupling, name)
        return self._neurons[name]

    def scored_parameters(self) -> list[Tensor]:
        """Return the parameters whose gradients a method may score, each once."""
        found: list[nn.Module] = []
        for name in self.wrapper.masks.layers:
            norm, _ = self._norm(name)
            found.append(self.wrapper.layers[name])
            found += [] if norm is None else [self.wrapper.net.get_submodule(norm)]
        parameters = (m._parameters.get(key) for m in found for key in ("weight", "bias"))
        return list({id(p): p for p in parameters if p is not None}.values())

    def _activity(self, neurons: Mapping[str, Tensor | None]) -> LayerActivity | None:
        if not neurons:
            return None
        nodes: list[Any] = [self.wrapper.nodes[node] for node in neurons]
        return LayerActivity(nodes, list(neurons.values()))

    def _check_statistics(self) -> None:
        """Refuse an update without the statistics that the method scores."""
        wrapper = self.wrapper
        if not wrapper.method.needs:
            return
        wrapper.ensure_topology()
        layers = [layer for scope in wrapper.masks.scopes for layer in wrapper.masks.members(scope)]
        nodes = {k: wrapper.nodes[k] for name in layers for k in self.neurons(name)}
        method = type(wrapper.method).__name__
        if not nodes:
            raise RuntimeError(
                f"Expected recording neurons behind some prunable layer, for {method}, but there "
                "are none: print(model.explain()) says why (step mode, neuron classes)"
            )
        for name, node in nodes.items():
            if node.activity.count == 0:
                raise RuntimeError(
                    f"Expected statistics {sorted(wrapper.method.needs)} of neuron layer {name!r} "
                    "but nothing finite was recorded in the window before this update: run a "
                    "forward in train mode, inside `with model.recording():` between updates"
                )

    def _check_gradients(self) -> None:
        wrapper = self.wrapper
        if wrapper.method.gradient != "update":
            return
        for name in wrapper.masks.parameters():
            dense = self.gradient_is_dense.get(name, True)
            if not dense and wrapper.masks.holds(name):
                raise RuntimeError(
                    f"Expected the dense gradient of layer {name!r}, for "
                    f"{type(wrapper.method).__name__}, but pruned entries were masked in the last "
                    "backward: run it inside `with model.dense_gradients():`"
                )

    # ---- updates -------------------------------------------------------------------------------

    def scheduled(self, step: int) -> None:
        """Update inside step call `step`."""
        method = self.wrapper.method
        if method.emergent:
            return  # its weights decide; recorded after the step
        target = method.schedule.at(step)
        if method.regrow_schedule is None:
            # A manual update may be ahead of the schedule: what it dropped does not come back.
            target = max(target, self.wrapper.masks.sparsity()["total"])
        self._update(step, target)
        self.clear_statistics()

    def manual(self, sparsity: float) -> None:
        """Update now, to `sparsity`."""
        if self.wrapper.method.emergent:
            self.wrapper.masks.adopt_zeros(self.wrapper.masks)
            self.record_emergent(self.wrapper.step)
        else:
            self._update(self.wrapper.step, sparsity)
            self._enforce()
            if not self.wrapper.in_scheduled_window():  # the coming update needs its statistics
                self.clear_statistics()

    def clear_statistics(self) -> None:
        """Forget what the neurons have recorded and what the method has observed."""
        for node in self.wrapper.nodes.values():
            node.activity.clear()
        if type(self.wrapper.method).forget is not Method.forget:
            for name in self.state:
                self.wrapper.method.forget(self.view(name))

    def install_random(self) -> None:
        """Install random masks of the final sparsity, with the method's own allocation."""
        method = self.wrapper.method
        masks = self.wrapper.masks
        layers = []
        for scope in masks.scopes:
            view = self.view(masks.members(scope)[0])
            alive = masks.alive(scope)
            noise = torch.rand(alive.shape, device=view.weight.device, generator=view.generator)
            floor, multiple = masks.floor(scope), masks.multiple(scope)
            noise = noise.to(alive.device)
            layers.append(LayerScores(scope, alive, noise, floor=floor, multiple=multiple))
        found = prune_and_regrow(
            layers, self._keep(method.sparsity), method.allocation, generator=self._generator()
        )
        self._install(dict(zip(masks.scopes, found, strict=True)), 0, method.sparsity)

    def _keep(self, sparsity: float) -> int:
        return round((1.0 - sparsity) * sum(self.wrapper.masks.units().values()))

    def _update(self, step: int, target: float) -> None:
        where, ranks = f"the update in step {step}", self.wrapper.ranks
        ranks.prepare(where, self.wrapper.ensure_masks)

        def score() -> dict[str, LayerUpdate]:
            self.check_ready()
            return self.propose(self.scorer.scores(), self._keep(target), step)

        with ranks.joined():
            found = ranks.agreed(where, score, _masks_of)
        self._install(found, step, target)

    def check_ready(self) -> None:
        """Refuse to score without the statistics or gradients that the method needs.

        Raises:
            RuntimeError: naming where they are missing.
        """
        self._check_statistics()
        self._check_gradients()

    def propose(
        self, scores: Sequence[LayerScores], keep: int, step: int | None = None
    ) -> dict[str, LayerUpdate]:
        """Return the update that keeps so many units; nothing is changed.

        Args:
            scores: of all scopes of the masks, in their order.
            keep: number of units.
            step: that the method's regrowth depends on; the present one by default.
        """
        method, masks = self.wrapper.method, self.wrapper.masks
        regrow = method.regrow_schedule
        found = prune_and_regrow(
            scores,
            keep,
            method.allocation,
            regrow=0.0
            if regrow is None
            else regrow.at(self.wrapper.step if step is None else step),
            regrow_of_all=method.regrow_of_all,
            across_layers=method.grow_across_layers,
            exact_ties=method.exact_ties,
            generator=self._generator(),
        )
        return dict(zip(masks.scopes, found, strict=True))

    def choose(self) -> None:
        """Tell the method what an update to its final sparsity would drop now, without regrowth."""
        method, masks = self.wrapper.method, self.wrapper.masks
        where, ranks = f"the choice in step {self.wrapper.step + 1}", self.wrapper.ranks
        ranks.prepare(where, self.wrapper.ensure_masks)

        def score() -> dict[str, LayerUpdate]:
            self._check_statistics()
            scores = [replace(s, grow=None, tie=None) for s in self.scorer.scores()]
            keep = self._keep(method.sparsity)
            found = prune_and_regrow(scores, keep, method.allocation, generator=self._generator())
            return dict(zip(masks.scopes, found, strict=True))

        with ranks.joined():
            found = ranks.agreed(where, score, _masks_of)
        dropped = {scope: ~update.survivors for scope, update in found.items()}
        for name in {m: None for scope in masks.scopes for m in masks.members(scope)}:
            method.on_choice(self.view(name), masks.layer_units(name, dropped))

    def apply(self, found: Mapping[str, LayerUpdate]) -> None:
        """Install the masks of an update, outside of a step; no record is kept."""
        self._put(found)
        self._enforce()

    def _enforce(self) -> None:
        self.wrapper.masks.enforce(self.wrapper.masks.parameters(), self.wrapper.optimizers)

    def _put(self, found: Mapping[str, LayerUpdate]) -> None:
        wrapper, alive = self.wrapper, self.wrapper.masks.alive
        # What is new starts at 0 with fresh slots, whatever was loaded or written there meanwhile.
        keeps = wrapper.method.keeps_value
        cleared = {n: u.grown & ~alive(n) if keeps else u.grown for n, u in found.items()}
        masks = {name: update.mask for name, update in found.items()}
        wrapper.masks.install(masks, wrapper.optimizers, cleared=cleared)

    def _install(self, found: Mapping[str, LayerUpdate], step: int, target: float) -> None:
        alive = self.wrapper.masks.alive
        dropped = count([alive(n) & ~u.survivors for n, u in found.items()])
        grown = count([update.grown for update in found.values()])
        self._put(found)
        self.draws += 1
        self._record(
            step,
            target,
            dict(zip(found, dropped, strict=True)),
            dict(zip(found, grown, strict=True)),
        )

    def record_emergent(self, step: int) -> None:
        """Record what the weights of an emergent method have become since the last record."""
        self.wrapper.ranks.check_masks(step)
        masks = self.wrapper.masks.masks
        dropped = count([self.previous[n].to(m.device) & ~m for n, m in masks.items()])
        grown = count([m & ~self.previous[n].to(m.device) for n, m in masks.items()])
        self.previous = masks
        names = list(masks)
        target = self.wrapper.method.sparsity
        self._record(
            step,
            target,
            dict(zip(names, dropped, strict=True)),
            dict(zip(names, grown, strict=True)),
        )

    def _record(
        self, step: int, target: float, dropped: dict[str, int], grown: dict[str, int]
    ) -> None:
        masks = self.wrapper.masks
        kept, sparsity = masks.kept_units(), masks.sparsity()["total"]
        record = UpdateRecord(step, target, sparsity, kept, dropped, grown, masks.pruned_units())
        self.wrapper.history.append(record)
        logger.log(
            logging.INFO if self.wrapper.ranks.speaks else logging.DEBUG,
            "step %d: %s, sparsity %.4f (target %.4f), kept %d, dropped %d, grown %d",
            step,
            type(self.wrapper.method).__name__,
            sparsity,
            target,
            sum(kept.values()),
            sum(dropped.values()),
            sum(grown.values()),
        )


def _masks_of(found: Mapping[str, LayerUpdate]) -> dict[str, str]:
    """Return what has to be the same on every rank."""
    parts = [mask for update in found.values() for mask in (update.mask, update.grown)]
    return {"masks": distributed.digest(*parts)}

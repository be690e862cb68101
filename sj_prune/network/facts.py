"""What one traced forward says of layers and neurons, and which neurons score a layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from sj_prune.network.coupling.groups import Coupling


@dataclass
class NeuronFacts:
    """What one traced forward says of a neuron layer.

    Attributes:
        channels: size of the channel dimension of its input.
        channel_dim: which dimension of ``x_seq`` that is.
        ndim: number of dimensions of ``x_seq``.
        calls: how often the layer ran.
        firing_rate: mean spike rate in the traced forward, None if it does not record.
        criticality: mean of ``criticality_max``, None likewise.
        problem: why it keeps no statistics, or None.
        steps: it gets single steps ``[N, *]``; `channel_dim` and `ndim` are those of a sequence.
    """

    channels: int = 0
    channel_dim: int = 2
    ndim: int = 0
    calls: int = 0
    firing_rate: float | None = None
    criticality: float | None = None
    problem: str | None = None
    steps: bool = False


@dataclass
class Topology:
    """Which norms and neurons follow a weight: the result of `topology.trace`.

    Attributes:
        neurons: layer name -> names of the neuron layers that its output feeds; empty if none.
        norms: layer name -> name of the norm directly behind it, or None.
        facts: neuron layer name -> what was seen of it.
        problems: layer name -> why a neuron that follows is not counted.
        spread: layer name -> names of the neuron layers that its output feeds whose channels are
            not its own one by one: behind a flatten or a concatenation.
        through: layer name -> the neuron layers that end its chain, behind further layers and no
            neuron, and the channels there that each of its own reaches, ``[C_out, k]``. Of layers
            that feed no neuron directly.
        before: layer name -> the neuron layers that its input comes from, of layers that neurons
            follow.
        ends: the same of layers that no neuron follows, behind which the output comes.
        places: layer name -> how many places of its input each weight meets, of the layers that ran
            as modules.
    """

    neurons: dict[str, tuple[str, ...]] = field(default_factory=dict)
    norms: dict[str, str | None] = field(default_factory=dict)
    facts: dict[str, NeuronFacts] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    spread: dict[str, tuple[str, ...]] = field(default_factory=dict)
    through: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    before: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ends: dict[str, tuple[str, ...]] = field(default_factory=dict)
    places: dict[str, float] = field(default_factory=dict)

    def leave_out(self, name: str, layers: Iterable[str] = ()) -> None:
        """Let a neuron layer score nothing, neither `layers` nor those of an earlier call."""
        problem = f"{name}: {self.facts[name].problem}"
        for table in (self.neurons, self.spread):
            for layer in {*layers, *(layer for layer, known in table.items() if name in known)}:
                table[layer] = tuple(n for n in table.get(layer, ()) if n != name)
                self.problems[layer] = problem
        for chains in self.through.values():
            chains.pop(name, None)


def scoring_neurons(
    topology: Topology | None, coupling: Coupling | None, name: str
) -> dict[str, Tensor | None]:
    """Return the neuron layers that score a layer, and which of their channels are whose.

    Returns:
        Neuron layer name -> ``[C_out, k]``, or None where channels correspond one to one. A layer
        that feeds no neuron itself is scored by those at the end of its chain.
    """
    if topology is None:
        return {}
    found: dict[str, Tensor | None] = dict.fromkeys(topology.neurons.get(name, ()))
    if coupling is None:
        return found or dict(topology.through.get(name, {}))
    for node in topology.spread.get(name, ()):
        facts = topology.facts[node]
        channels = coupling.channels_behind(name, node)
        same = coupling.neuron_dims.get(node) == facts.channel_dim - facts.ndim
        if channels is not None and same:
            found[node] = channels
    return found or dict(topology.through.get(name, {}))

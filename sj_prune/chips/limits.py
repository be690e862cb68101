"""What chips can hold, from public sources; import nothing of their vendors."""

from __future__ import annotations

from dataclasses import dataclass

KI = 1024
#: what `Chip` limits by a number, and what a budget may name: ``prune(..., budget={"fan_in": 64})``
LIMITS = (
    *("fan_in", "fan_out", "mean_fan_in", "mean_fan_out"),
    *("cores", "neurons_per_core", "synapses_per_core"),
)


@dataclass(frozen=True)
class Core:
    """The memory of one core.

    Attributes:
        synapses: words of kernel memory.
        neurons: words of neuron memory.
    """

    synapses: int
    neurons: int


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """What a core that computes convolutions takes; memory is counted in powers of two.

    Attributes:
        cores: one layer each.
        kernel: largest height and width.
        strides: possible ones.
        padding: largest.
        pools: possible windows of the pooling of spikes behind the neurons, stride alike.
        input: largest height and width of the first map.
        map: largest height and width of a layer's output.
        channels: most, of inputs and outputs.
        biases: most of a layer.
        destinations: of one layer's spikes.
    """

    cores: tuple[Core, ...]
    kernel: int
    strides: tuple[int, ...]
    padding: int
    pools: tuple[int, ...]
    input: int
    map: int
    channels: int
    biases: int
    destinations: int


@dataclass(frozen=True, kw_only=True)
class Population:
    """What a chip with one population of hidden neurons takes.

    Attributes:
        inputs: most input channels.
        hidden: most hidden neurons, of all hidden layers together.
        outputs: most output neurons.
        fan_out: most synapses that leave one hidden neuron.
        mean_fan_out: of all hidden neurons; to hidden ones and to outputs together.
        reached: most hidden neurons that inputs project to, or None.
    """

    inputs: int
    hidden: int
    outputs: int
    fan_out: int
    mean_fan_out: float
    reached: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip's limits; None: no such limit.

    Attributes:
        name: of the chip.
        source: where the limits are published.
        cores: how many; with the two numbers below, layers are cut into as many as they need.
        neurons_per_core: most.
        synapses_per_core: most; every connection is counted, weights that are 0 are none.
        fan_in: most synapses that one neuron receives.
        fan_out: most synapses that leave one neuron or input.
        mean_fan_in: of all neurons of a layer.
        mean_fan_out: of all inputs of a layer.
        bits: of a weight; what is written about memory counts with it.
        neurons: kinds that it has, such as ``("IF",)``: it is given spikes, pools none but averages
            and adds nothing up before neurons. None: any, and whatever lies between the layers.
        convolution: limits of cores that compute convolutions.
        population: limits of a chip with one population.

    Raises:
        ValueError: for a limit that is not positive.
    """

    name: str
    source: str = "the user"
    cores: int | None = None
    neurons_per_core: int | None = None
    synapses_per_core: int | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    mean_fan_in: float | None = None
    mean_fan_out: float | None = None
    bits: int | None = None
    neurons: tuple[str, ...] | None = None
    convolution: Convolution | None = None
    population: Population | None = None

    def __post_init__(self) -> None:
        for name in (*LIMITS, "bits"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Expected {name} to be positive or None but got {value!r}")
        if self.cores is not None and not (self.neurons_per_core or self.synapses_per_core):
            raise ValueError(
                f"Expected cores={self.cores} to come with neurons_per_core or synapses_per_core"
            )


SPECK2F = Chip(
    name="Speck2f",
    source="SynSense, Speck / DYNAP-CNN documentation of sinabs",
    bits=8,
    neurons=("IF",),
    convolution=Convolution(
        cores=(
            *(Core(16 * KI, 64 * KI),) * 3,
            *(Core(32 * KI, 32 * KI),) * 2,
            *(Core(64 * KI, 16 * KI),) * 2,
            *(Core(16 * KI, 16 * KI),) * 2,
        ),
        kernel=16,
        strides=(1, 2, 4, 8),
        padding=7,
        pools=(1, 2, 4),
        input=128,
        map=64,
        channels=1024,
        biases=1024,
        destinations=2,
    ),
)


def _xylo(name: str, **limits: int | None) -> Chip:
    return Chip(
        name=name,
        source="SynSense, Xylo documentation of Rockpool",
        bits=8,
        neurons=("IF", "LIF", "PLIF"),
        # "32 + 32" of A2 and A3 is read as the sum.
        population=Population(inputs=16, mean_fan_out=64, **limits),  # type: ignore[arg-type]
    )


XYLO_A2 = _xylo("Xylo Audio 2", hidden=1000, outputs=8, fan_out=64)
XYLO_A3 = _xylo("Xylo Audio 3", hidden=992, outputs=32, fan_out=1024, reached=128)
XYLO_IMU = _xylo("Xylo IMU", hidden=496, outputs=16, fan_out=512, reached=128)

#: by the name that a budget gives: ``prune(..., budget={"chip": "speck2f"})``
NAMED = {
    "speck2f": SPECK2F,
    "xylo_a2": XYLO_A2,
    "xylo_a3": XYLO_A3,
    "xylo_imu": XYLO_IMU,
}

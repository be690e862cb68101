"""The fifteen methods, in a form that prunes and grows within eight steps, and their options."""

from sj_prune import methods
from sj_prune.masks import ERK, Channels, Global, Uniform

LAST = 8  # the step of the last update


def _weights(kind, **settings):
    return lambda **changed: kind(
        **{"sparsity": 0.7, "interval": 2, "end": LAST, **settings, **changed}
    )


def _channels(kind, **settings):
    grows = {"sparsity": 0.4, "regrow": 0.35, "interval": 2, "end": LAST}
    return lambda **changed: kind(**{**grows, **settings, **changed})


#: raised by 0.1 every step up to 0.4
_GREG = {"every": 1, "delta": 0.1, "ceiling": 0.4, "pick_delta": 0.05, "pick_ceiling": 0.1}

WEIGHTS = {
    "Criticality": _weights(methods.Criticality, regrow=0.25),
    "Magnitude": _weights(methods.Magnitude),
    "Random": _weights(methods.Random),
    "SET": _weights(methods.SET),
    "RigL": _weights(methods.RigL, regrow=0.4),
    "GraNet": _weights(methods.GraNet, regrow=0.4),
    "GradR": _weights(methods.GradR, sparsity=0.9, alpha=0.05),
}
CHANNELS = {
    "SCA": _channels(methods.SCA, regrow=0.25, l1=0.01),
    "CriticalityChannels": _channels(methods.CriticalityChannels, l1=0.01),
    "NetworkSlimming": _channels(methods.NetworkSlimming, l1=0.01),
    "GReg": _channels(methods.GReg, **_GREG),
    "APoZ": _channels(methods.APoZ),
    "FilterNorm": _channels(methods.FilterNorm),
    "TaylorChannels": _channels(methods.TaylorChannels),
    "RandomChannels": _channels(methods.RandomChannels),
}
METHODS = {**WEIGHTS, **CHANNELS}
AT_ONCE = [name for name in METHODS if name not in ("SET", "RigL", "GradR")]

_ALLOCATIONS = {
    "Global": {"allocation": Global()},
    "Uniform": {"allocation": Uniform()},
}
_ALL_ALLOCATIONS = {
    **_ALLOCATIONS,
    "ERK": {"allocation": ERK()},
    "first": {"allocation": Uniform(first_dense=True)},
}
_ON_CHANNELS = {
    "channels": {"structure": Channels(), "sparsity": 0.4},
    "fours": {"structure": Channels(linear=False, multiple=4), "sparsity": 0.4},
}
_OFTEN = {"every": {"interval": 1}, "late": {"begin": 3}, "three": {"interval": 3}}
_GROWTHS = {f"by-{growth}": {"growth": growth} for growth in ("gradient", "criticality", "random")}
_OF_CHANNELS = {
    **_ALLOCATIONS,
    **_GROWTHS,
    **_OFTEN,
    "by-score": {"growth": "score"},
    "by-score-Global": {"growth": "score", "allocation": Global()},
    "by-criticality-Global": {"growth": "criticality", "allocation": Global()},
    "prunes": {"regrow": 0.0},
    "zero": {"wake": "zero"},
    "zero-random": {"wake": "zero", "growth": "random", "interval": 1},
    "fours": {"structure": Channels(multiple=4)},
    "two": {"structure": Channels(multiple=2, min_keep=2), "growth": "random"},
    "two-Global": {"structure": Channels(multiple=2), "allocation": Global()},
    "keeps": {"structure": Channels(min_keep=4), "allocation": Global()},
    "convs": {"structure": Channels(linear=False)},
    "window": {"batches": 1, "growth": "criticality"},
    "window-two": {"batches": 2, "interval": 3, "growth": "criticality"},
    "dense": {"sparsity": 0.0},
    "sparse": {"sparsity": 0.75, "regrow": 0.2},
}
_ONCE = {
    "once": {"interval": None},
    "once-late": {"interval": None, "begin": 3, "batches": 2},
    "once-prunes": {"interval": None, "regrow": 0.0},
}
_SLIM = {"steep": {"l1": 0.5}, "free": {"l1": 0.0}}

#: method -> name of the variant -> settings
VARIANTS = {
    "Criticality": {
        **_OFTEN,
        **_GROWTHS,
        **_ON_CHANNELS,
        "filter": {"ties": "filter"},
        "filter-random": {"ties": "filter", "drop": "random"},
        "random": {"drop": "random"},
        "mean": {"aggregate": "mean"},
        "window": {"batches": 2},
        "prunes": {"regrow": 0.0},
    },
    "Magnitude": {**_OFTEN, **_ALL_ALLOCATIONS, **_ON_CHANNELS, "sparse": {"sparsity": 0.95}},
    "Random": {**_OFTEN, **_ALL_ALLOCATIONS, **_ON_CHANNELS},
    "SET": {**_OFTEN, **_ALL_ALLOCATIONS, **_ON_CHANNELS, "still": {"regrow": 0.0}},
    "RigL": {**_OFTEN, **_ALL_ALLOCATIONS, **_ON_CHANNELS, "still": {"regrow": 0.0}},
    "GraNet": {**_OFTEN, **_ON_CHANNELS, "final": {"regrow_final": 0.3}},
    "GradR": {**_OFTEN, "weak": {"alpha": 0.005}, "endless": {"end": 2**62}},
    "SCA": {
        **_OF_CHANNELS,
        **{name: {"score": name} for name in ("paper", "abs_charge", "firing_rate", "criticality")},
        "update": {"enforce": "update"},
        "update-zero": {"enforce": "update", "wake": "zero"},
        "update-Uniform": {"enforce": "update", "allocation": Uniform(), "score": "criticality"},
        "update-by-score": {"enforce": "update", "growth": "score"},
        "free": {"l1": 0.0},
    },
    "CriticalityChannels": {**_OF_CHANNELS, **_ONCE, **_SLIM, "mean": {"aggregate": "mean"}},
    "NetworkSlimming": {**_OF_CHANNELS, **_ONCE, **_SLIM},
    "GReg": {
        **_OF_CHANNELS,
        **_ONCE,
        "once-late": {"interval": None, "begin": 2},
        "late": {"begin": 2},
        "two-phases": {"variant": 2},
        "two-phases-once": {"variant": 2, "interval": None},
        "two-phases-once-fours": {
            "variant": 2,
            "interval": None,
            "regrow": 0.0,
            "structure": Channels(multiple=4),
        },
        "slow": {"every": 2, "ceiling": 0.3},
        # 0.07 / 0.01 is above 7 in floating point: seven raises all the same
        "rounded": {
            "variant": 2,
            "pick_delta": 0.01,
            "pick_ceiling": 0.07,
            "interval": None,
            "end": 12,
        },
    },
    "APoZ": {**_OF_CHANNELS, **_ONCE},
    "FilterNorm": {**_OF_CHANNELS, **_ONCE, "euclid": {"p": 2}},
    "TaylorChannels": {
        **_OF_CHANNELS,
        **_ONCE,
        "last": {"batches": 1},
        "last-two": {"batches": 2, "interval": 4},
    },
    "RandomChannels": {**_OF_CHANNELS, **_ONCE},
}
#: where else than on the residual network a method is run
OTHER_NETS = {
    **dict.fromkeys(WEIGHTS, ("plain", "depthwise")),
    **dict.fromkeys(CHANNELS, ("plain", "depthwise", "joined")),
    # which score norms
    **dict.fromkeys(("CriticalityChannels", "NetworkSlimming"), ("depthwise", "joined")),
}

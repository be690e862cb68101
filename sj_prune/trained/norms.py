"""Batch norms of a network that was pruned: their running statistics, estimated anew."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sj_prune import _host

logger = logging.getLogger("sj_prune")

# An instance norm takes no cumulative mean, and sees one sample at a time.
_BatchNorm = nn.modules.batchnorm._BatchNorm
#: values a channel below which the variance of a batch says little of that of the data
_FEW = 16


def renormalize(net: nn.Module, inputs: Iterable[tuple[Any, ...]]) -> None:
    """Estimate the running statistics of all batch norms anew: the mean over these inputs.

    Pruning changes what norms see; stale statistics cost more accuracy than the weights that went.
    The other modules run in eval mode, neurons from rest. A norm that does not run, and one without
    running statistics, stays as it is.

    Args:
        net: a network; its mode and everything but the statistics stay, its neurons are reset.
        inputs: positional inputs of each forward, as tuples.

    Raises:
        ValueError: without any input, and where statistics come out that are not finite. The
            network is as it was then.
    """
    say_few(estimate(net, inputs))


@torch.no_grad()
def estimate(net: nn.Module, inputs: Iterable[tuple[Any, ...]]) -> dict[str, list[float]]:
    """Do what `renormalize` does; return how many values a channel each call of a norm got.

    Those of one time step, where the norm knows of time.
    """
    found = {n: m for n, m in net.named_modules() if isinstance(m, _BatchNorm) and _tracks(m)}
    norms = list(found.values())
    values: dict[str, list[float]] = {name: [] for name in found}
    if not norms:
        return values
    momenta = {norm: norm.momentum for norm in norms}
    number = 0
    put_back = _host.remembered(net)
    training = {module: module.training for module in net.modules()}
    handles = [_anew(norm) for norm in norms]
    handles += [_counting(norm, values[name]) for name, norm in found.items()]
    try:
        net.eval()
        for norm in norms:
            norm.train()
            norm.momentum = None  # the cumulative mean
        # A compiled network runs eagerly: its graph has no room for our hooks.
        with torch.compiler.set_stance("force_eager"):
            for args in inputs:
                _host.reset_net(net)
                net(*args)
                _check_statistics({n: m for n, m in found.items() if values[n]}, number)
                number += 1
        _host.reset_net(net)
    except BaseException:
        put_back()
        raise
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    if not number:
        raise ValueError("Expected at least one input to estimate norms on but there is none")
    return values


def _check_statistics(norms: Mapping[str, _BatchNorm], number: int) -> None:
    for name, norm in norms.items():
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None and not statistic.isfinite().all():
                raise ValueError(
                    f"Expected finite statistics but batch norm {name!r}, the first in the order "
                    f"of the modules, has nan or infinite ones after batch {number} (from 0): look "
                    "at its inputs and at the weights before it"
                )


def _counting(norm: _BatchNorm, values: list[float]) -> RemovableHandle:
    """Note how many values a channel a norm gets in a call, those of one time step."""

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        x = (*args, *kwargs.values())[0]
        steps = len(x) if getattr(norm, "step_mode", "s") == "m" else 1
        values.append(x.numel() / max(1, steps * norm.num_features))

    return norm.register_forward_pre_hook(look, with_kwargs=True)


def say_few(values: Mapping[str, Sequence[float]]) -> None:
    """Warn of norms that got few values a channel, on average over calls."""
    means = {name: sum(each) / len(each) for name, each in values.items() if each}
    few = [name for name, mean in means.items() if mean < _FEW]
    if few:
        logger.warning(
            "batch norm %r%s got %.3g values a channel and time step in a batch, too few to "
            "estimate a variance of: give larger batches, or keep the statistics as they are "
            "(renormalize=False in prune)",
            few[0],
            f" (and {len(few) - 1} more)" if len(few) > 1 else "",
            means[few[0]],
        )


def _tracks(norm: nn.Module) -> bool:
    return norm._buffers.get("running_mean") is not None


def _anew(norm: _BatchNorm) -> RemovableHandle:
    """Let a norm forget its statistics when it first runs."""

    def forget(module: nn.Module, inputs: Any) -> None:  # noqa: ANN401
        norm.reset_running_stats()
        handle.remove()

    handle = norm.register_forward_pre_hook(forget)
    return handle

"""A LightningModule, and what runs in every rank for `tests/integrations/test_lightning.py`."""

import warnings

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from spikingjelly.activation_based import functional
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from sj_prune.integrations import LightningPruning
from tests.support.pruning_cases import batch, build, criticality
from tests.support.rank_cases import own_hash, rank


class Batches(Dataset):
    """Whole batches, as the plain loop of the wrapper's tests sees them."""

    def __init__(self, number, first=1):
        self.number, self.first = number, first

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if index >= self.number:
            raise IndexError
        return batch(index + self.first)


class Classifier(pl.LightningModule):
    def __init__(self, optimizer="sgd", net=None):
        super().__init__()
        self.net = build() if net is None else net
        self.kind = optimizer
        self.seen = []

    def training_step(self, pair, index):
        functional.reset_net(self)
        x, y = pair
        loss = F.cross_entropy(self.net(x).float().mean(0), y)
        self.seen.append(loss.detach().clone())
        return loss

    def test_step(self, pair, index):
        functional.reset_net(self)
        self.log("test", F.cross_entropy(self.net(pair[0]).mean(0), pair[1]), batch_size=1)

    def configure_optimizers(self):
        if self.kind == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def loader(number=8, first=1):
    return DataLoader(Batches(number, first), batch_size=None)


def trainer(folder, callbacks, steps=-1, **settings):
    warnings.filterwarnings("ignore", module="lightning")
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "max_steps": steps,
            "callbacks": callbacks,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            **settings,
        }
    )


class Torchrun(LightningEnvironment):
    """The process group is there already."""

    creates_processes_externally = True

    def global_rank(self):
        return rank()

    def local_rank(self):
        return rank()

    def world_size(self):
        return dist.get_world_size()

    def set_global_rank(self, value):
        pass

    def set_world_size(self, value):
        pass


def ddp(folder):
    """Train under the ddp strategy; save in the middle of a window, and go on from there."""
    results = {}
    for name, path in (("whole", None), ("resumed", f"{folder}/whole.ckpt")):
        pruning = LightningPruning(criticality(interval=4, end=8, batches=4))
        saver = Saver(f"{folder}/{name}.ckpt")
        run = trainer(
            folder,
            [pruning, saver],
            max_epochs=2,
            use_distributed_sampler=False,  # its order after a resume is that of the first epoch
            devices=dist.get_world_size(),
            strategy="ddp",
            plugins=[Torchrun()],
        )
        module = Classifier()
        run.fit(module, loader(6, 1 + 6 * rank()), ckpt_path=path, weights_only=True)
        wrapper = pruning.wrapper(module)
        results[name] = {
            "hash": own_hash(wrapper),
            "step": wrapper.step,
            "updates": len(wrapper.history),
            "loss": module.seen[0],
            "counts": saver.counts,
        }
    return results


class Saver(pl.Callback):
    """Saves after the first epoch: Lightning does not find its place within one again."""

    def __init__(self, path):
        self.path, self.counts = path, []

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            nodes = pl_module.net.nodes.values()
            self.counts = [[node.activity.count for node in nodes]]
            trainer.save_checkpoint(self.path)
            self.counts.append([node.activity.count for node in nodes])

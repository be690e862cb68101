"""Every contender is timed on weights of which none is 0."""

import sys

import mask_update


def test_each_repeat_begins_with_unpruned_weights(monkeypatch):
    seen, repeats = [], 2

    def noted(name):
        run = getattr(mask_update, name)

        def call(layers, *args):
            seen.append((name, [int((x.weight == 0).sum()) for x in layers.values()]))
            return run(layers, *args)

        return call

    for name in ("by_sort", "by_topk", "by_torch_prune"):
        monkeypatch.setattr(mask_update, name, noted(name))
    whole = mask_update.Update.whole

    def call(update, regrow):
        seen.append(("whole", [int((x.weight == 0).sum()) for x in update.layers.values()]))
        whole(update, regrow)

    monkeypatch.setattr(mask_update.Update, "whole", call)
    monkeypatch.setattr(mask_update, "write_csv", lambda name, rows: name)
    options = ["--millions", "1", "--repeats", str(repeats)]
    monkeypatch.setattr(sys, "argv", ["mask_update.py", *options])
    mask_update.main()
    assert len(seen) == 5 * (repeats + 1)  # and a warm-up
    assert not any(sum(zeros) for _, zeros in seen), seen

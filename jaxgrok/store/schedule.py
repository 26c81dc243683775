"""At which epochs a run is looked at and saved (spec: MEASURES.md, Epochs)."""


def schedule(total: int, every: int, first: int = 1) -> list[int]:
    """Epochs below `total` to look at: 0, then first, 2 first, 4 first, ... below `every`, then each multiple of `every`."""
    early = []
    epoch = first
    while epoch < min(every, total):
        early.append(epoch)
        epoch *= 2
    return sorted({0, *early, *range(0, total, every)})


def default_eval_every(epochs: int) -> int:
    """10 epochs, and never more than 1 % of the run."""
    return min(10, max(1, epochs // 100))


def default_checkpoint_every(planned: int, eval_every: int) -> int:
    """Epochs between checkpoints: 1 % of the planned ones, a multiple of eval_every."""
    return max(eval_every, planned // 100 // eval_every * eval_every)

"""The epochs at which a run is evaluated and saved (spec: MEASURES.md, Epochs)."""

MOST_EVAL_EVERY = 10  # epochs between evaluations by default
SHARE = 100  # an interval between evaluations or checkpoints is at most a SHARE-th of the run by default


def schedule(total: int, every: int, first: int = 1) -> list[int]:
    """Epochs below `total`, in order: 0, then first, 2 first, 4 first, ... below `every`, then each multiple of
    `every`."""
    early = []
    epoch = first
    while epoch < min(every, total):
        early.append(epoch)
        epoch *= 2
    return sorted({0, *early, *range(0, total, every)})


def default_eval_every(epochs: int) -> int:
    """Epochs between evaluations: 10, but never more than 1 % of the run."""
    return min(MOST_EVAL_EVERY, max(1, epochs // SHARE))


def default_checkpoint_every(planned: int, eval_every: int) -> int:
    """Epochs between checkpoints: 1 % of the planned epochs, rounded to a multiple of eval_every."""
    return max(eval_every, planned // SHARE // eval_every * eval_every)

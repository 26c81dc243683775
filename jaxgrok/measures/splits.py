"""Which pairs a network from elsewhere was trained on.

Our runs and the authors' shuffle the pairs with Python's `random`. Others permute them with torch, save them beside the
weights, or train on all.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxgrok.config import BadInput, Config
from jaxgrok.measures.all_pairs import Split, split_of, split_over
from jaxgrok.nets.weight_files import ARRAY, SUFFIXES, contents, optional
from jaxgrok.tasks import ModularTask, modular_task

FRAC = 0.3  # of the pairs, unless something else is said
TORCH = "torch:"
# How programs name the train pairs that they save. Under the last names they may save something else.
INDICES = ("train_indices", "train_idx", "train_inds")
RECORDED = (*INDICES, "train_pairs", "train_data", "is_train")


def split_of_file(
    config: Config,
    recorded: dict[str, Any],
    frac: float | None,
    split_seed: int | None,
    split: str | None,
    seed: int,
) -> tuple[Split, dict[str, Any]]:
    """The split of a network, and what is reported about it, as `subjects.subject_of_file` says.

    recorded: what the network's file has recorded. seed: of the labels.

    Raises BadInput for a split that cannot be read, or that does not fit the modulus or the fraction.
    """
    task, p = modular_task(config), config.p
    n_pairs = len(task.pairs_defined)
    if split is not None:
        train, about = chosen_pairs(split, task, frac)
    elif frac == 1:
        train, about = task.pairs_defined, {}
    elif split_seed is None and (own := _recorded(recorded, p)) is not None:
        train, about = own
    else:
        about = {"seed": split_seed or 0, "frac_train": frac or FRAC}
        return split_of(config, frac or FRAC, seed, split_seed or 0), about
    if len(without := np.setdiff1d(train, task.pairs_defined)):
        x, y = divmod(int(without[0]), p)
        raise BadInput("split", f"the pair ({x}, {y})", f"pairs that have an answer in task {config.task}")
    if not len(train):
        raise BadInput("split" if frac is None else "frac", split if frac is None else frac, "one with a train pair")
    if frac is not None and abs(frac * n_pairs - len(train)) > 1:  # programs round up or down
        raise BadInput("frac", frac, f"{len(train) / n_pairs:.6g}: the split has {len(train)} of the {n_pairs} pairs")
    return split_over(task, train, seed), about | {"frac_train": len(train) / n_pairs}


def _recorded(recorded: dict[str, Any], p: int) -> tuple[Int[np.ndarray, "n_train"], dict[str, Any]] | None:
    """The train pairs that a file has recorded, and what is reported about them; None if it has none."""
    for name in RECORDED:
        try:
            return as_numbers(recorded[name], p, name), {"from": name}
        except KeyError:
            continue
        except BadInput as error:
            if name in INDICES:
                accepted = f"{error.accepted}; --split or --split-seed say another split"
                raise BadInput("split", error.value, accepted) from None
    return None


def chosen_pairs(
    split: str, task: ModularTask, frac: float | None
) -> tuple[Int[np.ndarray, "n_train"], dict[str, Any]]:
    """The numbers of the train pairs, and what is reported about them.

    split: `torch:SEED`, for the first int(frac n) of the n pairs (p^2, where all have an answer), in the order of
        `torch.randperm(n)` after `torch.manual_seed(SEED)`; or
        `FILE[:KEY]`, for a .npy, .npz or .pth with the train pairs: their numbers a p + b, the pairs (a, b) themselves,
        or a mask over all pairs.

    Raises BadInput, named split.
    """
    if split.startswith(TORCH):
        seed = split.removeprefix(TORCH)
        if not re.fullmatch(r"[0-9]{1,18}", seed):
            raise BadInput("split", split, "torch:SEED, with a whole number below 10^18")
        torch = optional("torch", "split", split)
        generator = torch.Generator().manual_seed(int(seed))
        n = len(task.pairs_defined)
        order = torch.randperm(n, generator=generator).numpy()
        return task.pairs_defined[order[: int((frac or FRAC) * n)]], {"seed": int(seed), "generator": "torch"}
    path, key = (split, "") if Path(split).exists() else (*split.rsplit(":", 1), "")[:2]
    if not Path(path).is_file():
        raise BadInput("split", split, "torch:SEED, or FILE[:KEY] with a file that exists")
    try:
        content = contents(path, (ARRAY, *SUFFIXES))
    except BadInput as error:
        raise BadInput("split", split, error.accepted) from None
    if isinstance(content, dict):
        key = key or next((name for name in RECORDED if name in content), "")
        if key not in content:
            raise BadInput("split", split, f"FILE:KEY with a key of the file: {' '.join(map(str, content))}")
        content = content[key]
    elif key:
        raise BadInput("split", split, f"{path} alone: it holds one array or list, and no keys")
    return as_numbers(content, task.p, split), {"from": split}


def as_numbers(x: Any, p: int, name: str) -> Int[np.ndarray, "n_train"]:
    """Train pairs as their lexicographic numbers. x: the numbers, the pairs themselves [n, 2] (or more columns, of
    which the first two count), or a mask [p^2] or [p, p].

    Raises BadInput, named split, for anything else, for numbers out of range and for a pair that occurs twice.
    """
    accepted = f"different numbers below {p * p}, pairs (a, b) of numbers below {p}, or a mask of {p * p} pairs"
    try:
        x = np.asarray(x)
    except ValueError:
        raise BadInput("split", f"{name}: a ragged list", accepted) from None
    found = f"{name}: {x.dtype}{list(x.shape)}"
    if x.dtype.kind in "iu" and x.size and x.max() < 2**62:
        x = x.astype(np.int64)
    if x.dtype == bool and x.size == p * p:
        x = x.ravel().nonzero()[0]
    elif x.ndim == 2 and x.shape[1] in (2, 3) and x.dtype == np.int64 and (x[:, :2] // p == 0).all():
        x = x[:, 0] * p + x[:, 1]
    is_list = x.ndim == 1 and x.dtype == np.int64 and len(x) > 0
    if not is_list or x.min() < 0 or x.max() >= p * p or len(np.unique(x)) < len(x):
        raise BadInput("split", found, accepted)
    return x

"""What the commands share: flags of a run, and how they complain (one line, exit status 2, no traceback)."""

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from jaxgrok.config import CHOICES, MODULAR, BadInput

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
BAD_INPUT, INTERRUPTED = 2, 130  # exit statuses


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, and with one line for a flag that it does not accept."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; --help lists what is accepted\n")


def flag_of(name: str) -> str:
    """The flag of a field: `split_seed` -> `--split-seed`."""
    return f"--{name.replace('_', '-')}"


def add_run_flags(p: Parser) -> None:
    """Add the flags that say what a run is: its task, network, optimiser and numerics."""
    model = p.add_argument_group("task and network; a comma list of values makes an axis of the grid")
    tasks = " ".join(CHOICES["task"])
    model.add_argument("--task", metavar="NAME", help=f"{tasks} (default add; the first {len(MODULAR)} are modulo p)")
    model.add_argument("--p", metavar="N", help="modulus, prime or not (default 113)")
    model.add_argument("--seq-len", metavar="N", help="sequence length of induction (default 85), skip_trigram (13)")
    model.add_argument("--repeat-len", metavar="N", help="induction: length of the repeated subsequence (default 16)")
    model.add_argument("--n-repeats", metavar="N", help="induction: copies of the subsequence (default 3)")
    model.add_argument("--n-tokens", metavar="N", help="induction: vocabulary size (default 128)")
    model.add_argument("--n-test", metavar="N", help="test examples, for tasks that draw them (1024; induction 256)")
    split = "seed of the split, or of the stream of fresh data, for all runs (default: each run's own seed)"
    model.add_argument("--split-seed", metavar="N", help=split)
    model.add_argument(
        "--init", metavar="FILE|torch", help="initial weights: a file, or as the authors' code draws them"
    )
    archs = " ".join(CHOICES["arch"])
    model.add_argument(
        "--arch", metavar="NAME", help=f"{archs} (default transformer; induction, skip_trigram: attn_only)"
    )
    model.add_argument("--n-layers", metavar="N", help="transformer blocks (default 1; induction: 2)")
    model.add_argument("--n-heads", metavar="N", help="attention heads; must divide d_model (default 4)")
    model.add_argument("--d-model", metavar="N", help="width of the residual stream (default 128; induction: 48)")
    model.add_argument("--d-mlp", metavar="N", help="hidden width of the MLP (default 4 d_model; arch mlp: 256)")
    model.add_argument(
        "--act", metavar="NAME", help=f"{' '.join(CHOICES['act'])} (default relu; gelu is the exact erf form)"
    )
    model.add_argument("--n-ctx", metavar="N", help="positions of the network (default: the sequence length)")
    residual = "factor f in f x + sublayer(x) (default 1; the released induction networks have 2)"
    model.add_argument("--residual-factor", metavar="X", help=residual)
    optimiser = p.add_argument_group("optimiser; a comma list of values makes an axis of the grid")
    optimiser.add_argument(
        "--optimizer", metavar="NAME", help=f"{' '.join(CHOICES['optimizer'])} (default adam; sgd has momentum b1)"
    )
    regularisers = " ".join(CHOICES["regulariser"])
    optimiser.add_argument(
        "--regulariser", metavar="NAME", help=f"{regularisers}; --wd is its strength (default weight_decay: AdamW)"
    )
    optimiser.add_argument("--dropout", metavar="X", help="dropout rate on every sublayer's output (default 0)")
    batch = "examples per step (default: all; on unlimited data 256, induction 128)"
    optimiser.add_argument("--batch-size", metavar="N", help=batch)
    optimiser.add_argument("--b1", metavar="X", help="Adam's first beta, or the momentum of sgd (default 0.9)")
    optimiser.add_argument("--b2", metavar="X", help="Adam's second beta (default 0.98; induction: 0.999)")
    numerics = p.add_argument_group("numerics")
    loss = "exact uses the parameters' dtype, the others compute log_softmax in theirs; float32 shows slingshots"
    numerics.add_argument("--loss", metavar="NAME", help=f"{' '.join(CHOICES['loss'])} (default exact); {loss}")
    numerics.add_argument(
        "--dtype", metavar="NAME", help=f"{' '.join(CHOICES['dtype'])} (default float32), of weights and activations"
    )
    precisions = " ".join(CHOICES["matmul_precision"])
    numerics.add_argument("--matmul-precision", metavar="P", help=f"{precisions} (default highest: no TF32 on GPUs)")


def add_tables_flag(p: Parser, what: str) -> None:
    """Add `--tables`, for directories that cannot be written. what: what is written there."""
    p.add_argument("--tables", metavar="DIR", type=Path, help=f"write {what} here, not into the run directory")


def check_figure(path: Path | None) -> None:
    """Raises BadInput if a figure cannot be written under this name. None means no figure."""
    if path is not None and (path.suffix not in FIGURE_SUFFIXES or not path.absolute().parent.is_dir()):
        raise BadInput("--figure", str(path), "a .png, .pdf or .svg file in a directory that exists")


def write_tables(write: Callable[[], None], folder: Path | None) -> None:
    """Call `write`, which writes tables and figures. If it cannot, the complaint names `--tables`.

    folder: what `--tables` said. Raises BadInput.
    """
    try:
        write()
    except BadInput as error:
        if error.name not in ("tables", "figures"):
            raise
        if folder is not None:
            raise BadInput("--tables", str(folder), error.accepted) from None
        accepted = f"{error.accepted}; --tables DIR writes tables and figures into another one"
        raise BadInput(f"{error.name} directory", error.value, accepted) from None


def status_of(prog: str, run: Callable[[], int], flags: Collection[str] = (), interrupted: str = "stopped") -> int:
    """The exit status of a command: what `run` returns, or 2 after a line on standard error if it raises BadInput or
    OSError, or 130 after Ctrl-C.

    flags: fields that the user gives as flags, so that `split_seed` is named `--split-seed`. interrupted: what is said
    after Ctrl-C.
    """
    try:
        return run()
    except BadInput as error:
        name = flag_of(error.name) if error.name.replace("-", "_") in flags else error.name
        complaint = str(BadInput(name, error.value, error.accepted))
    except OSError as error:
        complaint = f"{error.filename or 'file'}: cannot be read or written ({error.strerror or error})"
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    print(f"{prog}: error: {complaint}", file=sys.stderr)
    return BAD_INPUT

"""What the commands share: flags of a run, and how they complain (one line, an exit status, no traceback)."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from jaxgrok import stopping
from jaxgrok.atomic import DISK_FAILS
from jaxgrok.cli import machine
from jaxgrok.config import CHOICES, BadInput, printable
from jaxgrok.task_names import DRAWN, GROUPS, MODULAR

# The flags of a run that `--help` leaves out: those of one task alone, of networks that are not the post's, of tricks,
# and of numerics.
RARE = frozenset(
    {
        "seq_len",
        "repeat_len",
        "n_repeats",
        "n_tokens",
        "n_test",
        "init",
        "n_ctx",
        "residual_factor",
        "sequence",
        "attention",
        "attn_coeff",
        "tied",
        "norm",
        "regulariser",
        "dropout",
        "b1",
        "b2",
        "grokfast",
        "grokfast_alpha",
        "orthograd",
        "max_norm",
        "label_smoothing",
        "grokfast_window",
        "matmul_precision",
    }
)
EXAMPLES = '"x^2+y^2", "x/y", "x/y if y%%2 else x-y"'
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
FAILED, BAD_INPUT, UNREAD = 1, 2, 141  # exit statuses; 141 is 128 + SIGPIPE
FAILURES = {*DISK_FAILS, errno.EROFS}
# How Python, compilers and XLA say it. A thread cannot start if there is no memory for its stack.
# CUDA_ERROR_OUT_OF_MEMORY is what a driver says if another process holds the device's memory.
OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED",
    "Out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "std::bad_alloc",
    "MemoryError",
    "can't start new thread",
)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, and with one line for a flag that it does not accept.

    rare: the fields of flags that `--help` leaves out and `--help-all` lists.
    """

    def __init__(self, rare: Collection[str] = (), **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.rare = rare
        if rare:
            self.add_argument(
                "--help-all", action=_HelpAll, nargs=0, help="show every flag, the rare ones too, and exit"
            )

    def format_help(self) -> str:
        rare = [(action, action.help) for action in self._actions if action.dest in self.rare]
        try:
            for action, _ in rare:
                action.help = argparse.SUPPRESS
            return super().format_help()
        finally:
            for action, text in rare:
                action.help = text

    def format_help_all(self) -> str:
        """The help with every flag."""
        return super().format_help()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            if value == [] or str(value) == "--":  # older argparse drops the value of `--flag=--`, newer keeps it
                self.error(f"argument {flag_of(name)}: got '--'; accepted: one value")
        return parsed

    def error(self, message: str) -> NoReturn:
        flag = "--help-all" if self.rare else "--help"
        self.exit(BAD_INPUT, f"{self.prog}: error: {printable(message)}; {flag} lists what is accepted\n")


class _HelpAll(argparse.Action):
    """Prints the help with every flag, and exits."""

    def __call__(self, parser: Any, *_: Any) -> NoReturn:
        print(parser.format_help_all(), end="")
        raise SystemExit(0)


def flag_of(name: str) -> str:
    """The flag of a field: `split_seed` -> `--split-seed`."""
    return f"--{name.replace('_', '-')}"


def add_run_flags(p: Parser) -> None:
    """Add the flags that say what a run is: its task, network, optimiser and numerics."""
    model = p.add_argument_group("task and network; a comma list of values makes an axis of the grid")
    tasks = (
        f"modulo p: {' '.join(MODULAR)} (default add), an expression ({EXAMPLES}), or several in one network "
        f"(add+subtract); on a group: {' '.join(GROUPS)}, also _conjugate, _xyx; drawn: {' '.join(DRAWN)}; your own: "
        "package.module:Name"
    )
    model.add_argument("--task", metavar="NAME", help=tasks)
    model.add_argument("--p", metavar="N", help="modulus, prime or not (default 113)")
    model.add_argument(
        "--seq-len", metavar="N", help="sequence length of induction (default 85), skip_trigram (13), parity (41)"
    )
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
    acts = f"{' '.join(CHOICES['act'])} (default relu; gelu is the exact erf form, square is x^2)"
    model.add_argument("--act", metavar="NAME", help=acts)
    norms = f"{' '.join(CHOICES['norm'])} (default none), before each sublayer and before W_U"
    model.add_argument("--norm", metavar="NAME", help=norms)
    model.add_argument("--n-ctx", metavar="N", help="positions of the network (default: the sequence length)")
    add_network_flags(model)
    optimiser = p.add_argument_group("optimiser; a comma list of values makes an axis of the grid")
    optimizers = (
        f"{' '.join(CHOICES['optimizer'])} (default adam; sgd has momentum b1; lion wants a tenth of Adam's --lr; "
        "muon is for the matrices between layers; schedule_free is AdamW with an average in place of momentum)"
    )
    optimiser.add_argument("--optimizer", metavar="NAME", help=optimizers)
    regularisers = " ".join(CHOICES["regulariser"])
    optimiser.add_argument(
        "--regulariser", metavar="NAME", help=f"{regularisers}; --wd is its strength (default weight_decay: AdamW)"
    )
    optimiser.add_argument("--dropout", metavar="X", help="dropout rate on every sublayer's output (default 0)")
    batch = "examples per step (default: all; on unlimited data 256, induction 128)"
    optimiser.add_argument("--batch-size", metavar="N", help=batch)
    optimiser.add_argument("--b1", metavar="X", help="Adam's first beta, or the momentum of sgd (default 0.9)")
    optimiser.add_argument("--b2", metavar="X", help="Adam's second beta (default 0.98; induction: 0.999)")
    tricks = p.add_argument_group("what is published to make networks grok sooner; a comma list makes an axis")
    tricks.add_argument("--grokfast", metavar="X", help="factor of the slow part of the gradient (default 0: off)")
    tricks.add_argument("--grokfast-alpha", metavar="X", help="memory of its moving average (default 0.98)")
    window = "average so many gradients instead (default none: a moving average)"
    tricks.add_argument("--grokfast-window", metavar="N", help=window)
    smoothing = "share of a target that is spread over all classes in training (default 0)"
    tricks.add_argument("--label-smoothing", metavar="X", help=smoothing)
    across = "remove from the gradient what only scales the weights (default no)"
    tricks.add_argument("--orthograd", metavar="yes|no", nargs="?", const="yes", help=across)
    tricks.add_argument("--max-norm", metavar="X", help="most that the norm of all weights may be (default none)")
    numerics = p.add_argument_group("numerics")
    loss = (
        "exact uses the parameters' dtype, float64 and float32 take log_softmax in theirs; float32 shows slingshots; "
        "stablemax trains on another function than the exponential"
    )
    numerics.add_argument("--loss", metavar="NAME", help=f"{' '.join(CHOICES['loss'])} (default exact); {loss}")
    numerics.add_argument(
        "--dtype", metavar="NAME", help=f"{' '.join(CHOICES['dtype'])} (default float32), of weights and activations"
    )
    precisions = " ".join(CHOICES["matmul_precision"])
    of_precisions = "default highest: no TF32 on GPUs; tf32_x3, on GPUs alone, makes a product of three in TF32"
    numerics.add_argument("--matmul-precision", metavar="P", help=f"{precisions} ({of_precisions})")


def add_network_flags(group: Any) -> None:
    """Add the flags of a network that a file of weights cannot show."""
    residual = "factor f in f x + sublayer(x) (default 1; the released induction networks have 2)"
    group.add_argument("--residual-factor", metavar="X", help=residual)
    sequence = "tokens of a modular task: xy= (default) is read at =, xy is read at y"
    group.add_argument("--sequence", metavar="NAME", help=sequence)
    group.add_argument("--attention", metavar="NAME", help="causal (default), or full: every position sees every other")
    coeff = "c in attention weights c softmax + (1 - c) (default 1); 0 makes pizzas of clocks"
    group.add_argument("--attn-coeff", metavar="X", help=coeff)
    tied = "W_U is the transpose of W_E (default no)"
    group.add_argument("--tied", metavar="yes|no", nargs="?", const="yes", help=tied)


def add_cache_flag(p: Any) -> None:
    """Add `--no-compilation-cache` to a command that compiles, or to a group of its flags (see `cli/machine.py`)."""
    what = "compile anew (default: take what was compiled before from ~/.cache/jaxgrok, which keeps at most 1 GB)"
    p.add_argument("--no-compilation-cache", action="store_true", default=None, help=what)


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
        if error.name not in ("tables", "figures", "report"):
            raise
        if folder is not None:
            raise BadInput("--tables", str(folder), error.accepted) from None
        accepted = f"{error.accepted}; --tables DIR writes tables and figures into another one"
        raise BadInput(f"{error.name} directory", error.value, accepted) from None


def status_of(
    p: Parser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace], int],
    flags: Collection[str] | None = None,
    saved: str = "",
) -> int:
    """The exit status of a command: what `run` returns, called with the parsed arguments.

    If it fails in a way that a user can do something about, the status follows one line on standard error: 2 for bad
    input, 1 for a full disk or too little memory, and 128 + its number for a signal.

    flags: fields that the user gives as flags, so that `split_seed` is named `--split-seed`; None means all. saved:
    what is said after a signal, of what is kept.
    """

    def complained() -> int:
        args = argparse.Namespace()
        try:
            try:
                p.parse_args(argv, args)
                if "no_compilation_cache" in args:
                    machine.keep_compiled(not args.no_compilation_cache)
                return run(args)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            return _unread()
        except Exception as error:
            found = _complaint(error, vars(args), vars(args) if flags is None else flags)
            if found is None:
                raise
        status, complaint = found
        print(f"{p.prog}: error: {complaint}", file=sys.stderr)
        return status

    return stopping.status_of(complained, saved)


def _unread() -> int:
    """Leave standard output alone, whose reader is gone, as after `| head`; returns the status that shells expect."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD if stopping.arrived() is None else stopping.status()


def _complaint(error: Exception, args: Collection[str], flags: Collection[str]) -> tuple[int, str] | None:
    """(exit status, one line) about an error that a user can do something about; None for any other."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, BadInput):
        name = flag_of(error.name) if error.name.replace("-", "_") in flags else error.name
        return BAD_INPUT, str(error if name == error.name else BadInput(name, error.value, error.accepted))
    if isinstance(error, OSError) and error.errno not in FAILURES:
        return BAD_INPUT, f"{error.filename or 'file'}: cannot be read or written ({error.strerror or error})"
    if isinstance(error, OSError):
        return FAILED, f"{error.filename or 'a file'} could not be written: {error.strerror}; {stopping.INTACT}"
    # The library that writes checkpoints has its own exceptions.
    if any(os.strerror(number) in text for number in FAILURES):
        return FAILED, f"a checkpoint could not be written: {text}; {stopping.INTACT}"
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        fewer = (
            "fewer runs at once (--batch-runs) or a smaller network" if "batch_runs" in args else "a smaller network"
        )
        return FAILED, f"out of memory: {fewer} needs less{text and f' ({text})'}"
    return None

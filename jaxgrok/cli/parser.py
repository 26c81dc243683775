"""What commands have in common: how they complain (one line, status 2, no traceback), and the flags of a run."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from jaxgrok.config import CHOICES, MODULAR, BadInput


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose complaint is one line."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; --help lists what is accepted\n")


def add_run_flags(p: Parser) -> None:
    """The flags that say what a run is: its task and model, optimiser and numerics."""
    model = p.add_argument_group("task and model; a comma list makes an axis of any of them")
    model.add_argument("--task", help=f"{' '.join(CHOICES['task'])} (default add); the first {len(MODULAR)} modulo p")
    model.add_argument("--p", help="the modulus, prime or not (default 113)")
    model.add_argument("--seq-len", metavar="N", help="positions of induction (default 85) and skip_trigram (default 13)")
    model.add_argument("--repeat-len", metavar="N", help="tokens of induction's repeated subsequence (default 16)")
    model.add_argument("--n-repeats", metavar="N", help="copies of it (default 3)")
    model.add_argument("--n-tokens", metavar="N", help="token ids of induction (default 128)")
    model.add_argument("--n-test", metavar="N", help="held-out examples of tasks that draw them (default 1024; induction 256)")
    model.add_argument("--split-seed", metavar="N", help="one split, or stream of fresh data, for all runs (default: the run's seed)")
    model.add_argument("--init", metavar="FILE|torch", help="start every run from these weights, or from what the authors' code draws")
    model.add_argument("--arch", help=f"{' '.join(CHOICES['arch'])} (default transformer; induction, skip_trigram: attn_only)")
    model.add_argument("--n-layers", metavar="N", help="transformer blocks (default 1; induction: 2)")
    model.add_argument("--n-heads", metavar="N", help="attention heads; must divide d_model (default 4)")
    model.add_argument("--d-model", metavar="N", help="residual width (default 128; induction: 48)")
    model.add_argument("--d-mlp", metavar="N", help="hidden width (default: 4 d_model; for the mlp 256)")
    model.add_argument("--act", help=f"{' '.join(CHOICES['act'])} (default relu; gelu is the exact erf form)")
    model.add_argument("--n-ctx", metavar="N", help="positions the network has (default: as many as a sequence)")
    model.add_argument("--residual-factor", metavar="X", help="of x in X x + sublayer(x) (default 1; 2 in released induction networks)")
    optimiser = p.add_argument_group("optimiser; a comma list makes an axis of any of them")
    optimiser.add_argument("--optimizer", help=f"{' '.join(CHOICES['optimizer'])} (default adam; sgd has momentum b1)")
    optimiser.add_argument("--regulariser", help=f"{' '.join(CHOICES['regulariser'])}, of strength --wd (default weight_decay: AdamW)")
    optimiser.add_argument("--dropout", metavar="X", help="share of every sublayer's output dropped in training (default 0)")
    optimiser.add_argument("--batch-size", metavar="N", help="examples a step, in turn (default: all; unlimited data 256, induction 128)")
    optimiser.add_argument("--b1", metavar="X", help="Adam's first beta, or the momentum of sgd (default 0.9)")
    optimiser.add_argument("--b2", metavar="X", help="Adam's second beta (default 0.98; induction: 0.999)")
    numerics = p.add_argument_group("numerics")
    numerics.add_argument("--loss", help=f"{' '.join(CHOICES['loss'])} (default exact; float64 casts the logits; float32 shows slingshots)")
    numerics.add_argument("--dtype", help=f"{' '.join(CHOICES['dtype'])} (default float32), of everything")
    precisions = " ".join(CHOICES["matmul_precision"])
    numerics.add_argument("--matmul-precision", metavar="P", help=f"{precisions} (default highest: no TF32 on GPUs)")


def check_figure(path: Path | None) -> None:
    """Raises BadInput where a figure cannot be written under this name; None is no figure."""
    if path is not None and (path.suffix not in (".png", ".pdf", ".svg") or not path.absolute().parent.is_dir()):
        raise BadInput("--figure", str(path), "a .png, .pdf or .svg file in a directory that exists")


def status_of(name: str, run: Callable[[], int], flags=()) -> int:
    """What a command exits with: `run()`, or 2 once bad input or a file that cannot be read or written is named on standard error.

    flags: fields that the user gave as flags, so that `split_seed` is named `--split-seed`.
    """
    try:
        return run()
    except BadInput as error:
        flag = f"--{error.name.replace('_', '-')}" if error.name.replace("-", "_") in flags else error.name
        complaint = str(BadInput(flag, error.value, error.accepted))
    except OSError as error:
        complaint = f"{error.filename or 'file'}: cannot be read or written ({error.strerror or error})"
    print(f"{name}: error: {complaint}", file=sys.stderr)
    return 2

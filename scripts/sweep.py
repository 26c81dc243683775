"""Train a sweep of grokking runs and print when each phase came. See --help, README.md and sweeps/."""

import sys
from pathlib import Path

import jaxgrok
from jaxgrok.command import Parser, status_of
from jaxgrok.config import CHOICES, MODULAR, BadInput
from jaxgrok.grid import FIELDS, sweep_from, whole

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
PRESETS = " ".join(sorted(file.stem for file in SWEEPS.glob("*.toml")))
EPILOG = """\
examples:
  sweep.py --seeds 32 --wd 0.1,1.0                 the paper's setting, 64 runs at once
  sweep.py --preset quick                          groks in 80 seconds on two cores
  sweep.py sweeps/data_fraction.toml --seeds 8 --out runs/frac
  sweep.py --seeds 8 --until-settled --plan        what it would cost; trains nothing

The same command goes on where it stopped. More seeds, more axis values or more epochs extend a sweep in its directory.
Every run starts from its seed alone: initial weights, split (Python's random.seed, as the authors do) and random labels, or the
examples of a task that draws them. An epoch is one update.
"""


def parser() -> Parser:
    p = Parser(description=__doc__, epilog=EPILOG)
    p.add_argument("--version", action="version", version=f"jaxgrok {jaxgrok.__version__}")
    what = p.add_argument_group("what to train")
    what.add_argument("file", nargs="?", type=Path, help="a sweep file (TOML); flags override what it says")
    what.add_argument("--preset", metavar="NAME", help=f"the file sweeps/NAME.toml: {PRESETS}")
    grid = p.add_argument_group("the grid: its product is trained")
    grid.add_argument("--seeds", metavar="N|A:B|LIST", help="a count (0..N-1), a half-open range, or a comma list (default 8)")
    grid.add_argument("--wd", metavar="LIST", help="weight decays, on every parameter (default 1.0)")
    grid.add_argument("--frac", metavar="LIST", help="modular tasks: fractions of all pairs that are trained on (default 0.3)")
    grid.add_argument("--n-train", metavar="LIST", help="other tasks: train examples, or `unlimited`, fresh ones every step (default)")
    grid.add_argument("--lr", metavar="LIST", help="learning rates (default 0.001)")
    grid.add_argument("--init-scale", metavar="LIST", help="factors of all initial weights (default 1)")
    model = p.add_argument_group("task and model; a comma list makes an axis of any of them")
    model.add_argument("--task", help=f"{' '.join(CHOICES['task'])} (default add); the first {len(MODULAR)} modulo p")
    model.add_argument("--p", help="the modulus, prime or not (default 113)")
    model.add_argument("--seq-len", metavar="N", help="positions of induction (default 85) and skip_trigram (default 13)")
    model.add_argument("--repeat-len", metavar="N", help="tokens of induction's repeated subsequence (default 16)")
    model.add_argument("--n-repeats", metavar="N", help="copies of it (default 3)")
    model.add_argument("--n-tokens", metavar="N", help="token ids of induction (default 128)")
    model.add_argument("--n-test", metavar="N", help="held-out examples of tasks that draw them (default 1024; induction 256)")
    model.add_argument("--split-seed", metavar="N", help="one train/test split for all runs (default: each run's own seed)")
    model.add_argument("--init", metavar="FILE|torch", help="start every run from these weights, or from what the authors' code draws")
    model.add_argument("--arch", help=f"{' '.join(CHOICES['arch'])} (default transformer; induction, skip_trigram: attn_only)")
    model.add_argument("--n-layers", metavar="N", help="transformer blocks (default 1; induction: 2)")
    model.add_argument("--n-heads", metavar="N", help="attention heads; must divide d_model (default 4)")
    model.add_argument("--d-model", metavar="N", help="residual width (default 128; induction: 48)")
    model.add_argument("--d-mlp", metavar="N", help="hidden width (default: 4 d_model; for the mlp 256)")
    model.add_argument("--act", help=f"{' '.join(CHOICES['act'])} (default relu; gelu is the exact erf form)")
    model.add_argument("--n-ctx", metavar="N", help="positions the network has (default: as many as a sequence)")
    model.add_argument(
        "--residual-factor", metavar="X", help="sublayers give X x + sublayer(x) (default 1; released induction networks: 2)"
    )
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
    length = p.add_argument_group("how long, and how often to look")
    length.add_argument(
        "--epochs",
        metavar="N",
        help="default: 40000 at weight decay 1 and above, longer in proportion below, to 150000; unlimited data 6000",
    )
    length.add_argument("--until-settled", action="store_true", default=None, help="end a run at max(1.5 g, g + 2000) once it grokked at g")
    length.add_argument("--max-epochs", metavar="N", help="with --until-settled: the most (default as for --epochs)")
    length.add_argument("--eval-every", metavar="N", help="epochs between test evaluations (default 10, at most 1 %% of the run)")
    length.add_argument("--train-every", metavar="N", help="record the train loss every N epochs (default 1)")
    length.add_argument("--checkpoint-every", metavar="N", help="epochs between saved parameters (default 1 %% of the run)")
    running = p.add_argument_group("running; these never change a result but by rounding")
    running.add_argument("--out", metavar="DIR", help="default: runs/ and a name made from the configuration")
    running.add_argument("--batch-runs", metavar="N", help="runs that train at once (default: what suits the device)")
    running.add_argument("--plan", action="store_true", help="print batches, FLOPs, time and disk, and stop")
    return p


def chosen(args: dict):
    """The sweep that the flags and the file or preset describe."""
    flags = {field: args[field] for field in FIELDS if field in args}
    labels = {field: f"--{field.replace('_', '-')}" for field, value in flags.items() if value is not None}
    file = args["file"]
    if args["preset"] is not None:
        if file is not None:
            raise BadInput("--preset", args["preset"], f"a preset or a file, not both ({file})")
        file = SWEEPS / f"{args['preset']}.toml"
        if not file.exists():
            raise BadInput("--preset", args["preset"], PRESETS)
    return sweep_from(file, flags, labels)


def main(argv=None) -> int:
    args = vars(parser().parse_args(argv))
    return status_of("sweep.py", lambda: run(chosen(args), args), (*FIELDS, "out"))


def run(sweep, args) -> int:
    import jax

    if any(config.needs_x64 for config in sweep.configs):
        jax.config.update("jax_enable_x64", True)
    from jaxgrok import progress, report, sweeping
    from jaxgrok.figures import write_figures
    from jaxgrok.plan import describe

    batch_runs = None if args["batch_runs"] is None else whole("--batch-runs", args["batch_runs"], 1)
    if args["plan"]:
        progress.show_plan(describe(sweeping.prepare(sweep, args["out"], batch_runs)))
        return 0
    status = 0
    try:
        with progress.Watch() as watch:
            path = sweeping.sweep(sweep, args["out"], batch_runs=batch_runs, watch=watch)
    except sweeping.Interrupted as stop:
        path, status = stop.path, 130
        print(f"stopped; everything is saved in {path}. The same command goes on from there.", file=sys.stderr)
    results = jaxgrok.load(path)
    cells = report.write_tables(results)
    write_figures(results, cells)
    progress.show_summary(results, cells)
    return status


if __name__ == "__main__":
    sys.exit(main())

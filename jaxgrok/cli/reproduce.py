"""Reproduce the claims of the post: train what they are measured on, and write each beside what was found.

--quick measures a part of the claims on small networks, in about a quarter of an hour on two CPU cores. --full measures
all of them in the settings of the post, which takes days there; --only chooses claims. What has been trained is used
again. The scorecard lists every claim, with a verdict by the rule that stands beside it.
"""

import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from jaxgrok import stopping
from jaxgrok.cli.parser import Parser, add_cache_flag, status_of
from jaxgrok.config import BadInput

if TYPE_CHECKING:
    from jaxgrok.scorecard import Claim, Claims, Mode, Row, SweepCommand

EPILOG = """\
examples:
  %(prog)s --quick                                   small networks, about 15 minutes
  %(prog)s --full --only sparse_W_E,two_directions   two claims in the setting of the post
  %(prog)s --full --plan                             what is trained already, and what the rest takes; trains nothing

Each sweep is trained and analysed by the command that the scorecard names, in a directory of its own below --out. The
tables that these commands print are in NAME.log there. The same command resumes. The exit status is 1 if a sweep
failed.
"""
FAILED = 1


def parser(prog: str = "reproduce.py") -> Parser:
    p = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    mode = p.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="small networks")
    mode.add_argument("--full", action="store_true", help="the settings of the post")
    p.add_argument("--only", metavar="LIST", help="train for these claims alone, a comma list of their names")
    out = "the directory of the sweeps and of scorecard.md (default: runs/reproduce-quick or runs/reproduce-full)"
    p.add_argument("--out", metavar="DIR", type=Path, help=out)
    kept = "a scorecard.json of another machine: what it found stands where a sweep is not trained here"
    p.add_argument("--kept", metavar="FILE", type=Path, help=kept)
    add_cache_flag(p)
    p.add_argument("--plan", action="store_true", help="list claims, sweeps and times; train nothing")
    return p


def run(args: Namespace) -> int:
    """Train what is missing, and write the scorecard after each sweep; returns the exit status. Raises BadInput."""
    from jaxgrok.scorecard import Mode, read_claims, read_findings, rows_to_fill

    if not (args.quick or args.full):  # argparse would ask for it before it names a mistyped flag
        raise BadInput("--quick or --full", "neither", "one of them")
    mode = Mode.QUICK if args.quick else Mode.FULL
    claims = read_claims()
    chosen = claims.select(None if args.only is None else args.only.split(","))
    out = Path("runs") / f"reproduce-{mode}" if args.out is None else args.out
    if out.exists() and not out.is_dir():
        raise BadInput("--out", str(out), "a directory, which may not exist yet")
    card = Card(claims, mode, out, _command(args, mode), rows_to_fill(claims, mode))
    sweeps = _sweeps_of(chosen, claims, mode)
    if args.kept is not None:
        card.rows = read_findings(args.kept, card.rows)
        print(f"{sum(row.kept for row in card.rows.values())} findings of {args.kept} are used")
    card.take_in_all()
    wanted = {row.sweep.name for claim in chosen if (row := card.rows.get(claim.name)) and row.finding is None}
    missing = [sweep for sweep in sweeps if sweep.name in wanted]
    _print_plan(card, chosen, missing)
    if args.plan:
        return 0
    status = 0
    for number, sweep in enumerate(missing, 1):
        print(f"{number} of {len(missing)}: {sweep.name}, {sweep.setting}", flush=True)
        failed = _train(sweep, out)
        if stopping.arrived() is not None:
            return stopping.report("what was trained is saved. The same command resumes from there.")
        if failed:
            print(f"{sweep.name} ended with status {failed}", flush=True)
            status = FAILED
            continue
        card.take_in(sweep)
        card.write()
    card.write()
    _print_rows([card.rows[claim.name] for claim in chosen if claim.name in card.rows])
    print(f"scorecard: {out / 'scorecard.md'}")
    return status


def _command(args: Namespace, mode: "Mode") -> str:
    """The command that makes the scorecard, without the directory of its sweeps."""
    only = [] if args.only is None else ["--only", args.only]
    kept = [] if args.kept is None else ["--kept", args.kept.name]
    return shlex.join(["jaxgrok", "reproduce", f"--{mode}", *only, *kept])


@dataclass
class Card:
    """The scorecard as it grows. rows: {claim: its row}, of every claim of the mode. command: that makes it."""

    claims: "Claims"
    mode: "Mode"
    out: Path
    command: str
    rows: "dict[str, Row]"

    def take_in_all(self) -> None:
        """Take in what is found in the sweeps that are trained."""
        from jaxgrok.scorecard import rows_of
        from jaxgrok.store.results import load

        for name in {row.sweep.name for row in self.rows.values()}:
            if (self.out / name / "manifest.json").exists():
                self.rows |= {row.claim.name: row for row in rows_of(load(self.out / name)) if row.finding is not None}

    def take_in(self, sweep: "SweepCommand") -> None:
        """Note that a sweep is done, measure its claims, and have them on its page."""
        from jaxgrok.report import write_page
        from jaxgrok.scorecard import finish, rows_of
        from jaxgrok.store.results import load

        folder = self.out / sweep.name
        finish(folder, sweep)
        results = load(folder)
        rows = rows_of(results)
        self.rows |= {row.claim.name: row for row in rows}
        write_page(results, claims=rows)

    def write(self) -> None:
        from jaxgrok.scorecard import scorecard_markdown, write_findings
        from jaxgrok.tables.write import write_text

        rows = list(self.rows.values())
        text = scorecard_markdown(rows, self.claims, self.mode, self.command, self.out)
        write_text(self.out / "scorecard.md", text)
        write_findings(self.out / "scorecard.json", rows)


def _sweeps_of(chosen: "Sequence[Claim]", claims: "Claims", mode: "Mode") -> "list[SweepCommand]":
    """The sweeps that claims are measured on. Raises BadInput if none of them is measured in this mode."""
    found = [sweep for claim in chosen if (sweep := claims.sweep_of(claim, mode)) is not None]
    if not found:
        names = " ".join(claim.name for claim in claims.claims if mode in claim.sweeps)
        raise BadInput("--only", ",".join(claim.name for claim in chosen), f"with --{mode}, one of {names}")
    return list({sweep.name: sweep for sweep in found}.values())


def _train(sweep: "SweepCommand", out: Path) -> int:
    """Run a sweep's command, and its analysis; returns the first exit status that is not 0. Raises BadInput for a
    directory that holds another sweep."""
    from jaxgrok.scorecard import begin

    folder = out / sweep.name
    begin(folder, sweep)
    commands = [[*sweep.arguments, "--out", str(folder)]]
    if sweep.analyze:
        commands.append(["analyze", str(folder)])
    with open(out / f"{sweep.name}.log", "a") as log:
        for command in commands:
            log.write(f"$ jaxgrok {' '.join(command)}\n")
            log.flush()
            if status := _status_of_child([sys.executable, "-m", "jaxgrok", *command], log):
                return status
    return 0


def _status_of_child(command: list[str], log: TextIO) -> int:
    """Run a command to its end, its output into the log. A signal that arrives meanwhile is passed on to it, which
    saves and ends."""
    with stopping.deferred() as asked:
        # In a group of its own: Ctrl-C in a terminal would reach it twice, which ends a command at once.
        child = subprocess.Popen(command, stdout=log, process_group=0)
        told = False
        while True:
            try:
                return child.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if asked() and not told:
                    told = True
                    child.send_signal(stopping.status() - 128)


def _print_plan(card: Card, chosen: "Sequence[Claim]", missing: "Sequence[SweepCommand]") -> None:
    from jaxgrok.cli.show import print_table
    from jaxgrok.scorecard.card import duration

    lines = []
    for sweep in _sweeps_of(chosen, card.claims, card.mode):
        names = [claim.name for claim in chosen if claim.sweeps.get(card.mode) == sweep.name]
        kept = any(card.rows[name].kept for name in names)
        state = "to be trained" if sweep in missing else "kept" if kept else "done"
        lines.append([sweep.name, sweep.setting, state, duration(sweep.minutes), " ".join(names)])
    print_table(["sweep", "what", "", "on two cores", "claims"], lines)
    if missing:
        print(f"to be trained: {duration(sum(sweep.minutes for sweep in missing))} on two CPU cores", flush=True)


def _print_rows(rows: "Sequence[Row]") -> None:
    from jaxgrok.cli.show import print_table
    from jaxgrok.scorecard import table

    header, body = table(rows)
    print_table(header, body)


def main(argv: Sequence[str] | None = None, prog: str = "reproduce.py") -> int:
    saved = "what was trained is saved. The same command resumes from there."
    return status_of(parser(prog), argv, run, ("only", "out", "kept"), saved=saved)

"""The command line: one verb a file. Heavy imports stay inside the verbs, so that help is quick."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Annotated

import typer

from nlft import __version__
from nlft.cli import (
    chat,
    compare,
    continue_,
    cp,
    demo,
    dissect,
    env,
    eval,
    export,
    gate,
    inspect,
    ls,
    merge,
    promote,
    prune,
    push,
    report,
    resume,
    show,
    tasks,
    train,
    tune,
    validate,
    verify,
)
from nlft.errors import NlftError, reason
from nlft.launch import check_verb, is_spokesman

app = typer.Typer(
    name="nlft",
    help="Teach a frozen language model one domain after another, and measure what it forgets.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("ls")(ls.ls)
app.command("cp")(cp.cp)
app.command("show")(show.show)
app.command("validate")(validate.validate)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("resume")(resume.resume)
app.command("continue")(continue_.continue_)
app.command("eval")(eval.evaluate)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("report")(report.report)
app.command("gate")(gate.gate)
app.command("merge")(merge.merge)
app.command("inspect")(inspect.inspect)
app.command("dissect")(dissect.dissect)
app.command("tune")(tune.tune)
app.command("tasks")(tasks.tasks)
app.command("chat")(chat.chat)
app.command("promote")(promote.promote)
app.command("prune")(prune.prune)
app.command("push")(push.push)
app.command("env")(env.env)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. Works anywhere.")] = False,
) -> None:
    """Options of every verb. `main` takes `--debug` out; it is declared here for the help."""
    check_verb(context.invoked_subcommand or "")


def main(args: list[str] | None = None) -> None:
    """Run a command line and exit.

    Exit codes: 0 done, 1 failed, 2 something the user can correct, 3 not promoted or a gate's limit broken,
    130 interrupted.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    try:
        app([word for word in words if word != "--debug"])
    except NlftError as error:
        if debug:
            traceback.print_exc()
        sys.exit(_say(2, error.message, error.hint))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            place = f" while writing {error.filename}" if error.filename else ""
            sys.exit(_say(2, f"No space left on the disk{place}.", "Free some space, then run the same command again."))
        if type(error).__name__ == "OutOfMemoryError":
            hint = "Lower train.micro_batch_size or measure.batch_size."
            sys.exit(_say(2, "The GPU ran out of memory.", hint))
        said = reason(error) if str(error).strip() else ""
        hint = "" if debug else "Run again with --debug for the traceback."
        sys.exit(_say(1, f"{type(error).__name__}: {said}".removesuffix(": "), hint))


def _say(code: int, message: str, hint: str) -> int:
    if not is_spokesman():
        return code
    print(f"nlft: {message}" if "\n" not in message else message, file=sys.stderr)
    if hint:
        print(hint, file=sys.stderr)
    return code

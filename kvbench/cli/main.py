"""The command line: every verb is a few calls into the floors below, imported when it runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from kvbench.cli.console import err, out, say
from kvbench.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_REGRESSION, EXIT_SOME_FAILED, EXIT_USAGE, KvbenchError

if TYPE_CHECKING:
    from kvbench.measure.sizes import Sizes

DEFAULT_MODEL = "smollm2-135m-instruct-q4_1"


def _version() -> str:
    from kvbench.hardware.environment import kvbench_version

    return kvbench_version()


def _shown_default(value: object) -> str | None:
    return None if value is None or value is False else str(value)


app = App(
    name="kvbench",
    help="Measure KV-cache compression on open models: memory, speed and accuracy from one real compressed cache.",
    help_format="plaintext",  # Markdown would swallow <family>
    help_epilogue="Start with: kvbench run --suite quick. What can be compared: kvbench ls compressors.",
    version=_version,
    default_parameter=Parameter(negative="", show_default=_shown_default),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)

Json = Annotated[bool, Parameter(name="--json", help="JSON alone on stdout.")]
Results = Annotated[Path, Parameter(help="Results folder, or a .jsonl file of records.")]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, Parameter(help="float32, bfloat16 or float16.")]
Model = Annotated[str, Parameter(help="Registry name, random:<family>, hub id or local folder.")]


@app.command
def run(
    *,
    suite: Annotated[
        str | None, Parameter(help="quick (default), standard, full, ci, frontier, speed or a .toml file.")
    ] = None,
    model: Annotated[str | None, Parameter(help="Run this model instead of the suite's.")] = None,
    compressor: Annotated[
        list[str] | None, Parameter(help="Run these specs instead of the suite's; repeatable.")
    ] = None,
    at: Annotated[str | None, Parameter(help="Equal bytes: solve methods for these bits, as in bits=2,3,4.")] = None,
    methods: Annotated[str, Parameter(help="With --at: all, or names separated by commas.")] = "all",
    exact: Annotated[
        Literal["model", "float16", "bfloat16"] | None,
        Parameter(help="With --at: dtype of every method's exact tokens; default: the suite's."),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str | None, Parameter(help="float32, bfloat16 or float16; default: the suite's.")] = None,
    threads: Annotated[int, Parameter(help="Torch threads; 0 takes torch's own choice.")] = 0,
    attention: Annotated[
        Literal["auto", "reference"], Parameter(help="Decode by the best kernel there is, or in plain torch.")
    ] = "auto",
    read: Annotated[
        Literal["auto", "absorb", "reconstruct"],
        Parameter(help="Attend in the latents where a codec can, or rebuild keys and values tile by tile."),
    ] = "auto",
    out_dir: Annotated[Path | None, Parameter(name="--out", help="Results folder; default runs/<suite>.")] = None,
    dry_run: Annotated[bool, Parameter(help="Print the trials and stop.")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="One JSON record per trial on stdout.")] = False,
    quiet: Annotated[bool, Parameter(help="No progress on stderr.")] = False,
) -> int:
    """Measure compressors on a model: bytes, speed and quality from the same compressed cache.

    Finished trials are kept in the results folder and never redone: run the same command again to resume.
    Exit codes: 0 ok, 2 usage, 4 some trials failed, 130 interrupted.
    """
    from kvbench.runs.suites import load_suite

    chosen = load_suite(suite or ("frontier" if at else "quick")).narrowed(
        model=model, compressors=compressor, dtype=dtype, exact=exact
    )
    from kvbench.kernels.reading import Reading
    from kvbench.report.tables import summary_table
    from kvbench.runs.frontier import solve_suite
    from kvbench.runs.progress import RunProgress  # torch comes with these: a misspelt suite need not wait for it
    from kvbench.runs.runner import Runner
    from kvbench.runs.store import RunStore

    folder = out_dir or Path("runs") / chosen.name
    with RunProgress(err, quiet) as progress:
        runner = Runner(RunStore(folder), progress, device, threads, reading=Reading(attention, read))
        if at is not None:
            chosen, left_out = solve_suite(runner, chosen, methods, at)
            for reason in left_out:
                say(f"left out: {reason}")
        if dry_run:
            return _print_plan(runner.plan(chosen), RunStore(folder).finished_ids(), json_)
        records = runner.run(chosen)
    if json_:
        for record in records:
            print(record.to_json())
    else:
        out.print(summary_table(records))
        say(f"records: {folder}/records.jsonl · report: kvbench report {shlex.quote(str(folder))}")
    return EXIT_SOME_FAILED if any(record.status != "ok" for record in records) else EXIT_OK


@app.command
def gate(
    results: Results,
    /,
    *,
    baseline: Annotated[Path, Parameter(help="Baseline file to compare with.")],
    update: Annotated[bool, Parameter(help="Write the results as the new baseline instead of comparing.")] = False,
    json_: Json = False,
) -> int:
    """Compare results with a committed baseline: bytes exactly, KLD and perplexity within its tolerances.

    Exit codes: 0 same, 1 changed or missing, 3 cannot decide (baseline missing, corrupt or incomparable).
    """
    from kvbench.gate.baseline import read_baseline, write_baseline
    from kvbench.gate.gate import gate as judge
    from kvbench.runs.store import read_records

    records = read_records(results)
    if update:
        write_baseline(records, baseline)
        say(f"baseline written: {baseline} ({len(records)} records)")
        return EXIT_OK
    report = judge(records, read_baseline(baseline))
    print(report.to_json() if json_ else report.render())
    return report.exit_code


@app.command
def compare(
    a: Results, b: Results, /, *, same: Annotated[bool, Parameter(help="Show unchanged metrics too.")] = False
) -> int:
    """Two results folders side by side: bytes, KLD, perplexity and speed with a verdict each."""
    from kvbench.gate.compare import compare as judge
    from kvbench.gate.table import verdict_table
    from kvbench.runs.store import read_records

    rows = judge(read_records(a), read_records(b))
    out.print(verdict_table(rows, hide_same=not same))
    return EXIT_OK


@app.command
def report(
    results: Annotated[Path, Parameter(help="Results folder, a .jsonl file of records, or a .json of benchmarks.")],
    /,
    *,
    out_dir: Annotated[Path | None, Parameter(name="--out", help="Folder to write to; default: the results'.")] = None,
    commands: Annotated[bool, Parameter(help="Only print the command that measures each row.")] = False,
) -> int:
    """Write one self-contained HTML file and PNG charts of a results folder.

    Of a .json file of `pytest benchmarks/ --benchmark-json=FILE`, print the tables as Markdown.
    """
    if results.suffix == ".json":
        from kvbench.report.benchmarks import markdown, read_benchmarks

        print(markdown(read_benchmarks(results)), end="")
        return EXIT_OK
    from kvbench.report.html import write_report
    from kvbench.runs.store import RunStore, read_records

    records = read_records(results)
    if commands:
        from kvbench.report.reproduce import recipes

        for recipe in recipes(records):
            print("\n".join(f"{compressor}\t{command}" for compressor, command in recipe.rows))
        return EXIT_OK
    status = RunStore(results).status() if results.is_dir() else None
    folder = out_dir or (results if results.is_dir() else results.parent)
    for path in write_report(records, folder, status):
        print(path)
    return EXIT_OK


@app.command
def ls(
    what: Annotated[str, Parameter(help="compressors, models, texts or suites.")] = "compressors",
    /,
    *,
    json_: Json = False,
) -> int:
    """List what exists: compressors, models, texts or suites."""
    from kvbench.cli.listing import LISTS, list_table
    from kvbench.errors import unknown

    if what not in LISTS:
        raise unknown("list", what, LISTS)
    rows = LISTS[what]()
    if json_:
        print(json.dumps(rows, indent=1))
    else:
        out.print(list_table(rows))
    return EXIT_OK


@app.command
def show(
    item: Annotated[str, Parameter(help="A compressor spec, or a trial id with --results.")],
    /,
    *,
    model: Annotated[str | None, Parameter(help="Model to fit the spec to; adds what it takes there.")] = None,
    dtype: Dtype = "float32",
    results: Annotated[Path | None, Parameter(help="Results folder to look the trial up in.")] = None,
) -> int:
    """Explain a compressor (paper, what is stored, every setting), or print one trial's record.

    With --model also its bytes there: bases, bits with and without them, and the tokens from which it pays.
    """
    from kvbench.cli.listing import describe, sizes_view

    if results is None:
        sizes = None if model is None else _sizes(item, model, dtype)
        out.print(describe(item))
        if sizes is not None:
            out.print(sizes_view(sizes))
        return EXIT_OK
    from kvbench.errors import unknown
    from kvbench.runs.store import read_records

    records = {record.id: record for record in read_records(results)}
    if item not in records:
        raise unknown("trial", item, records)
    out.print_json(records[item].to_json())
    return EXIT_OK


def _sizes(spec: str, model: str, dtype: str) -> Sizes:
    from kvbench.compressors.compressor import parse
    from kvbench.measure.bench import CalibrationSource, ModelBench
    from kvbench.measure.sizes import predicted_sizes
    from kvbench.runs.progress import counted

    compressor = parse(spec)
    with counted(err, "fitting") as report:
        bench = ModelBench(model, dtype, "cpu", report)
        return predicted_sizes(bench, compressor, CalibrationSource("essays", 8, 1024))


@app.command
def calibrate(
    *,
    model: Model = DEFAULT_MODEL,
    text: Annotated[str, Parameter(help="Calibration text; essays+pydoc alternates two.")] = "essays",
    windows: Annotated[int, Parameter(help="Windows of the calibration split.")] = 8,
    length: Annotated[int, Parameter(help="Tokens per window.")] = 1024,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> int:
    """Collect the statistics that compressors are fitted from; later runs find them by content."""
    from kvbench.measure.bench import CalibrationSource, ModelBench
    from kvbench.runs.progress import counted

    with counted(err, "calibrating") as report:
        folder = ModelBench(model, dtype, device, report).statistics_folder(CalibrationSource(text, windows, length))
    print(folder)
    return EXIT_OK


@app.command
def fit(
    *,
    method: Annotated[str, Parameter(help="A spec without its bits, rank or budget: kvtc:recent=0, pca+int:bits=4.")],
    target: Annotated[str, Parameter(help="bits=3, bytes=3MiB or kld=0.02.")],
    model: Model = DEFAULT_MODEL,
    tokens: Annotated[int, Parameter(help="Length that bytes are counted at and KLD is measured on.")] = 1024,
    text: Annotated[str, Parameter(help="Text to calibrate on, and to search a KLD on (other documents).")] = "essays",
    windows: Annotated[int, Parameter(help="Calibration windows.")] = 8,
    length: Annotated[int, Parameter(help="Tokens per calibration window.")] = 1024,
    documents: Annotated[int, Parameter(help="Documents that KLD is measured on.")] = 2,
    save: Annotated[Path | None, Parameter(help="Folder to write to; default runs/fits/<model-method-target>.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json_: Json = False,
) -> int:
    """Find a method's setting for a target, and save the fitted plan: bases, bit widths and ranks of every layer.

    bits=3: all allocated bytes of the cache at --tokens, per K or V element.
    bytes=3MiB: the same, of one sequence (B, kB, MB, GB, KiB, MiB, GiB).
    kld=0.02: the cheapest setting whose measured KLD (nats per token) is not above it.

    Use the folder like any compressor, without calibration, on the same weights: --compressor saved:path=FOLDER.
    An interrupted search goes on where it stopped. Exit code 2, and the nearest, if nothing reaches the target.
    """
    from kvbench.cli.listing import fit_view
    from kvbench.runs.fit import fit_method
    from kvbench.runs.progress import counted

    settings = {"tokens": tokens, "text": text, "windows": windows, "length": length, "documents": documents}
    with counted(err, "fitting") as report:
        found, folder = fit_method(model, method, target, save, dtype, device, report, **settings)
    if json_:
        print(found.model_dump_json())
    else:
        out.print(fit_view(found))
        say(f"saved: {folder} · use it: --model {model} --compressor {shlex.quote(f'saved:path={folder}')}")
    return EXIT_OK


@app.command
def generate(
    prompt: Annotated[str, Parameter(help="Text to continue.")],
    /,
    *,
    model: Model = DEFAULT_MODEL,
    compressor: Annotated[str, Parameter(help="Spec of the compressor.")] = "kvtc:bits=4",
    tokens: Annotated[int, Parameter(help="New tokens.")] = 64,
    chat: Annotated[bool, Parameter(help="Wrap the prompt in the model's chat template.")] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json_: Json = False,
) -> int:
    """Complete a prompt with and without compression, side by side, and show where they part."""
    from dataclasses import asdict

    from kvbench.cli.listing import completion_view
    from kvbench.compressors.compressor import parse
    from kvbench.measure.bench import CalibrationSource, ModelBench
    from kvbench.measure.generation import prompt_ids, side_by_side
    from kvbench.runs.progress import counted

    parsed = parse(compressor)
    with counted(err, "calibrating") as report:
        bench = ModelBench(model, dtype, device, report)
        ids = prompt_ids(bench.loaded, prompt, tokens, chat)
        arm = bench.arm(parsed, CalibrationSource("essays", 8, 1024))
    result = side_by_side(bench.loaded, bench.baselines()[0], arm, ids, tokens)
    if json_:
        print(json.dumps(asdict(result)))
    else:
        out.print(completion_view(result, str(parsed)))
    return EXIT_OK


@app.command
def validate(specs: list[str], /, *, json_: Json = False) -> int:
    """Run the conformance kit on compressors: bytes, no full copy, monotonic error, batches, crop, beams, canary, …

    Exit codes: 0 all checks pass, 1 one fails.
    """
    from dataclasses import asdict

    from kvbench.cli.listing import checks_table
    from kvbench.conformance.kit import validate as check

    failed = False
    for spec in specs:
        checks = check(spec)
        failed |= not all(own.passed for own in checks)
        if json_:
            print(json.dumps({"compressor": spec, "checks": [asdict(own) for own in checks]}))
        else:
            out.print(checks_table(spec, checks))
    return EXIT_REGRESSION if failed else EXIT_OK


@app.command
def doctor(*, json_: Json = False) -> int:
    """Environment, threads, measured memory bandwidth, decode kernels and an A/A noise check of this machine."""
    from kvbench.measure.doctor import diagnose, render, to_json

    found = diagnose()
    if json_:
        print(to_json(found))
    else:
        out.print(render(found))
    return EXIT_USAGE if found.problems else EXIT_OK


def _print_plan(trials: list[Any], finished: set[str], as_json: bool) -> int:
    for trial in trials:
        state = "done" if trial.id in finished else "to do"
        print(
            json.dumps({"id": trial.id, "key": trial.key, "state": state})
            if as_json
            else f"{trial.id}  {state:5}  {trial.key}"
        )
    return EXIT_OK


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a verb, turns user errors into one line on stderr and the exit code that belongs to them."""
    given = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice is for people who write model code
    sys.exit(_exit_code(given))


def _exit_code(given: list[str]) -> int:
    try:
        code = app(given, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # a reader that went away is noticed here and not when Python shuts down
    except KvbenchError as error:
        return _refuse(str(error), error.exit_code)
    except CycloptsError as error:
        return _refuse(f"{error} Help: {' '.join(['kvbench', *(error.command_chain or ())])} --help", EXIT_USAGE)
    except KeyboardInterrupt:
        resume = f"; what is finished is kept, resume with: {shlex.join(['kvbench', *given])}"
        say("interrupted" + (resume if given[:1] in (["run"], ["fit"]) else ""))
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:  # full disks, folders that cannot be written: the machine's fault, not the program's
        return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error), EXIT_USAGE)
    return code if isinstance(code, int) else EXIT_OK


def _refuse(reason: str, code: int) -> int:
    say(f"kvbench: {reason}", "bold red")
    return code

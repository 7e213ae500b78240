"""The command line: compile, frontier, run, serve, calibrate; other commands have own files.

Exit codes: 0 ok, 1 refused or failed, 2 usage.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slicewise.cli_deploy import COMMANDS, read_input
from slicewise.cli_inspect import inspect, print_plan
from slicewise.cli_package import package
from slicewise.errors import SlicewiseError
from slicewise.factory import call_factory

if TYPE_CHECKING:
    from slicewise.limits import Limits


def main() -> None:
    """The console script: errors of ours become one message and exit code 1."""
    try:
        cli(standalone_mode=False)
    except SlicewiseError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="slicewise")
def cli() -> None:
    """Compile a PyTorch model into slices that each fit an AWS Lambda function."""


for _command in (inspect, package, *COMMANDS):
    cli.add_command(_command)


def _cut_options(command: Any) -> Any:
    for option in (
        click.option("--profile", type=click.Path(path_type=Path), help="Numbers of the platform."),
        click.option(
            "--transport", "transports", multiple=True, help="Allow only these transports."
        ),
        click.option("--max-parallel", type=int, help="Let so many slices run at the same time."),
        click.option("--max-slices", type=int),
        click.option("--weight-mb", type=float, help="Weights of each slice."),
        click.option("--package-mb", type=float, help="Unpacked size of each package."),
        click.option("--memory-mb", type=int, help="Memory of each function."),
    ):
        command = option(command)
    return command


def _limits(
    memory_mb: int | None,
    package_mb: float | None,
    weight_mb: float | None,
    max_slices: int | None,
    max_parallel: int | None,
) -> Limits:
    from slicewise.limits import Limits

    weight_bytes = None if weight_mb is None else int(weight_mb * 1024 * 1024)
    return Limits(
        memory_mb=memory_mb,
        package_mb=package_mb,
        weight_bytes=weight_bytes,
        max_slices=max_slices,
        max_parallel=max_parallel,
    )


@cli.command("compile")
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle.")
@click.option("--target", default="lambda", show_default=True)
@_cut_options
@click.option(
    "--objective",
    type=click.Choice(["bytes", "latency", "cost"]),
    default="bytes",
    show_default=True,
)
@click.option("--goal-latency-ms", type=float, help="Expected latency at most this.")
@click.option("--goal-cost", type=float, help="US dollars per million requests at most this.")
@click.option("--wire-dtype", help="Between slices float32 travels as this type: float16.")
@click.option("--compress", is_flag=True, help="Compress what travels between slices and shrinks.")
@click.option(
    "--packaging", multiple=True, help="Allow only these: zip (the default), image, s3-weights."
)
@click.option("--preoptimise", is_flag=True, help="Faster starts of convolutions, larger packages.")
@click.option("--no-warm-up", is_flag=True, help="Start every slice when its turn comes.")
@click.option("--hedge", type=float, help="Call a slice again after this percentile, such as 0.95.")
@click.option(
    "--orchestration",
    type=click.Choice(["coordinator", "chain", "stepfunctions"]),
    default="coordinator",
    show_default=True,
    help="Who drives the slices.",
)
@click.option(
    "--encrypt",
    help="Encrypt models and objects: env (the key in SLICEWISE_KEY) or kms:KEY.",
)
@click.option("--tolerance", type=float, help="Largest relative difference to the model.")
@click.option("--time-limit-s", type=float, default=60.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print plan.json instead of tables.")
def compile_command(
    factory: str,
    output: Path,
    target: str,
    memory_mb: int | None,
    package_mb: float | None,
    weight_mb: float | None,
    max_slices: int | None,
    max_parallel: int | None,
    transports: tuple[str, ...],
    wire_dtype: str | None,
    compress: bool,
    packaging: tuple[str, ...],
    preoptimise: bool,
    no_warm_up: bool,
    hedge: float | None,
    orchestration: str,
    encrypt: str | None,
    tolerance: float | None,
    time_limit_s: float,
    as_json: bool,
    objective: str,
    goal_latency_ms: float | None,
    goal_cost: float | None,
    profile: Path | None,
) -> None:
    """Compile the model that MODULE:FACTORY returns and write the bundle.

    FACTORY takes no arguments and returns the model, or (model, example_inputs), or (model,
    example_inputs, dynamic_shapes). MODULE is importable, or the path of a .py file.
    """
    from slicewise.compiled import check_destination
    from slicewise.goal import Goal

    limits = _limits(memory_mb, package_mb, weight_mb, max_slices, max_parallel)
    goal = None
    if goal_latency_ms is not None or goal_cost is not None:
        goal = Goal(latency_ms=goal_latency_ms, cost_per_million_usd=goal_cost)

    check_destination(output)
    model, example, dynamic = call_factory(factory)

    from slicewise.api import compile as compile_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="captured with")  # printed as a note below
        compiled = compile_model(
            model,
            example,
            target=target,
            objective=objective,
            goal=goal,
            limits=limits,
            profile=profile,
            dynamic_shapes=dynamic,
            transports=transports or None,
            wire_dtype=wire_dtype,
            compress=compress,
            packaging=packaging or None,
            preoptimise=preoptimise,
            warm_up=not no_warm_up,
            hedge=hedge,
            orchestration=orchestration,
            tolerance=tolerance,
            time_limit_s=time_limit_s,
            progress=True,
        )
    bundle = compiled.save(output, encrypt=encrypt)
    for note in compiled.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(bundle.plan.to_json())
        return
    print_plan(bundle.plan)
    click.echo(f"\nWrote {output}. Next: slicewise serve {output}")


@cli.command("frontier")
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("--target", default="lambda", show_default=True)
@_cut_options
@click.option("--points", type=int, default=9, show_default=True, help="Plans at most.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a picture (png, svg, pdf).")
@click.option("--time-limit-s", type=float, default=60.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the plans as JSON.")
def frontier_command(
    factory: str,
    target: str,
    memory_mb: int | None,
    package_mb: float | None,
    weight_mb: float | None,
    max_slices: int | None,
    max_parallel: int | None,
    transports: tuple[str, ...],
    profile: Path | None,
    points: int,
    plot: Path | None,
    time_limit_s: float,
    as_json: bool,
) -> None:
    """Show the plans of MODULE:FACTORY that no other is both faster and cheaper than."""
    from slicewise.plots import check_plotting, plot_frontier
    from slicewise.report import frontier_text

    if plot is not None:
        check_plotting()
    limits = _limits(memory_mb, package_mb, weight_mb, max_slices, max_parallel)
    model, example, dynamic = call_factory(factory)

    from slicewise.api import frontier

    plans = frontier(
        model, example, points=points, target=target, limits=limits, dynamic_shapes=dynamic,
        transports=transports or None, profile=profile, time_limit_s=time_limit_s, progress=True,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps([json.loads(plan.to_json()) for plan in plans], indent=1))
    else:
        click.echo(frontier_text(plans))
    if plot is not None:
        plot_frontier(plans, plot)
        click.echo(f"Wrote {plot}.", err=True)


def _network_options(command: Any) -> Any:
    for option in (
        click.option("--network-seed", type=int, default=0, help="Another seed, other waits."),
        click.option("--network", help="Emulate a network: aws. Without it there is none."),
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "input_file",
    required=True,
    type=click.Path(path_type=Path),
    help="One array per input, .npz or .json.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the outputs to this .npz.")
@click.option("--json", "as_json", is_flag=True, help="Print outputs and trace as JSON.")
@click.option("--trace", "with_trace", is_flag=True, help="Draw where the time went.")
@click.option(
    "--repeat", type=click.IntRange(1), default=1, help="Requests; the last one is shown."
)
@_network_options
def run(
    directory: Path,
    input_file: Path,
    output: Path | None,
    as_json: bool,
    with_trace: bool,
    repeat: int,
    network: str | None,
    network_seed: int,
) -> None:
    """Serve a bundle on this machine, send it a request, and stop it."""
    import numpy as np

    from slicewise.api import serve
    from slicewise.arrays import named_arrays

    inputs = read_input(input_file)
    with serve(directory, network=network, network_seed=network_seed) as endpoint:
        for _ in range(repeat - 1):  # the first request finds everything cold
            endpoint(**inputs)
        outputs = named_arrays(endpoint(**inputs))
        trace = endpoint.last_trace
    if output is not None:
        np.savez(output, **outputs)  # type: ignore[arg-type]  # its stub
    if as_json:
        values = {name: array.tolist() for name, array in outputs.items()}
        click.echo(json.dumps({"outputs": values, "trace": trace}))
        return
    for name, array in outputs.items():
        click.echo(f"{name}: {array.dtype}{list(array.shape)}")
        click.echo(np.array2string(array, threshold=24, edgeitems=3, precision=5))
    if with_trace:
        _print_waterfall(trace)
    for part in () if with_trace else trace.get("slices", ()):
        name, call_ms, compute_ms = part["slice"], part["call_ms"], part["compute_ms"]
        click.echo(f"{name}: {call_ms:.1f} ms, of it compute {compute_ms:.1f}")
    click.echo(f"Emulated network: {trace.get('network', 'off')}")


@cli.command("serve")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--port", type=int, default=0, help="Port of the Lambda API; 0 takes a free one.")
@click.option(
    "--http", type=int, help="Port for HTTP: the Open Inference Protocol; 0 takes a free one."
)
@click.option(
    "--batch-wait-ms", type=float, help="Compute requests over HTTP of this long together."
)
@click.option(
    "--requests-at-once", type=int, help="So many calls run at a time, others wait their turn."
)
@_network_options
def serve_command(
    directory: Path,
    port: int,
    http: int | None,
    batch_wait_ms: float | None,
    requests_at_once: int | None,
    network: str | None,
    network_seed: int,
) -> None:
    """Run a bundle on this machine until Ctrl-C."""
    from slicewise.api import serve

    with serve(
        directory, port=port, http=http, batch_wait_ms=batch_wait_ms, network=network,
        network_seed=network_seed, requests_at_once=requests_at_once,
    ) as endpoint:  # fmt: skip
        url, function = endpoint.url, endpoint.function
        click.echo(
            f"Lambda API at {url}, entry function {function}, "
            f"emulated network {endpoint.network}. Ctrl-C stops it.\n"
        )
        click.echo(
            f"aws lambda invoke --endpoint-url {url} --function-name {function} \\\n"
            "  --cli-binary-format raw-in-base64-out --payload file://request.json reply.json"
        )
        if endpoint.http_url:
            click.echo(f"\nOpen Inference Protocol at {endpoint.http_url}/v2")
        try:
            import threading

            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("stopping")


@cli.command()
@click.argument("platform", type=click.Choice(["local", "aws"]))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The profile.")
@click.option("--plot", type=click.Path(path_type=Path), help="A picture of the transports (.png).")
@click.option("--seconds", type=float, default=90.0, show_default=True, help="How long to measure.")
@click.option("--role", help="aws: ARN of the functions' role.")
@click.option("--bucket", help="aws: an S3 bucket for packages and tensors.")
@click.option("--express-bucket", help="aws: a directory bucket, to measure s3express.")
@click.option("--region", help="aws: instead of the configured one.")
@_network_options
def calibrate(
    platform: str,
    output: Path,
    plot: Path | None,
    seconds: float,
    network: str | None,
    network_seed: int,
    **aws: str | None,
) -> None:
    """Measure PLATFORM with small probe functions and write its profile.

    On AWS this creates functions, a layer and objects, costs some cents, and deletes them all.
    """
    from slicewise.targets import load as load_target

    local: dict[str, Any] = {"network": network, "network_seed": network_seed}
    given = sorted(name for name, value in aws.items() if value is not None)
    if platform == "local" and given:
        raise click.UsageError(f"--{given[0].replace('_', '-')} is an option of aws, not of local")
    if platform == "aws" and network is not None:
        raise click.UsageError("--network emulates; it is an option of local, not of aws")
    if platform == "aws" and not (aws["role"] and aws["bucket"]):
        raise click.UsageError("aws needs --role and --bucket")
    text = load_target("lambda").calibrate(
        platform,
        output,
        plot=plot,
        seconds=seconds,
        progress=lambda words: click.echo(words, err=True),
        **(local if platform == "local" else aws),
    )
    click.echo(text)
    click.echo(f"Wrote {output}" + (f" and {plot}" if plot else ""))


def _print_waterfall(trace: Any) -> None:
    import shutil

    from slicewise.waterfall import waterfall_text

    width = min(140, shutil.get_terminal_size((100, 24)).columns)
    click.echo(waterfall_text(trace, color=sys.stdout.isatty(), width=width))

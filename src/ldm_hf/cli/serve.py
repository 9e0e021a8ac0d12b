"""``ldm serve``: a model that acts for clients, over HTTP."""

from typing import Annotated

import typer

from ldm_hf.utils.dependencies import require


def serve(
    model: Annotated[str, typer.Argument(help="Model folder, or the name of a model of the Hub.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 8000,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    max_environments: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Environments of all sessions. Default: as many as half of the free memory holds, at most 4,096.",
        ),
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Environments that act in one forward pass.")] = 256,
    max_batch_delay: Annotated[
        float,
        typer.Option(min=0, max=10_000, help="Milliseconds that a request waits for others while the model is idle."),
    ] = 5.0,
    session_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a request after which a session is dropped.")
    ] = 600.0,
    max_body_size: Annotated[float, typer.Option(min=0.001, help="Largest body of a request, in megabytes.")] = 64.0,
    token: Annotated[
        str | None,
        typer.Option(envvar="LDM_SERVE_TOKEN", help="What clients have to show; the variable keeps it out of ps."),
    ] = None,
    unauthenticated: Annotated[
        bool, typer.Option("--unauthenticated", help="Let other machines in without a token.")
    ] = False,
) -> None:
    """Serve a model that acts for many clients: requests of different environments become one batch.

    Clients are `ldm_hf.serving.client.Client`, or anything that speaks HTTP and msgpack (docs/serving.md). Ctrl-C or SIGTERM
    ends the server after it has answered what it was asked.
    """
    require("`ldm serve`", "serve")
    from ldm_hf.serving.server import check_access, serve

    check_access(host, token, unauthenticated)
    from ldm_hf.serving.app import Limits

    limits = Limits(
        max_batch_size=max_batch_size,
        max_batch_delay=max_batch_delay / 1000,
        session_timeout=session_timeout,
        max_body_bytes=int(max_body_size * 1e6),
        token=token,
    )
    try:
        serve(
            model,
            host,
            port,
            limits,
            max_environments=max_environments,
            device=device,
            say=lambda line: typer.echo(line, err=True),
        )
    except KeyboardInterrupt:
        raise typer.Exit(130) from None

"""Makes a Markdown table and charts of the JSON of a benchmark run: ``python -m bench.report RESULTS.json``."""

from __future__ import annotations

from pathlib import Path

import click

from bench import charts, results, table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="RESULTS.json", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--markdown", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables.")
@click.option(
    "--charts",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write throughput-m.png and throughput-n2.png.",
)
@click.option(
    "--json",
    "compact",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the results with a line per benchmark, to be committed.",
)
def main(path: Path, markdown: Path | None, folder: Path | None, compact: Path | None) -> None:
    """Report the results that `pytest bench --benchmark-json RESULTS.json` wrote.

    Without options the tables go to standard output.
    """
    try:
        run = results.load(path)
    except results.ResultsError as error:
        raise click.UsageError(str(error)) from None
    if markdown is None and folder is None and compact is None:
        click.echo(table.markdown(run), nl=False)
    written = []
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(table.markdown(run), encoding="utf-8")
        written.append(markdown)
    if folder is not None:
        written += charts.draw(run, folder)
    if compact is not None:
        compact.parent.mkdir(parents=True, exist_ok=True)
        results.save(run, compact)
        written.append(compact)
    for file in written:
        click.echo(f"wrote {file}")


if __name__ == "__main__":
    main()

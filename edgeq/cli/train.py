"""`edgeq train`: a network is trained on the grids of a plan, where rounding alone loses too much; a language model
learns from a text beside packed weights that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeq.cli import options as o
from edgeq.cli.language import refuse
from edgeq.cli.shell import Shell
from edgeq.cli.tune import tune
from edgeq.errors import UsageError

_AIM = "What it learns"
_HOW = "How it learns"
_WORDS = "Language models"


def train(
    shell: Shell,
    *,
    model: o.ModelFile,
    samples: Annotated[
        str,
        typer.Option(
            "--train",
            metavar="DATA",
            help="Samples to learn from: .npz, .npy, a folder of images, or package.module:function; text for language "
            "models.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="PATH", help="The file to write, such as model.qat.pt; a folder for language models."
        ),
    ],
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A plan of `edgeq plan`: which grid each layer has.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="T", help="The plan's target, where that is a .toml file.")
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="The classes that the samples are labelled with.", rich_help_panel=_AIM)
    ] = False,
    distill: Annotated[
        bool, typer.Option("--distill", help="What the float model gives; needs no labels.", rich_help_panel=_AIM)
    ] = False,
    features: Annotated[
        bool,
        typer.Option("--features", help="That, and what it gives between its blocks.", rich_help_panel=_AIM),
    ] = False,
    adapt: Annotated[
        str | None,
        typer.Option(
            metavar="WAY",
            help="bitfit: biases on 8-bit weights that stay; qlora: low-rank matrices beside 4-bit ones.",
            rich_help_panel=_WORDS,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of the matrices of qlora; 16 if not given.", rich_help_panel=_WORDS),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Passes over the samples: 10, or 3 for language models.", rich_help_panel=_HOW
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Samples of a step: 128, or 8 for language models.", rich_help_panel=_HOW
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="R",
            help="Of parameters, in parts of their own size a step: 0.01. For language models, of AdamW.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    scale_rate: Annotated[
        float,
        typer.Option("--scale-rate", min=0, metavar="R", help="Of scales, in parts of them.", rich_help_panel=_HOW),
    ] = 0.01,
    ranges: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="lsq: scales are learned; pact: where activations are clipped is; moving: ranges follow the values; "
            "fixed: they stay as calibration set them.",
            rich_help_panel=_HOW,
        ),
    ] = "lsq",
    augment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Change samples at random: crop-flip, or PKG.MOD:FN.", rich_help_panel=_HOW),
    ] = None,
    patience: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Stop when samples that are held out speak for none of the last N epochs; 0 for never.",
            rich_help_panel=_HOW,
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all that is random.", rich_help_panel=_HOW)] = 0,
    autocast: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Compute products in bfloat16 or float16, where the CPU has a matrix unit for them.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    gradients: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="What gradients are sent as, where torchrun starts several processes: float32, int8 or int4.",
            rich_help_panel=_HOW,
        ),
    ] = "float32",
    read: o.Reading,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file at --out, or a tuned model there.")
    ] = False,
) -> int:
    """Train a network on the grids of a plan, and write it with the very integers that `edgeq deploy` takes; or let a
    language model learn from a text, with --adapt.

    A run that was interrupted goes on where it was when it is started again. Processes that torchrun starts train
    together: torchrun --nproc-per-node 2 -m edgeq.cli train ...
    """
    from edgeq.hugging_face.folder import is_decoder

    paced = {"epochs": epochs, "batch": batch, "rate": rate}
    how: dict[str, Any] = {name: value for name, value in paced.items() if value is not None}
    if is_decoder(Path(model)):
        others: dict[str, object] = {"--plan": plan, "--target": target, "--augment": augment, "--autocast": autocast}
        others |= {"--labels": labels or None, "--distill": distill or None, "--features": features or None}
        others |= {"--ranges": None if ranges == "lsq" else ranges, "--patience": patience or None}
        others["--scale-rate"] = None if scale_rate == 0.01 else scale_rate
        others["--gradients"] = None if gradients == "float32" else gradients
        refuse(vars(read), others)
        how |= {"adapt": adapt, "rank": rank, "seed": seed, "overwrite": overwrite}
        return tune(shell, model, samples, out, how)
    if given := [option for option, value in (("--adapt", adapt), ("--rank", rank)) if value is not None]:
        remedy = "leave it away, or give a folder of a language model"
        raise UsageError("this is for language models", where=given[0], remedy=remedy)
    if plan is None:
        raise UsageError("--plan is missing", remedy="make one with edgeq plan, and give it with --plan")
    from edgeq.plans.plan import read_plan

    made_for = read_plan(plan)
    with shell.stages() as stages:
        from edgeq.files import atomic_write
        from edgeq.report.html import render_training
        from edgeq.training.loop import Steps
        from edgeq.training.together import rank as own_rank
        from edgeq.training.train import train_model

        trained = train_model(
            model,
            train=samples,
            plan=made_for,
            out=out,
            target=target,
            labels=labels,
            distill=distill,
            features=features,
            ranges=ranges,
            augment=augment,
            gradients=gradients,
            steps=Steps(scale_rate=scale_rate, patience=patience, seed=seed, autocast=autocast, **how),
            overwrite=overwrite,
            progress=stages,
            **vars(read),
        )
        if own_rank() > 0:
            return 0  # the first process tells
        page = trained.out.with_name(f"{trained.out.name}.html")
        atomic_write(page, render_training(trained))
    if shell.json:
        epochs_seen = [epoch._asdict() for epoch in trained.epochs]
        shell.document({**trained._asdict(), "epochs": epochs_seen, "page": page})
    elif not shell.quiet:
        from edgeq.records.wording import bytes_text
        from edgeq.training.loop import told

        shell.console.print(f"{trained.out}: {told(trained.epochs[trained.best])}; see {page.name}")
        if trained.sent is not None and trained.float32 is not None:
            part = f"{100 * trained.sent / trained.float32:.1f} % of float32"
            shell.console.print(f"gradients: {bytes_text(trained.sent)} sent by each process, {part}")
        shell.console.print(f"next: edgeq deploy {trained.out} --plan {plan} --calib ... --eval ... --out build")
    return 0

"""``kvbench heal``: bases tuned after they were fitted."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvbench.cli.console import err, out, say
from kvbench.cli.options import DEFAULT_MODEL, Device, Dtype, Json, Model, Whole
from kvbench.errors import EXIT_OK

if TYPE_CHECKING:
    from kvbench.healing.heal import Healing
    from kvbench.healing.training import Evaluation


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Learning:
    """What is learnt from, and how."""

    text: Annotated[str, Parameter(help="Text to calibrate, train and be watched on; essays+pydoc alternates two.")] = (
        "essays"
    )
    windows: Annotated[Whole, Parameter(help="Windows that the bases are fitted to at first.")] = 8
    length: Annotated[Whole, Parameter(help="Tokens per window of the fit.")] = 1024
    steps: Annotated[Whole, Parameter(help="Training steps at most.")] = 300
    rate: Annotated[float, Parameter(help="Learning rate, relative to what compression costs.")] = 0.003
    ranks: Annotated[
        str, Parameter(help="Shares of the spec's ranks to serve with one basis, as in 1,0.75,0.5; each is saved.")
    ] = "1"
    tokens: Annotated[Whole, Parameter(help="Tokens per training window and held-out document.")] = 512
    sequences: Annotated[Whole, Parameter(help="Training windows, of the calibration split.")] = 48
    batch: Annotated[Whole, Parameter(help="Training windows per step.")] = 1
    held_out: Annotated[Whole, Parameter(help="Documents to watch, of the development split.")] = 4
    every: Annotated[Whole, Parameter(help="Steps between two looks at them, each of which is a checkpoint.")] = 20
    patience: Annotated[Whole, Parameter(help="Looks without gain until training is over.")] = 10
    seed: Annotated[Whole, Parameter(help="Of the order of windows.")] = 0


def heal(
    *,
    compressor: Annotated[str, Parameter(help="A spec with bases (pca:rank=0.5, palu:rank=0.5+int:bits=4), or saved.")],
    model: Model = DEFAULT_MODEL,
    learning: Learning = Learning(),
    save: Annotated[Path | None, Parameter(help="Folder to write to; default runs/heals/<model-spec>.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json_: Json = False,
) -> int:
    """Tune a compressor's bases until the model through its cache predicts what it predicts without.

    The weights stay as they are; encoders, decoders and means of all layers are trained together, against the
    uncompressed model by KL divergence. Each window is read as it will be read through the cache: a quarter as the
    prompt, the rest as if decoded, with sinks and the recent window exact. A quantizer of the spec is in the loop
    (straight-through). Training starts from bases in closed form, of least cost by the Fisher information of what the
    model predicts, where they are better than the fitted ones. The KL that is shown is that of documents that training
    never sees, and the best bases are kept.

    Healed are linear bases that belong to the model: pca, latent, palu, svd, matryoshka, eigen, kqsvd, mla (its joint
    latent; the RoPE slice stays, so that kvbench convert takes it), … before or after RoPE. Refused are eviction, bases
    fitted to each prompt, bases over several layers, and keys in bands. The cache takes the same bytes afterwards;
    bases whose encoder was their decoder transposed take twice theirs.

    --ranks trains nested bases, the shares in turn, so that the first components serve the smaller rank. Start
    from components that are sorted (pca:rank=1 --ranks 0.75,0.5,0.25; not palu, whose rotation mixes them).

    Use the folder like any compressor: --compressor saved:path=FOLDER, and FOLDER/0.5 for a smaller share. What is
    interrupted goes on from its last checkpoint when the command is repeated.
    """
    from kvbench.healing.heal import heal_model
    from kvbench.runs.progress import counted

    def told(evaluation: Evaluation) -> None:
        klds = ", ".join(f"{kld:.4g}" for kld in evaluation.klds)
        say(f"after {evaluation.step} of at most {learning.steps} steps: held-out KL {klds}")

    with counted(err, "healing") as report:
        healed, folder = heal_model(model, compressor, save, dtype, device, report, told, **asdict(learning))
    if json_:
        print(healed.model_dump_json())
    else:
        out.print(healing_view(healed, folder))
        say(f"saved: {folder} · use it: --model {model} --compressor {shlex.quote(f'saved:path={folder}')}")
    return EXIT_OK


def healing_view(healed: Healing, folder: Path) -> RenderableType:
    """The divergence before, at the start and after, share by share of the ranks, and what it took."""
    request, training = healed.request, healed.request.training
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("compressor", no_wrap=True, overflow="fold")
    for name in ("ranks", "KL fitted", "start", "healed", "times less", "bases MB"):
        table.add_column(name, justify="right")
    for rank in healed.ranks:
        factor = rank.kld_before / rank.kld if rank.kld > 0 else float("inf")
        numbers = (
            f"{rank.share:g}",
            f"{rank.kld_before:.4g}",
            f"{rank.kld_start:.4g}",
            f"{rank.kld:.4g}",
            f"{factor:.2f}",
        )
        table.add_row(Text(f"saved:path={folder / rank.folder}"), *numbers, f"{rank.bases_bytes / 1e6:.1f}")
    title = Text(f"{request.compressor} healed on {request.text} for {request.model}\n", style="bold")
    told = (
        f"\nKL in nats per token on {training.held_out} × {training.tokens} tokens of the development split; "
        f"{healed.steps} steps, the best after {healed.best_step}, in {healed.seconds / 60:.1f} minutes; fitted bases "
        f"take {healed.fitted_bases_bytes / 1e6:.1f} MB"
    )
    if not healed.best_step:
        told += "; no step was better than the start: try a lower --rate or more text"
    return Group(title, table, Text(told))

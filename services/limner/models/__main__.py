"""`python -m limner.models`, which the client runs as `limner models`: weights on this machine, without any server.

    list                    every model, whether it can be used, its licence and size
    plan                    on which device, in which precision and by which engine each would run here, and why
    pull NAME ...           fetch weights, and make ONNX files of those that are none
    import NAME FILE ...    make ONNX files of weights that are on this disk
    verify [NAME ...]       hash the weights that are here, all by default
    rm NAME ...             delete weights

Ends with 0 if all went well, 1 if something failed, 2 if the command line was wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from limner.engine.placement import PRECISIONS
    from limner.models.actions import Actions
    from limner.models.offers import gather
    from limner.models.pipelines import QUANTISED, bytes_of
    from limner.runtime.config import ConfigError
except ModuleNotFoundError as error:
    if (error.name or "limner").startswith("limner"):  # a fault of ours, not a package that isn't there
        raise
    sys.exit(f"no model server is installed here, as {error.name} is missing: pip install 'limner[all]'")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        offers, absent = gather()
    except ConfigError as error:
        parser.error(str(error))
    by_name = {offer.card.name: offer for offer in offers}
    asked = getattr(options, "names", [])
    if unknown := sorted(set(asked) - set(by_name)):
        notes = "".join(f"\n{sentence}" for sentence in absent)
        parser.error(f"no model {', '.join(unknown)}; there are: {', '.join(by_name) or 'none'}{notes}")
    actions = Actions(options.model_dir, absent, as_json=options.json)
    chosen = [by_name[name] for name in asked] or offers
    match options.command:
        case "list":
            return actions.list(chosen)
        case "plan":
            return actions.plan(chosen, options.device, options.precision, options.memory)
        case "pull":
            return actions.pull(chosen, options.mirror, options.accept_licence, options.precisions)
        case "import":
            return actions.import_files(chosen[0], options.files, options.accept_licence, options.precisions)
        case "verify":
            return actions.verify(chosen, only_installed=not asked)
        case _:
            return actions.rm(chosen)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON for programs")
    common.add_argument(
        "--model-dir", default="", help="where weights lie (LIMNER_MODEL_DIR; the user's cache directory)"
    )
    parser = argparse.ArgumentParser(prog="limner models", description="The models' weights on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", parents=[common], help="every model and whether it can be used")
    listing.add_argument("names", nargs="*", metavar="NAME", help="only these")

    plan = commands.add_parser("plan", parents=[common], help="where each model would run here, and why")
    plan.add_argument("names", nargs="*", metavar="NAME", help="only these")
    plan.add_argument("--device", default="auto", help="auto, cpu, cuda:N")
    precisions = [*PRECISIONS, *(name for name in QUANTISED if name not in PRECISIONS)]
    plan.add_argument("--precision", default="auto", help=", ".join(precisions))
    plan.add_argument(
        "--memory", type=_memory, metavar="SIZE", help="as if so much of the device's were free, such as 12GiB"
    )

    making = argparse.ArgumentParser(add_help=False)
    making.add_argument("--accept-licence", action="store_true", help="agree to licences that are not free")
    making.add_argument(
        "--precisions",
        type=_precisions,
        default=PRECISIONS[1:],
        help="which to make and measure, such as fp32,int8: all by default; fp32 is always made",
    )

    pull = commands.add_parser("pull", parents=[common, making], help="fetch weights")
    pull.add_argument("names", nargs="+", metavar="NAME")
    pull.add_argument(
        "--mirror",
        default=os.environ.get("LIMNER_MIRROR", ""),
        help="http, https or file: URL with NAME/FILE under it (LIMNER_MIRROR)",
    )

    importing = commands.add_parser("import", parents=[common, making], help="use weights that are on this disk")
    importing.add_argument("names", nargs=1, metavar="NAME")
    importing.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="named as the published ones, or in order"
    )

    verify = commands.add_parser("verify", parents=[common], help="hash the weights that are here")
    verify.add_argument("names", nargs="*", metavar="NAME")

    rm = commands.add_parser("rm", parents=[common], help="delete weights")
    rm.add_argument("names", nargs="+", metavar="NAME")
    return parser


def _memory(text: str) -> int:
    try:
        return bytes_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _precisions(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if unknown := set(names) - set(PRECISIONS[1:]):
        raise argparse.ArgumentTypeError(f"there is no precision {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped: what was installed is as it was, and the next pull goes on with what was fetched")

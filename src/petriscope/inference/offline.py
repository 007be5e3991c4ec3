"""The command line of a package: predict image files, and verify the package, with numpy, Pillow and onnxruntime alone.

What it prints is what ``petriscope predict`` and ``petriscope verify`` print, because it is printed by the same code.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.files import user_path
from petriscope.core.progress import deliver, leave_stdout, say
from petriscope.inference.answers import answer_files
from petriscope.inference.decoding import find_images
from petriscope.inference.label_answers import answer_labels, answering_by
from petriscope.inference.package import LABELER, SEGMENTER, Package
from petriscope.inference.segmentation import predict_files
from petriscope.inference.table import Rows, Wanted, hand_over
from petriscope.inference.verification import verify

MOST_THREADS = 1024  # each takes memory, whether it has something to do or not


def main(folder: Path, words: Sequence[str] | None = None) -> int:
    """Run the command line of the package in a folder. Returns the exit status: 0 done, 1 the work failed, 2 the request was
    wrong.

    Args:
        words: the arguments; None: those of the process.
    """
    asked = _parser().parse_args(words)
    try:
        if asked.verify and asked.images:
            raise RequestError("--verify checks the package on its own test images; give it without other images")
        if asked.key is not None and not asked.verify:
            raise RequestError("--key needs --verify: without it, the signature would not be checked")
        if asked.threads is not None and not 1 <= asked.threads <= MOST_THREADS:
            raise RequestError(f"--threads must be from 1 to {MOST_THREADS}; got {asked.threads}")
        if asked.verify:
            for sentence in verify(folder, asked.key).sentences():
                deliver(f"{sentence}\n")
            return 0
        if not asked.images:
            raise RequestError("name image files, or folders of them; --help lists the options")
        if asked.without_guarantee and asked.max_error is None and asked.set_coverage is None:
            raise RequestError(
                "--without-guarantee needs --max-error or --set-coverage: without them, nothing is guaranteed"
            )
        hand_over(_rows(Package(folder, asked.threads).by_tiles(asked.tiles), asked), asked.out, deliver)
    except PetriscopeError as error:
        say(f"error: {error}")
        leave_stdout()
        return error.exit_status
    except OSError as error:
        say(f"error: {error.filename or 'the system says'}: {error.strerror or error}")
        return PetriscopeError.exit_status
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


def _rows(package: Package, asked: argparse.Namespace) -> Rows:
    files = find_images([user_path(path) for path in asked.images], package.reading.pages)
    tta = package.manifest.tta
    wanted = Wanted(asked.out, tta, asked.max_error, asked.set_coverage, asked.quiet, asked.without_guarantee)  # type: ignore[arg-type]
    if package.manifest.outputs == SEGMENTER:
        return predict_files(package, files, wanted)
    if package.manifest.outputs == LABELER:
        how = answering_by(package, package.label_plan(asked.max_error, asked.set_coverage))
        return answer_labels(package, files, wanted, how)
    plan = package.plan(asked.max_error, asked.set_coverage)
    return answer_files(package, files, wanted, plan)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict.py", description="Predict image files with this package, or verify it.", allow_abbrev=False
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="image files, or folders of them")
    add("--out", type=Path, help="CSV file to write, instead of stdout; for masks, the folder to write them to")
    add("--max-error", type=float, metavar="SHARE", help="abstain so that at most this share of the answers is wrong")
    add("--set-coverage", type=float, metavar="SHARE", help="add sets that contain the true class this often")
    add(
        "--without-guarantee", action="store_true", help="answer also where guarantees are withdrawn, without any claim"
    )
    add(
        "--tiles",
        type=float,
        metavar="OVERLAP",
        help="masks: keep images in their own sizes, and predict by tiles that overlap by this share of their side, 0 to 0.5; "
        "default: as the model was trained",
    )
    add("--threads", type=int, metavar="N", help="processor threads; default: one per core")
    add(
        "--quiet",
        action="store_true",
        help="no progress and no notes; withdrawn guarantees are still reported",
    )
    add("--verify", action="store_true", help="check that the package is whole and answers as the run did")
    add("--key", type=Path, metavar="FILE", help="with --verify: the public ed25519 key of who signed the package")
    return parser

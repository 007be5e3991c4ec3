"""Files that cannot be read, are cut short, or have an unusual size. One array of images no longer shows any of this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from petriscope.audit.base import Check, Context, Finding, FindingInfo, Listing
from petriscope.data.file_check import FileFault, check_files

INFOS = (
    FindingInfo("odd_size", "The image in the file has a size or an aspect ratio unlike the others.", "quality"),
    FindingInfo("truncated", "The file ends before the image is complete.", "files", "drop"),
    FindingInfo("unreadable", "The file cannot be read as an image, or its mask cannot be read.", "files", "drop"),
)
BY_NAME = {info.name: info for info in INFOS}


class DamagedFiles(Check):
    findings = INFOS
    order = 60
    misleading = True

    def run(self, context: Context) -> Iterator[Finding]:
        if context.files:
            faults = check_files(context.files, set(context.images.ids.tolist()), quiet=context.quiet)
            yield from findings_of_files(context.listing, faults)


def findings_of_files(listing: Listing, faults: Iterable[FileFault]) -> Iterator[Finding]:
    place = {name: index for index, name in enumerate(listing.ids.tolist())}
    for fault in faults:
        info = BY_NAME[fault.finding]
        yield info.of(
            place[fault.id],
            fault.evidence,
            fault.score,
            decision="review" if fault.readable else "drop",
            reason=info.words if fault.readable else f"{info.words}: the image or its mask cannot be used",
        )

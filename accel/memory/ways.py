"""The ways of placing weights, in the order of what they cost."""

from __future__ import annotations

from enum import StrEnum


class Way(StrEnum):
    """Where weights lie, cheapest first."""

    RESIDENT = "all resident"
    ENCODER_FIRST = "text encoder first and gone"
    MODEL = "model offload"
    TURNS = "one component at a time from disk"
    GROUP = "group offload"
    SEQUENTIAL = "sequential offload"
    DISK = "blocks from disk"


COSTS = {
    Way.RESIDENT: "nothing",
    Way.ENCODER_FIRST: "reads {all} again when a prompt is new",
    Way.MODEL: "moves {all} between host and device each job",
    Way.TURNS: "reads {all} from disk each job",
    Way.GROUP: "moves {denoiser} to the device each denoiser call, while it computes",
    Way.SEQUENTIAL: "moves {denoiser} to the device each denoiser call, layer by layer",
    Way.DISK: "reads {denoiser} from disk each denoiser call",
}
# What an option asks for, by the words of a job's load options.
ASKED = {
    "none": (Way.RESIDENT,),
    "model": (Way.MODEL,),
    "group": (Way.GROUP,),
    "sequential": (Way.SEQUENTIAL,),
    "disk": (Way.DISK,),
    "auto": tuple(
        way for way in Way if way is not Way.SEQUENTIAL
    ),  # as slow as from disk, and takes the host's memory
}
IN_HOST = (Way.MODEL, Way.GROUP, Way.SEQUENTIAL)  # keep in host memory what waits
EACH_CALL = (Way.GROUP, Way.SEQUENTIAL, Way.DISK)  # move weights at each denoiser call
QUANTIZED = (Way.RESIDENT, Way.MODEL, Way.GROUP)  # take weights that were quantized while read

"""The help of commands with many options, in groups."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

GROUPS: dict[str, tuple[str, ...]] = {
    "Sources": (
        "image", "segmentation", "image_mip", "seg_mip", "channel", "time", "assume", "missing", "datastack",
        "server_address", "timestamp", "agglomerate", "link_layers", "link_group",
        "allow_local", "max_state_size",
    ),
    "Place": ("bbox", "center", "size", "resolution", "axis", "to"),
    "Segments and contrast": (
        "ids", "colors", "alpha", "rest_alpha", "outline", "outline_side", "merge", "outline_alpha", "outline_unit",
        "contrast", "raw", "percentiles",
    ),
    "Picture": (
        "square", "scale", "scale_bar", "legend", "inset", "inset_zoom", "label_pt", "width_mm", "dpi",
        "points", "points_column", "points_resolution", "table",
    ),
    "Format": (
        "chunks", "shards", "levels", "compressor", "ome_version", "layer_type", "encoding", "quality", "gzip",
        "compress_level", "compression", "bigtiff", "fps", "crf",
    ),
    "Run": (
        "output", "config", "dry_run", "overwrite", "resume", "scheduler", "workers", "memory", "scratch", "retries",
        "on_error", "progress", "as_json",
    ),
}  # fmt: skip
"""The names of options by what they are about; those of no group come last."""
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


class GroupedCommand(TyperCommand):
    """A command whose help lists its options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options group by group."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *GROUPS, "Other")}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                kind = param.param_type_name == "argument"
                groups["Arguments" if kind else _GROUP_OF.get(param.name or "", "Other")].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

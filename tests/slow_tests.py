"""Tests that take more than a few seconds: they run with the whole suite, and `-m "not slow"` leaves them out.

Single tests are marked where they stand; these are files of which most tests start processes or servers, and tests of
other files that do.
"""

from __future__ import annotations

FILES = frozenset(
    {
        "test_decoding_apart.py",
        "test_export_buckets.py",
        "test_export_cli.py",
        "test_export_cluster.py",
        "test_export_cluster_scratch.py",
        "test_export_heap.py",
    }
)
TESTS = frozenset(
    {
        "test_benchmarks.py::test_both_sides_read_and_draw_the_same",
        "test_borders.py::test_lines_where_a_resampled_segmentation_ends_in_the_picture",
        "test_cave.py::test_what_the_readme_shows",
        "test_cave_peer.py::test_pictures",
        "test_cave_safety.py::test_distributed_workers",
        "test_cave_safety.py::test_processes",
        "test_cli.py::test_a_channel_of_several_is_described",
        "test_cli.py::test_a_channel_of_several_is_exported",
        "test_cli.py::test_a_figure_along_y_and_outlines_along_the_stack",
        "test_cli.py::test_figure_and_export",
        "test_cli.py::test_figure_formats",
        "test_cli.py::test_figure_of_a_datastack",
        "test_cli.py::test_figure_of_a_table",
        "test_cli.py::test_ids_as_people_type_them",
        "test_cli.py::test_info",
        "test_cli.py::test_messages_speak_of_options",
        "test_cli.py::test_the_figure_of_a_link",
        "test_cli.py::test_the_voxels_of_one_layer",
        "test_cli.py::test_the_voxels_of_what_is_exported",
        "test_cli_mistakes.py::test_the_package_runs_as_the_command_line_does",
        "test_cli_words.py::test_no_message_names_what_cannot_be_typed",
        "test_export_blocks.py::test_whatever_verbs_were_chained_the_voxels_are_those_of_compute",
        "test_export_blocks.py::test_wrong_blocks_that_a_cluster_keeps",
        "test_export_books.py::test_no_two_patterns_have_one_name",
        "test_export_books.py::test_what_appeared_while_a_result_was_brought_to_its_place_is_not_replaced",
        "test_export_books.py::test_who_is_writing_is_told_first",
        "test_export_books.py::test_who_shares_files_with_one_that_is_written_now_waits",
        "test_export_books.py::test_who_was_writing_and_died_is_not_waited_for",
        "test_export_huge.py::test_a_job_file_with_too_many_zeros",
        "test_export_own.py::test_what_is_in_memory_takes_no_more_of_it",
        "test_export_own.py::test_whatever_was_done_the_voxels_are_those_of_dask",
        "test_export_plan.py::test_memory_is_about_what_was_planned",
        "test_export_plan.py::test_no_room_for_what_will_surely_be_written",
        "test_export_refusals.py::test_coarser_levels_of_channels_are_their_means",
        "test_export_refusals.py::test_every_type_is_kept_or_refused_at_once",
        "test_export_refusals.py::test_the_cut_of_coarser_levels_stays_as_it_was_begun",
        "test_export_resume.py::test_killed_once",
        "test_export_rolling.py::test_exports_are_the_same_and_are_found_done",
        "test_export_spill.py::test_on_a_cluster_each_worker_uses_its_own_folder",
        "test_export_spill.py::test_stopped_in_the_middle_of_a_region",
        "test_export_told.py::test_a_bar_is_seen_in_a_terminal_without_a_size",
        "test_export_told.py::test_the_command_line_speaks_of_its_own",
        "test_layers.py::test_masks_agree_with_imageryclient",
        "test_links.py::test_any_json_ends_in_a_state_or_in_our_error",
        "test_links.py::test_ten_thousand_links_end_in_a_state_or_in_our_error",
        "test_opening.py::test_a_source_is_a_small_value_that_travels",
        "test_source_damage.py::test_a_damaged_chunk_does_not_end_the_process",
        "test_source_omezarr.py::test_a_forked_child_says_so_instead_of_waiting_for_ever",
    }
)

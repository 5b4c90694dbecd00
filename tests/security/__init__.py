"""What a link may not do: one test for each way in."""

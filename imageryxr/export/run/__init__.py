"""Run a plan: workers, tasks, retries."""

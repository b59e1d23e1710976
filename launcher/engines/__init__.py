"""Programs that spawn the ranks. Each engine answers one question: which argv and environment."""

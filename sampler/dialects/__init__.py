"""Settings as files have them: our own form, and those of other engines."""

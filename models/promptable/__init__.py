"""Promptable models: one file per family, one protocol for all (`base.PromptableModel`)."""

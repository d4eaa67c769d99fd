"""Carry new content as what it differs from old content that both ends, or one of them, hold."""

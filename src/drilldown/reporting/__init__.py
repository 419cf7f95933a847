"""Numbers in; verdicts, words and figures out."""

"""Does TTT-Moshi remember what left its attention window? Recall at a distance, and likelihood by position.

Both tasks are generated in Moshi's own format (text, Moshi's codebooks, the user's codebooks, acoustic ones delayed)
and written as encoded recordings; training and scoring are those of the package.
"""

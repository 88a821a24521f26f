"""Templates and their parsers: requests to token ids, token ids to answers and English."""

"""Many lists at once: shares of rows in, part files and a ledger out, over processes or Ray."""
